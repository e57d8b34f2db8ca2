"""The apps that the Python benchmark serves. Every server serves the same objects.

`bare` is an ASGI app without a framework, `fast` a FastAPI app with a few routes, `mix` a FastAPI app with 120 routes
and 60 models, so that every request takes another way through the code. `star` is a Starlette app that streams, sends a
file and echoes the messages of a web socket.
"""

import os
import pathlib

from fastapi import FastAPI
from pydantic import BaseModel, create_model
from starlette.applications import Starlette
from starlette.responses import FileResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

HELLO = b"Hello, world!"
HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"13")]
ROUTES = 60


async def bare(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": HELLO})
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
    else:
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return


class Item(BaseModel):
    id: int
    name: str
    price: float
    tags: list[str] = []


fast = FastAPI()


@fast.get("/items/{item_id}")
async def read_item(item_id: int, q: str | None = None) -> Item:
    return Item(id=item_id, name="otter", price=1.5, tags=["a", "b"])


@fast.post("/items")
async def create_item(item: Item) -> Item:
    return item


mix = FastAPI()


def add_routes(number):
    fields = {f"f{number}_{field}": (int, field) for field in range(8)}
    model = create_model(f"M{number}", **fields, name=(str, "x"))

    async def read(n: int, q: str | None = None):
        return model(name=q or "otter")

    async def create(body):
        return body

    create.__annotations__["body"] = model
    mix.get(f"/r{number}/{{n}}", response_model=model)(read)
    mix.post(f"/r{number}", response_model=model)(create)


for number in range(ROUTES):
    add_routes(number)


async def chunks():
    for _ in range(3):
        yield b"0123456789"


async def stream(request):
    return StreamingResponse(chunks())


# The benchmark makes this file, and names it when it starts the server.
FILE = pathlib.Path(os.environ.get("BENCH_FILE", "file.bin"))


async def file(request):
    return FileResponse(FILE)


async def echo(socket):
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)


star = Starlette(routes=[Route("/stream", stream), Route("/file", file), WebSocketRoute("/echo", echo)])
