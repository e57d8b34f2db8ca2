"""A small FastAPI app as people write them: models, dependencies, middleware, background tasks, streams, sockets."""

import asyncio
import contextlib
import contextvars
import tempfile
import threading
import time

from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket, WebSocketDisconnect
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.middleware.base import BaseHTTPMiddleware

from toolkit import record

CALLS = threading.local()
REQUEST = contextvars.ContextVar("request", default=None)
FILE = tempfile.NamedTemporaryFile(prefix="oxicorn-shop-", suffix=".txt")
FILE.write(b"0123456789" * 5000)
FILE.flush()


@contextlib.asynccontextmanager
async def lifespan(app):
    record("startup")
    yield {"pool": ["connection"]}
    record("shutdown")


app = FastAPI(lifespan=lifespan, title="Shop")


class Timing(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        REQUEST.set(request.url.path)
        answer = await call_next(request)
        answer.headers["x-timing"] = "1"
        return answer


app.add_middleware(Timing)
app.add_middleware(GZipMiddleware, minimum_size=1000)
app.add_middleware(CORSMiddleware, allow_origins=["https://shop.example"])


class Item(BaseModel):
    name: str = Field(min_length=1)
    price: float = 1.0


async def session():
    record("session opened")
    try:
        yield "session"
    finally:
        record("session closed")


@app.get("/items/{number}")
async def item(number: int, q: str | None = None) -> Item:
    if number == 404:
        raise HTTPException(404, "no such item")
    return Item(name=f"item {number} {q}")


@app.post("/items", status_code=201)
async def create(item: Item, request: Request, session: str = Depends(session)) -> dict:
    return {"item": item.name, "session": session, "pool": request.state.pool}


@app.get("/sync")
def sync(request: Request):
    """A `def` endpoint: it runs in a thread of anyio."""
    time.sleep(0.3)
    return {"request": REQUEST.get()}


@app.get("/thread")
def thread():
    """Says how many of these calls its thread has had."""
    CALLS.count = getattr(CALLS, "count", 0) + 1
    return CALLS.count


@app.get("/background")
async def background(tasks: BackgroundTasks):
    async def work():
        await asyncio.sleep(0.05)
        record("async work done")

    tasks.add_task(work)
    tasks.add_task(record, "sync work done")
    return {"accepted": True}


@app.get("/stream")
async def stream():
    async def lines():
        for number in range(5):
            yield f"line {number}\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(lines(), media_type="text/plain")


@app.get("/sync-stream")
async def sync_stream():
    return StreamingResponse((f"line {number}\n" for number in range(5)), media_type="text/plain")


@app.get("/file")
async def file():
    return FileResponse(FILE.name, filename="digits.txt")


@app.get("/large")
async def large():
    return {"text": "words " * 1000}


@app.get("/error")
async def error():
    raise RuntimeError("a bug in the shop")


@app.post("/upload")
async def upload(request: Request):
    total = 0
    async for piece in request.stream():
        total += len(piece)
    return {"total": total}


@app.websocket("/chat/{room}")
async def chat(websocket: WebSocket, room: str):
    await websocket.accept()
    try:
        while True:
            await websocket.send_json({"room": room, "text": await websocket.receive_text()})
    except WebSocketDisconnect as error:
        record("left", code=error.code)
