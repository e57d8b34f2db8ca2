"""Clients that show each byte: HTTP/1.1 over a raw socket, HTTP/2 over h2, web sockets frame by frame.

Owns: sending exactly what a test says, and reading exactly what came. Refuses: to repair, to retry, to follow.
"""

from __future__ import annotations

import base64
import os
import socket
import ssl
import struct
import time
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.settings

from harness import PATIENCE, Server


class Ended(Exception):
    """The server closed or reset the connection before a whole answer had come."""


@dataclass
class Response:
    status: int
    reason: str = ""
    version: str = "HTTP/1.1"
    fields: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    complete: bool = True
    """False if the connection ended before the end that the head had announced."""

    def all(self, name: str) -> list[str]:
        """Returns every value of a header, in their order."""
        return [value for key, value in self.fields if key.lower() == name]

    def get(self, name: str) -> str | None:
        values = self.all(name)
        return values[0] if values else None

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self):
        import json

        return json.loads(self.body)

    @property
    def closes(self) -> bool:
        """True if the answer says that the connection ends after it."""
        return "close" in (self.get("connection") or "").lower()


class Raw:
    """One HTTP/1.1 connection, byte by byte."""

    def __init__(self, server: Server | None = None, connection: socket.socket | None = None) -> None:
        assert server is not None or connection is not None
        self.socket = connection if connection is not None else server.connect()
        # A bytearray: what is taken from its front costs no copy of the rest, however much there is.
        self.buffer = bytearray()
        self.ended = False

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes | str) -> Raw:
        self.socket.sendall(data.encode("latin-1") if isinstance(data, str) else data)
        return self

    def request(self, method: str, target: str, *fields: str, body: bytes = b"", host: str = "test") -> Raw:
        """Sends a request with exactly these header lines, and a host; a body brings its length."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *fields]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        return self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)

    def get(self, target: str, *fields: str) -> Response:
        return self.request("GET", target, *fields).response()

    def half_close(self) -> Raw:
        """Sends a FIN: this side says that it sends no more, and still reads."""
        self.socket.shutdown(socket.SHUT_WR)
        return self

    def reset(self) -> None:
        """Ends the connection by an RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    def _fill(self) -> bool:
        """Reads more. Returns false at the end of the connection."""
        if self.ended:
            return False
        try:
            more = self.socket.recv(262144)
        except (ConnectionResetError, BrokenPipeError, ssl.SSLError):
            more = b""
        self.buffer += more
        self.ended = not more
        return bool(more)

    def exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            if not self._fill():
                raise Ended(f"{len(self.buffer)} of {count} bytes: {self.buffer[:200]!r}")
        return self._take(count)

    def _take(self, count: int) -> bytes:
        taken = bytes(memoryview(self.buffer)[:count])
        del self.buffer[:count]
        return taken

    def until(self, end: bytes) -> bytes:
        """Reads up to and with `end`."""
        while end not in self.buffer:
            if not self._fill():
                raise Ended(f"before {end!r}: {self.buffer[:200]!r}")
        return self._take(self.buffer.index(end) + len(end))

    def rest(self, within: float = PATIENCE) -> bytes:
        """Reads until the server ends the connection, and returns all of it."""
        deadline = time.monotonic() + within
        while True:
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                if not self._fill():
                    break
            except TimeoutError:
                raise AssertionError(f"the connection did not end within {within} s; so far {self.buffer!r}") from None
            finally:
                if self.socket.fileno() >= 0:
                    self.socket.settimeout(PATIENCE)
        return self._take(len(self.buffer))

    def is_silent(self, seconds: float = 0.2) -> bool:
        """Returns true if nothing comes for this time, not even the end of the connection."""
        if self.buffer or self.ended:
            return False
        self.socket.settimeout(seconds)
        try:
            self._fill()
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(PATIENCE)
        return False

    def head(self) -> Response:
        """Reads the head of one answer, also of an interim one (1xx)."""
        lines = self.until(b"\r\n\r\n")[:-4].decode("latin-1").split("\r\n")
        version, status, *reason = lines[0].split(" ", 2)
        fields = [tuple(part.strip() for part in line.split(":", 1)) for line in lines[1:]]
        return Response(int(status), "".join(reason), version, fields)

    def response(self, method: str = "GET") -> Response:
        """Reads one final answer. `complete` is false if the connection ended within it."""
        answer = self.head()
        while 100 <= answer.status < 200 and answer.status != 101:
            answer = self.head()
        return self.body_of(answer, method)

    def body_of(self, answer: Response, method: str = "GET") -> Response:
        """Reads the body that belongs to a head."""
        if method == "HEAD" or answer.status in (101, 204, 304) or 100 <= answer.status < 200:
            return answer
        body = bytearray()
        try:
            if "chunked" in (answer.get("transfer-encoding") or ""):
                while size := int(self.until(b"\r\n").split(b";")[0], 16):
                    self._into(body, size)
                    assert self.exactly(2) == b"\r\n"
                while (line := self.until(b"\r\n")) != b"\r\n":
                    name, _, value = line.decode("latin-1").partition(":")
                    answer.trailers.append((name.strip(), value.strip()))
            elif (length := answer.get("content-length")) is not None:
                self._into(body, int(length))
            else:
                while self._fill():
                    pass
                body += self._take(len(self.buffer))
        except Ended:
            answer.complete = False
        answer.body = bytes(body)
        return answer

    def _into(self, body: bytearray, count: int) -> None:
        """Reads so many bytes into `body`. If the connection ends before, `body` has all that came."""
        while count:
            if not self.buffer and not self._fill():
                raise Ended(f"{count} bytes are missing")
            piece = self._take(min(count, len(self.buffer)))
            body += piece
            count -= len(piece)

    def chunk(self) -> bytes:
        """Reads one chunk of a chunked body; the last one is empty."""
        size = int(self.until(b"\r\n").split(b";")[0], 16)
        data = self.exactly(size)
        assert self.exactly(2) == b"\r\n"
        return data


