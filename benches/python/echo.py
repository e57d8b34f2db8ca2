"""A load of web sockets: on each of many connections it sends a message, waits for its echo, and sends the next one.

Owns: the connections, which stay open from one run to the next, and the count of the echoes. Refuses: anything but the
echo of the message that was sent. It answers pings, because a server closes connections that do not.
"""

import select
import socket
import time

from servers import Broken

MESSAGE = b"The quick brown otter swims over the lazy dog. 0123456789 abcdef"
MASK = b"\x11\x22\x33\x44"
TEXT, CLOSE, PING, PONG = 0x81, 0x88, 0x89, 0x8A


def masked(kind, payload):
    body = bytes(byte ^ MASK[index % 4] for index, byte in enumerate(payload))
    return bytes([kind, 0x80 | len(payload)]) + MASK + body


ASK = masked(TEXT, MESSAGE)
ECHO = bytes([TEXT, len(MESSAGE)]) + MESSAGE


class Swarm:
    def __init__(self, port, path, connections):
        self.epoll, self.sockets, self.rest = select.epoll(), {}, {}
        for number in range(connections):
            self.open(port, path, number)

    def open(self, port, path, number):
        one = socket.create_connection(("127.0.0.1", port), 10)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        head += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        one.sendall(head.encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            if not (part := one.recv(4096)):
                raise Broken(f"the server closed web socket {number} after {answer!r}")
            answer += part
        if not answer.startswith(b"HTTP/1.1 101"):
            raise Broken(f"web socket {number} was answered {answer[:80]!r}")
        one.setblocking(False)
        self.sockets[one.fileno()] = one
        self.epoll.register(one, select.EPOLLIN)

    def run(self, seconds):
        """Sends and receives for so many seconds, lets the last echoes come, and returns how many came."""
        end, count, waiting = time.monotonic() + seconds, 0, len(self.sockets)
        sockets, poll = self.sockets, self.epoll.poll
        for one in sockets.values():
            one.send(ASK)
        while waiting:
            now = time.monotonic()
            if now > end + 10:
                raise Broken(f"{waiting} echoes have not come within 10 s")
            for fd, _ in poll(1):
                data = sockets[fd].recv(65536)
                if data == ECHO or self.echoed(fd, data):
                    count += 1
                    if now < end:
                        sockets[fd].send(ASK)
                    else:
                        waiting -= 1
        return count

    def echoed(self, fd, data):
        """Reads the frames of a connection that are not exactly one echo. Returns whether the echo is among them."""
        data, found = self.rest.pop(fd, b"") + data, False
        if not data:
            raise Broken("the server closed a web socket")
        while len(data) >= 2 and len(data) >= 2 + data[1]:
            frame, data = data[: 2 + data[1]], data[2 + data[1] :]
            if frame[0] == PING:
                self.sockets[fd].send(masked(PONG, frame[2:]))
            elif frame == ECHO and not found:
                found = True
            else:
                raise Broken(f"the server sent {frame!r}")
        if data:
            self.rest[fd] = data
        return found

    def close(self):
        for one in self.sockets.values():
            one.close()
        self.epoll.close()
