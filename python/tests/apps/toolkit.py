"""What the test apps share: routes by path, whole bodies, simple answers, and a record of what the app saw.

An app writes what it saw to the file that $RECORD names, one JSON object a line. The test reads it there, so it also
sees what happened after the last answer, and what a worker did that has ended since.
"""

from __future__ import annotations

import json
import os


def record(what: str, **fields) -> None:
    """Appends one line in one write, so that lines of several workers never mix."""
    line = json.dumps({"what": what, "pid": os.getpid(), **fields}, default=repr) + "\n"
    descriptor = os.open(os.environ["RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


class Routes:
    """An ASGI app that calls a function by the path. `lifespan` is called for the lifespan scope."""

    def __init__(self):
        self.http = {}
        self.websocket = {}
        self.lifespan = None

    def route(self, path):
        return lambda function: self.http.setdefault(path, function)

    def socket(self, path):
        return lambda function: self.websocket.setdefault(path, function)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await (self.lifespan or quiet_lifespan)(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self.websocket[scope["path"]](scope, receive, send)
            return
        assert scope["type"] == "http", scope["type"]
        function = self.http.get(scope["path"])
        if function is None:
            await text(send, f"no route {scope['path']}", 404)
        else:
            await function(scope, receive, send)


async def quiet_lifespan(scope, receive, send):
    """Completes start-up and shutdown, and does nothing else."""
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def start(send, status=200, headers=()):
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def body(send, data=b"", more=False):
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def text(send, words, status=200, headers=()):
    """Sends a whole answer with a length."""
    data = words.encode() if isinstance(words, str) else words
    fields = [(b"content-type", b"text/plain"), (b"content-length", str(len(data)).encode()), *headers]
    await start(send, status, fields)
    await body(send, data)


async def answer(send, value, status=200):
    """Sends a value as JSON. Bytes become texts of latin-1, and what JSON has no word for its `repr`."""
    data = json.dumps(plain(value), default=repr).encode()
    await start(send, status, [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))])
    await body(send, data)


def plain(value):
    """Makes a value fit for JSON and keeps the types apart: tuples become {"tuple": […]}, bytes {"bytes": "…"}."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return {"tuple": [plain(item) for item in value]}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"bytes": bytes(value).decode("latin-1")}
    return value


async def read(receive):
    """Reads the whole body."""
    whole = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client left within its body")
        whole += message.get("body", b"")
        if not message.get("more_body"):
            return whole
