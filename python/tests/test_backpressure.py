"""Promise: neither a fast client nor a fast app fills the memory of a worker; each waits for the other.

An amount of 256 MiB each way is enough: what would grow with the amount grows here too. With MEBIBYTES in the
environment it is another amount; `make soak-python` sends 1 GiB.
"""

import hashlib
import os
import threading
import time

import pytest

from clients import Http2, Raw, get
from harness import rss

MIB = 1024 * 1024
MEBIBYTES = int(os.environ.get("MEBIBYTES", "256"))
AMOUNT = MEBIBYTES * MIB
PIECE = bytes(range(256)) * 256
SOCKETS = 12 * MIB
"""What the kernel's buffers of both sides of a connection may hold on this machine, and some more."""


@pytest.fixture(scope="module")
def shared(launch_for_module):
    settings = {"http.write_timeout": "60s", "http.body_timeout": "60s"}
    return launch_for_module("stream:app", settings=settings, environment={"MEBIBYTES": str(MEBIBYTES)})


@pytest.fixture
def server(shared):
    shared.clear_records()
    shared.path("read-on").unlink(missing_ok=True)
    assert get(shared, "/hello").status == 200
    return shared


class Memory:
    """The growth of the worker's resident memory while something runs."""

    def __init__(self, server):
        [self.pid] = server.serving_pids()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def __enter__(self):
        self.before = self.most = rss(self.pid)
        self.thread.start()
        return self

    def _watch(self):
        while not self.over.wait(0.005):
            self.most = max(self.most, rss(self.pid))

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    @property
    def growth(self):
        return self.most - self.before


def drain(connection, length):
    """Reads so many bytes and keeps none of them."""
    left = length - len(connection.buffer)
    connection.buffer.clear()
    view = memoryview(bytearray(MIB))
    while left:
        got = connection.socket.recv_into(view, min(left, MIB))
        assert got, f"the answer ended {left} bytes early"
        left -= got


# --- uploads ---


@pytest.mark.parametrize("framing", ["Content-Length", "chunked"])
def test_a_large_upload_needs_no_memory(server, framing):
    with Raw(server) as connection, Memory(server) as memory:
        if framing == "chunked":
            connection.request("POST", "/count", "Transfer-Encoding: chunked")
            piece = b"10000\r\n" + PIECE + b"\r\n"
        else:
            connection.request("POST", "/count", f"Content-Length: {AMOUNT}")
            piece = PIECE
        for _ in range(AMOUNT // len(PIECE)):
            connection.socket.sendall(piece)
        if framing == "chunked":
            connection.send("0\r\n\r\n")
        seen = connection.response().json()
    assert seen["total"] == AMOUNT
    assert memory.growth < 16 * MIB, f"{memory.growth / MIB:.1f} MiB"


def test_an_app_that_does_not_read_holds_its_client_back(server):
    with Raw(server) as connection, Memory(server) as memory:
        connection.request("POST", "/read-later", f"Content-Length: {64 * MIB}")
        server.wait_record("holds")
        sent = 0
        connection.socket.settimeout(0.5)
        try:
            while sent < 64 * MIB:
                sent += connection.socket.send(PIECE)
        except TimeoutError:
            pass
        assert sent < SOCKETS, f"{sent / MIB:.1f} MiB were taken"
        assert memory.growth < 2 * MIB, f"{memory.growth / MIB:.1f} MiB"
        # Others are served meanwhile.
        assert get(server, "/hello").text == "hello"
        server.write("read-on", "")
        connection.socket.settimeout(20)
        left = 64 * MIB - sent
        while left:
            left -= connection.socket.send(PIECE[: min(left, len(PIECE))])
        assert connection.response().json()["total"] == 64 * MIB


def test_an_upload_arrives_byte_by_byte_the_same(server):
    data = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(100_000))
    with Raw(server) as connection:
        connection.request("POST", "/digest", body=data)
        assert connection.response().text == hashlib.sha256(data).hexdigest()


