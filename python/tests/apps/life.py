"""An app whose lifespan does what $LIFESPAN names, and whose requests last until the test says so."""

import asyncio
import atexit
import gc
import os
import pathlib
import time

from toolkit import Routes, body, record, start, text

app = Routes()
MODE = os.environ.get("LIFESPAN", "works")
FOLDER = pathlib.Path(os.environ["RECORD"]).parent
atexit.register(record, "atexit")
record("imported")
if MODE == "switches the collector off":
    gc.disable()


async def background():
    """A task that lives as long as the app, such as a consumer of a queue."""
    record("task began")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        record("task cancelled")
        raise


async def generator():
    try:
        yield 1
        yield 2
    finally:
        record("generator closed")


async def lifespan(scope, receive, send):
    if MODE == "raises at once":
        raise RuntimeError("this app has no lifespan")
    if MODE == "returns at once":
        return
    message = await receive()
    assert message == {"type": "lifespan.startup"}, message
    record("startup")
    if MODE == "startup raises":
        raise RuntimeError("no database")
    if MODE == "startup fails":
        await send({"type": "lifespan.startup.failed", "message": "the database said no"})
        return
    if MODE == "startup fails without a message":
        await send({"type": "lifespan.startup.failed"})
        return
    if MODE == "startup exits":
        raise SystemExit(7)
    if MODE == "startup never ends":
        await asyncio.Event().wait()
    if MODE == "startup returns":
        return
    if MODE == "startup is slow":
        await asyncio.sleep(0.8)
    if MODE == "startup blocks":
        time.sleep(1.8)
    app.kept = asyncio.create_task(background())
    app.generator = generator()
    await anext(app.generator)
    await send({"type": "lifespan.startup.complete"})
    message = await receive()
    assert message == {"type": "lifespan.shutdown"}, message
    record("shutdown", task_alive=not app.kept.done())
    if MODE == "shutdown raises":
        raise RuntimeError("the shutdown went wrong")
    if MODE == "shutdown fails":
        await send({"type": "lifespan.shutdown.failed", "message": "the pool would not close"})
        return
    if MODE == "shutdown never ends":
        await asyncio.Event().wait()
    if MODE == "shutdown is slow":
        await asyncio.sleep(0.6)
    record("shutdown over")
    await send({"type": "lifespan.shutdown.complete"})


app.lifespan = lifespan


def asked(scope):
    return scope["query_string"].decode()


async def until(name):
    """Waits until the test has made the file `name`."""
    while not (FOLDER / name).exists():
        await asyncio.sleep(0.01)


@app.route("/hello")
async def hello(scope, receive, send):
    await text(send, "hello")


@app.route("/frozen")
async def frozen(scope, receive, send):
    await text(send, str(gc.get_freeze_count()))


@app.route("/stopping")
async def stopping(scope, receive, send):
    await text(send, str(scope["extensions"]["oxicorn"]["stopping"]))


@app.route("/until")
async def answer_until(scope, receive, send):
    record("began", path="/until")
    await until(asked(scope))
    record("answered")
    await text(send, "done")


@app.route("/background")
async def answer_then_work(scope, receive, send):
    await text(send, "accepted")
    record("began", path="/background")
    try:
        await until(asked(scope))
    except asyncio.CancelledError:
        record("background cancelled")
        raise
    record("background done")


@app.route("/endless")
async def endless(scope, receive, send):
    """Never answers."""
    record("began", path="/endless")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        record("request cancelled")
        raise
    finally:
        record("request finally")


@app.route("/stream")
async def stream(scope, receive, send):
    """Never ends its answer."""
    await start(send)
    record("began", path="/stream")
    try:
        while True:
            await body(send, b"tick\n", True)
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        record("stream cancelled")
        raise


@app.route("/stubborn")
async def stubborn(scope, receive, send):
    """Will not be cancelled."""
    record("began", path="/stubborn")
    while True:
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            record("stubborn cancelled")
