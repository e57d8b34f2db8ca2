"""An app of which a test watches the workers: who answers, who blocks, who dies."""

import asyncio
import os
import pathlib
import signal
import sys
import time

from toolkit import Routes, record, text

app = Routes()
FOLDER = pathlib.Path(os.environ["RECORD"]).parent
record("imported")


async def lifespan(scope, receive, send):
    await receive()
    await asyncio.sleep(float(os.environ.get("SLOW_START", "0")))
    await send({"type": "lifespan.startup.complete"})
    await receive()
    record("shutdown")
    await send({"type": "lifespan.shutdown.complete"})


app.lifespan = lifespan


@app.route("/pid")
async def pid(scope, receive, send):
    await text(send, str(os.getpid()))


@app.route("/until")
async def until(scope, receive, send):
    record("began")
    while not (FOLDER / scope["query_string"].decode()).exists():
        await asyncio.sleep(0.01)
    await text(send, str(os.getpid()))


@app.route("/block")
async def block(scope, receive, send):
    """Blocks the loop, as a driver without asyncio in an `async def` does."""
    record("blocks")
    time.sleep(float(scope["query_string"] or 30))
    await text(send, "unblocked")


@app.route("/exit")
async def leave(scope, receive, send):
    sys.exit(3)


@app.route("/interrupt")
async def interrupt(scope, receive, send):
    raise KeyboardInterrupt


@app.route("/os-exit")
async def leave_at_once(scope, receive, send):
    os._exit(9)


@app.route("/kill")
async def kill(scope, receive, send):
    os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(10)


@app.route("/stop-the-loop")
async def stop_the_loop(scope, receive, send):
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.05)
    await text(send, "ran on")
