"""`receive` and `send` of one web socket, as the app calls them.

Owns: the waits, each of which can be cancelled without the loss of a message. Refuses: all else, which is native.
"""

from __future__ import annotations

from typing import Any

from oxicorn._oxicorn import WebSocketChannel


class Channel:
    """The two functions of a web socket."""

    __slots__ = ("_socket",)

    def __init__(self, socket: WebSocketChannel) -> None:
        self._socket = socket

    async def receive(self) -> dict[str, Any]:
        socket = self._socket
        while (message := socket.take()) is None:
            future = socket.wait_to_receive()
            try:
                await future
            finally:
                socket.forget(future)
        return message

    async def send(self, message: dict[str, Any]) -> None:
        socket = self._socket
        if socket.put(message):
            while socket.is_blocked():
                future = socket.wait_to_send()
                try:
                    await future
                finally:
                    socket.forget(future)
