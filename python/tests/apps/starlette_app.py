"""Starlette: what the tests of frameworks ask of each."""

import asyncio
import hashlib

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

from toolkit import record


class Stamp(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        response = await call_next(request)
        response.headers["x-middleware"] = "yes"
        return response


async def of_async(request):
    await asyncio.sleep(0)
    return JSONResponse({"kind": "async"})


def of_sync(request):
    return JSONResponse({"kind": "sync"})


async def stream(request):
    async def parts():
        for number in range(3):
            yield f"part {number}\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(parts(), media_type="text/plain")


async def upload(request):
    async with request.form() as form:
        content = await form["file"].read()
    return JSONResponse({"size": len(content), "sha256": hashlib.sha256(content).hexdigest()})


async def later():
    await asyncio.sleep(0.05)
    record("background")


async def background(request):
    return JSONResponse({}, background=BackgroundTask(later))


async def session(request):
    request.session["count"] = request.session.get("count", 0) + 1
    return JSONResponse({"count": request.session["count"]})


async def echo(websocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text.upper())


app = Starlette(
    routes=[
        Route("/async", of_async),
        Route("/sync", of_sync),
        Route("/stream", stream),
        Route("/upload", upload, methods=["POST"]),
        Route("/background", background, methods=["POST"]),
        Route("/session", session),
        WebSocketRoute("/echo", echo),
    ],
    middleware=[Middleware(SessionMiddleware, secret_key="of the tests"), Middleware(Stamp)],
)
