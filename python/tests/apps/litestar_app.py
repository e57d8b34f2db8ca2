"""Litestar: what the tests of frameworks ask of each."""

import asyncio
import hashlib
import os
from typing import Annotated

from litestar import Litestar, Request, WebSocket, get, post, websocket
from litestar.background_tasks import BackgroundTask
from litestar.datastructures import UploadFile
from litestar.enums import RequestEncodingType
from litestar.exceptions import WebSocketDisconnect
from litestar.middleware.session.client_side import CookieBackendConfig
from litestar.params import Body
from litestar.response import Response, Stream

from toolkit import record


@get("/async")
async def of_async() -> dict[str, str]:
    await asyncio.sleep(0)
    return {"kind": "async"}


@get("/sync", sync_to_thread=True)
def of_sync() -> dict[str, str]:
    return {"kind": "sync"}


@get("/stream", media_type="text/plain")
async def stream() -> Stream:
    async def parts():
        for number in range(3):
            yield f"part {number}\n"
            await asyncio.sleep(0.01)

    return Stream(parts())


@post("/upload", status_code=200)
async def upload(data: Annotated[dict[str, UploadFile], Body(media_type=RequestEncodingType.MULTI_PART)]) -> dict:
    content = await data["file"].read()
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


async def later() -> None:
    await asyncio.sleep(0.05)
    record("background")


@post("/background", status_code=200)
async def background() -> Response[dict]:
    return Response({}, background=BackgroundTask(later))


@get("/session")
async def session(request: Request) -> dict[str, int]:
    request.session["count"] = request.session.get("count", 0) + 1
    return {"count": request.session["count"]}


@websocket("/echo")
async def echo(socket: WebSocket) -> None:
    await socket.accept()
    try:
        while True:
            await socket.send_text((await socket.receive_text()).upper())
    except WebSocketDisconnect:
        pass


async def stamp(response: Response) -> Response:
    response.headers["x-middleware"] = "yes"
    return response


app = Litestar(
    [of_async, of_sync, stream, upload, background, session, echo],
    after_request=stamp,
    middleware=[CookieBackendConfig(secret=os.urandom(16)).middleware],
)
