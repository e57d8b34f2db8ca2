"""The service of tests/programs/plain.rs in Python: `asgi:app` without a framework, `asgi:fastapi` with FastAPI."""
import asyncio
import os

LARGE = b"x" * (1 << 20)
SLOW = 0.02


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    path = scope["path"]
    if path == "/pid":
        body = b"%d" % os.getpid()
    elif path == "/10k":
        body = LARGE[: 10 << 10]
    elif path == "/1m":
        body = LARGE
    elif path == "/slow":
        await asyncio.sleep(SLOW)
        body = b"%d" % os.getpid()
    elif path == "/up":
        length, more = 0, True
        while more:
            message = await receive()
            length, more = length + len(message.get("body", b"")), message.get("more_body", False)
        body = b"%d" % length
    else:
        body = b"hello, world\n"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def __getattr__(name):
    if name != "fastapi":
        raise AttributeError(name)
    from fastapi import FastAPI, Request, Response

    service = FastAPI()

    @service.get("/")
    async def hello():
        return {"status": "alive"}

    @service.get("/pid")
    async def pid():
        return os.getpid()

    @service.get("/10k")
    async def small():
        return Response(LARGE[: 10 << 10])

    @service.get("/1m")
    async def large():
        return Response(LARGE)

    @service.get("/slow")
    async def slow():
        await asyncio.sleep(SLOW)
        return os.getpid()

    @service.post("/up")
    async def up(request: Request):
        return len(await request.body())

    globals()["fastapi"] = service
    return service