# --- downloads ---


@pytest.mark.parametrize("target", [f"/much?{MEBIBYTES}", pytest.param("/big-file", marks=pytest.mark.needs_oxicorn)])
def test_a_large_download_needs_no_memory(server, target):
    with Raw(server) as connection, Memory(server) as memory:
        connection.request("GET", target)
        answer = connection.head()
        assert answer.get("content-length") == str(AMOUNT)
        drain(connection, AMOUNT)
        assert connection.get("/hello").text == "hello"
    assert memory.growth < 16 * MIB, f"{memory.growth / MIB:.1f} MiB"


def test_a_client_that_does_not_read_makes_send_wait(server):
    total = 64 * MIB
    with Raw(server) as connection, Memory(server) as memory:
        connection.request("GET", "/much-to-a-slow-reader?64")
        [waits] = server.wait_record("send waits")
        assert waits["sent"] < SOCKETS, f"{waits['sent'] / MIB:.1f} MiB were taken"
        assert memory.growth < 2 * MIB, f"{memory.growth / MIB:.1f} MiB"
        assert get(server, "/hello").text == "hello"
        assert server.records("all sent") == []
        answer = connection.response()
        assert (len(answer.body), answer.complete) == (total, True)
        assert answer.body == PIECE * (total // len(PIECE))
    assert server.wait_record("all sent")[0]["waited"]


def test_a_slow_reader_gets_every_byte_of_a_chunked_answer(server):
    with Raw(server) as connection:
        connection.request("GET", "/much-in-chunks?16")
        time.sleep(0.3)  # so that the sockets are full and the app waits
        answer = connection.response()
    assert answer.complete
    assert answer.body == PIECE * 256


def test_one_message_larger_than_all_buffers_arrives_whole(server):
    with Raw(server) as connection:
        answer = connection.get("/one-large-message?64")
    assert answer.complete
    assert answer.body == PIECE * 1024


def test_both_directions_of_a_connection_flow_at_once(server):
    data = PIECE * 320
    with Raw(server) as connection:
        connection.request("POST", "/read-and-send", f"Content-Length: {len(data)}")
        sender = threading.Thread(target=connection.socket.sendall, args=(data,))
        sender.start()
        answer = connection.response()
        sender.join()
    assert answer.complete
    assert answer.body == data


# --- HTTP/2 ---


@pytest.mark.needs_oxicorn
def test_over_http_2_send_waits_for_the_window_of_the_stream(server):
    """The window is 65,535 bytes and stays shut; the worker may hold some more, and not megabytes."""
    with Http2(server, window=65535) as connection:
        stream = connection.start("GET", "/much-to-a-slow-reader?8")
        connection.wait(lambda: len(connection.answers[stream].body) == 65535)
        [waits] = server.wait_record("send waits")
        assert waits["sent"] < MIB
        other = connection.start("GET", "/hello")
        # The window of the connection is shut too, so only the head of the other answer can come.
        connection.wait(lambda: connection.answers[other].status == 200)


@pytest.mark.needs_oxicorn
def test_over_http_2_an_app_that_does_not_read_opens_no_window(server):
    with Http2(server) as connection:
        stream = connection.start("POST", "/read-later", end=False)
        server.wait_record("holds")
        sent, quiet = 0, 0
        while sent < 16 * MIB and quiet < 3:
            room = min(connection.h2.local_flow_control_window(stream), connection.h2.max_outbound_frame_size)
            if room > 0:
                connection.data(stream, b"x" * room)
                sent, quiet = sent + room, 0
                continue
            try:
                connection.turn(0.2)
            except TimeoutError:
                quiet += 1
        assert sent < 4 * MIB, f"{sent / MIB:.1f} MiB were taken"
        server.write("read-on", "")
        connection.data(stream, b"", end=True)
        assert connection.response(stream).json()["total"] == sent
