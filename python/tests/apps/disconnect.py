"""Requests whose client leaves: each path records what the app is told and what it may still do."""

import asyncio
import time

from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from toolkit import Routes, body, record, start, text

app = Routes()
CHUNK = b"x" * 65536


@app.route("/hello")
async def hello(scope, receive, send):
    await text(send, "hello")


async def attempt(what, call):
    try:
        await asyncio.wait_for(call, 5)
    except BaseException as error:
        record(what, raised=type(error).__name__, module=type(error).__module__, oserror=isinstance(error, OSError))
    else:
        record(what, raised=None, oserror=False)


@app.route("/wait")
async def wait(scope, receive, send):
    """Waits for the end of its client, then works on, then answers."""
    try:
        while (await receive())["more_body"]:
            pass
        record("waits")
        message = await receive()
        record("told", type=message["type"])
        again = await receive()
        record("told again", type=again["type"])
        await asyncio.sleep(0.2)
        record("worked on")
        await text(send, "late answer")
        record("answered")
    except asyncio.CancelledError:
        record("cancelled")
        raise


@app.route("/wait-then-send-much")
async def wait_then_send_much(scope, receive, send):
    """Waits for the end of its client, and then sends more than the sockets can hold."""
    await receive()
    record("waits")
    record("told", type=(await receive())["type"])

    async def much():
        await start(send)
        for _ in range(400):
            await body(send, CHUNK, True)
        await body(send)

    await attempt("sent", much())


@app.route("/waits-in-send")
async def waits_in_send(scope, receive, send):
    """Sends to a client that does not read until it waits, and stays there until the client leaves."""

    async def much():
        await start(send)
        for _ in range(4000):
            sending = asyncio.ensure_future(body(send, CHUNK, True))
            done, _ = await asyncio.wait([sending], timeout=0.5)
            if not done:
                record("send waits")
            await sending

    try:
        await much()
    except OSError as error:
        record("released", raised=type(error).__name__)
        raise
    else:
        record("released", raised=None)


@app.route("/receive-while-sending")
async def receive_while_sending(scope, receive, send):
    """One task streams to a client that does not read, another waits in receive()."""
    await receive()

    async def listen():
        record("told", type=(await receive())["type"])

    listener = asyncio.create_task(listen())
    await start(send)
    record("waits")
    try:
        while not listener.done():
            await body(send, CHUNK, True)
            await asyncio.sleep(0)
    except OSError as error:
        record("raised", name=type(error).__name__)
    await listener


@app.route("/upload")
async def upload(scope, receive, send):
    total = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            record("told", type=message["type"], total=total)
            return
        total += len(message["body"])
        record("waits") if total and total < 20 else None
        if not message["more_body"]:
            record("whole", total=total)
            await text(send, str(total))
            return


@app.route("/second-request")
async def second_request(scope, receive, send):
    await receive()
    record("waits")
    try:
        message = await asyncio.wait_for(receive(), 0.4)
    except TimeoutError:
        message = {"type": "nothing"}
    await text(send, message["type"])


@app.route("/raise-on-send")
async def raise_on_send(scope, receive, send):
    """Lets the error of send() leave the app, as most apps do."""
    await receive()
    record("waits")
    await receive()
    await start(send)
    try:
        while True:
            await body(send, CHUNK, True)
            await asyncio.sleep(0.001)
    finally:
        record("left send")


# --- what a framework makes of it ---


async def sse(request):
    """A stream of server-sent events that says one thing and then nothing for ever."""

    async def events():
        try:
            yield "data: hello\n\n"
            record("idle")
            await asyncio.Event().wait()
        finally:
            record("stream ended", at=time.monotonic())

    return StreamingResponse(events(), media_type="text/event-stream")


async def busy(request):
    async def events():
        try:
            while True:
                yield "data: tick\n\n"
                await asyncio.sleep(0.02)
        finally:
            record("stream ended", at=time.monotonic())

    return StreamingResponse(events(), media_type="text/event-stream")


async def poll(request):
    """Asks `is_disconnected()` until it is true."""
    record("idle")
    polls = 0
    while not await request.is_disconnected():
        polls += 1
        await asyncio.sleep(0.02)
    record("stream ended", at=time.monotonic(), polls=polls)
    return StreamingResponse(iter(()))


async def never_gone(request):
    """Asks `is_disconnected()` for a while, with a client that stays."""
    seen = set()
    for _ in range(20):
        seen.add(await request.is_disconnected())
        await asyncio.sleep(0.01)
    return StreamingResponse(iter([repr(seen)]))


starlette = Starlette(
    routes=[Route("/sse", sse), Route("/busy", busy), Route("/poll", poll), Route("/never-gone", never_gone)]
)