def get(server: Server, target: str, *fields: str) -> Response:
    """Sends one request on a connection of its own."""
    with Raw(server) as connection:
        return connection.get(target, *fields)


def post(server: Server, target: str, body: bytes, *fields: str) -> Response:
    with Raw(server) as connection:
        return connection.request("POST", target, *fields, body=body).response("POST")


class Http2:
    """One HTTP/2 connection with prior knowledge. It reads only while a test waits for something."""

    def __init__(self, server: Server, window: int | None = None) -> None:
        self.socket = server.connect()
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        if window is not None:
            self.h2.local_settings.initial_window_size = window
        self.h2.initiate_connection()
        self.answers: dict[int, Response] = {}
        self.interim: dict[int, list[Response]] = {}
        self.over: set[int] = set()
        self.resets: dict[int, int] = {}
        self.goaway = False
        self.ended = False
        self.acknowledge = window is None
        self.flush()

    def __enter__(self) -> Http2:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def start(
        self,
        method: str,
        target: str,
        fields: list[tuple[str, str]] | None = None,
        *,
        end: bool = True,
        authority: str = "test",
        pseudo: list[tuple[str, str]] | None = None,
    ) -> int:
        """Sends the head of a request, and returns its stream."""
        stream = self.h2.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "http"), (":authority", authority), (":path", target)]
        self.h2.send_headers(stream, head + (pseudo or []) + (fields or []), end_stream=end)
        self.answers[stream] = Response(0, version="HTTP/2", complete=False)
        self.interim[stream] = []
        self.flush()
        return stream

    def data(self, stream: int, data: bytes, end: bool = False) -> None:
        self.h2.send_data(stream, data, end_stream=end)
        self.flush()

    def reset(self, stream: int) -> None:
        self.h2.reset_stream(stream, 8)
        self.flush()

    def turn(self, timeout: float = PATIENCE) -> None:
        """Reads what comes next."""
        self.socket.settimeout(timeout)
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            self.ended = True
            return
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                self._head(self.answers[event.stream_id], event.headers)
            elif isinstance(event, h2.events.InformationalResponseReceived):
                self.interim[event.stream_id].append(self._head(Response(0), event.headers))
            elif isinstance(event, h2.events.TrailersReceived):
                self.answers[event.stream_id].trailers = list(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                self.answers[event.stream_id].body += event.data
                if self.acknowledge:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.answers[event.stream_id].complete = True
                self.over.add(event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                self.resets[event.stream_id] = event.error_code
                self.over.add(event.stream_id)
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.goaway = True
        if pending := self.h2.data_to_send():
            self.socket.sendall(pending)

    @staticmethod
    def _head(answer: Response, fields) -> Response:
        answer.fields = [(name, value) for name, value in fields if not name.startswith(":")]
        answer.status = int(dict(fields)[":status"])
        return answer

    def wait(self, until, within: float = PATIENCE) -> None:
        deadline = time.monotonic() + within
        while not until():
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"not within {within} s over HTTP/2: {self.answers}")
            if self.ended:
                raise Ended("the server closed the HTTP/2 connection")
            try:
                self.turn(left)
            except TimeoutError:
                continue

    def response(self, stream: int, within: float = PATIENCE) -> Response:
        """Reads until the stream is over. `complete` is false if the server has reset it."""
        self.wait(lambda: stream in self.over, within)
        return self.answers[stream]

    def get(self, target: str, fields: list[tuple[str, str]] | None = None) -> Response:
        return self.response(self.start("GET", target, fields))


TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 1, 2, 8, 9, 10, 0


@dataclass
class Frame:
    opcode: int
    data: bytes
    final: bool = True
    compressed: bool = False

    @property
    def code(self) -> int | None:
        """The code of a close frame."""
        return struct.unpack("!H", self.data[:2])[0] if len(self.data) >= 2 else None

    @property
    def reason(self) -> str:
        return self.data[2:].decode()


class RawWebSocket:
    """A web socket, frame by frame. The handshake is not checked: `answer` has it."""

    def __init__(self, server: Server, target: str = "/", *fields: str, key: str | None = None) -> None:
        self.wire = Raw(server)
        self.key = key or base64.b64encode(os.urandom(16)).decode()
        lines = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
        self.wire.request("GET", target, *lines, f"Sec-WebSocket-Key: {self.key}", *fields)
        self.answer = self.wire.response()

    def __enter__(self) -> RawWebSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.close()

    def send(self, opcode: int, data: bytes | str, *, final: bool = True, compressed: bool = False) -> RawWebSocket:
        return self.wire_bytes(self.frame(opcode, data, final=final, compressed=compressed))

    def wire_bytes(self, data: bytes) -> RawWebSocket:
        self.wire.send(data)
        return self

    @staticmethod
    def frame(opcode: int, data: bytes | str, *, final: bool = True, compressed: bool = False, mask: bool = True):
        """Returns one frame as a client writes it."""
        data = data.encode() if isinstance(data, str) else data
        first = opcode | (0x80 if final else 0) | (0x40 if compressed else 0)
        masked = 0x80 if mask else 0
        if len(data) < 126:
            head = struct.pack("!BB", first, masked | len(data))
        elif len(data) < 65536:
            head = struct.pack("!BBH", first, masked | 126, len(data))
        else:
            head = struct.pack("!BBQ", first, masked | 127, len(data))
        if not mask:
            return head + data
        key = os.urandom(4)
        repeated = (key * (len(data) // 4 + 1))[: len(data)]
        hidden = (int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(data), "big")
        return head + key + hidden

    def receive(self) -> Frame:
        """Reads one frame, also a ping or a close."""
        first, second = self.wire.exactly(2)
        assert not second & 0x80, "a server never masks"
        length = second & 0x7F
        if length == 126:
            length = struct.unpack("!H", self.wire.exactly(2))[0]
        elif length == 127:
            length = struct.unpack("!Q", self.wire.exactly(8))[0]
        return Frame(first & 0x0F, self.wire.exactly(length), bool(first & 0x80), bool(first & 0x40))

    def close(self, code: int | None = 1000, reason: str = "") -> RawWebSocket:
        """Sends a close frame, and does not wait for the other side's."""
        data = b"" if code is None else struct.pack("!H", code) + reason.encode()
        return self.send(CLOSE, data)

    def is_closed(self) -> bool:
        """Returns true once the server has ended the connection; what came before is thrown away."""
        self.wire.rest()
        return True
