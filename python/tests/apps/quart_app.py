"""Quart: what the tests of frameworks ask of each."""

import asyncio
import hashlib

from quart import Quart, request, session, websocket

from toolkit import record

app = Quart(__name__)
app.secret_key = "of the tests"


@app.after_request
async def stamp(response):
    response.headers["x-middleware"] = "yes"
    return response


@app.get("/async")
async def of_async():
    await asyncio.sleep(0)
    return {"kind": "async"}


@app.get("/sync")
def of_sync():
    return {"kind": "sync"}


@app.get("/stream")
async def stream():
    async def parts():
        for number in range(3):
            yield f"part {number}\n".encode()
            await asyncio.sleep(0.01)

    return parts(), 200, {"content-type": "text/plain"}


@app.post("/upload")
async def upload():
    content = (await request.files)["file"].read()
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


async def later():
    await asyncio.sleep(0.05)
    record("background")


@app.post("/background")
async def background():
    app.add_background_task(later)
    return {}


@app.get("/session")
async def count():
    session["count"] = session.get("count", 0) + 1
    return {"count": session["count"]}


@app.websocket("/echo")
async def echo():
    while True:
        await websocket.send((await websocket.receive()).upper())
