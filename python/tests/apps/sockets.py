"""Web sockets: one path for each case. Each records how it ended."""

import asyncio
import os

from toolkit import Routes, body, record, start, text

app = Routes()


@app.route("/hello")
async def hello(scope, receive, send):
    await text(send, "hello")


async def accept(receive, send, **more):
    message = await receive()
    assert message == {"type": "websocket.connect"}, message
    await send({"type": "websocket.accept", **more})


async def disconnected(receive):
    """Reads until the end, and records it."""
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            record("disconnect", code=message.get("code"), reason=message.get("reason"))
            return


@app.socket("/echo")
async def echo(scope, receive, send):
    await accept(receive, send)
    try:
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                record("disconnect", code=message["code"], reason=message.get("reason"))
                return
            kind = "text" if message.get("text") is not None else "bytes"
            await send({"type": "websocket.send", kind: message[kind]})
    finally:
        record("finally")


@app.socket("/messages")
async def messages(scope, receive, send):
    """Answers each message with what the app got."""
    await accept(receive, send)
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        await send({"type": "websocket.send", "text": repr((message.get("text"), message.get("bytes")))})


@app.socket("/length")
async def length(scope, receive, send):
    await accept(receive, send)
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            record("disconnect", code=message["code"])
            return
        await send({"type": "websocket.send", "text": str(len(message.get("text") or message.get("bytes")))})


@app.socket("/wait")
async def wait(scope, receive, send):
    await accept(receive, send)
    record("open")
    try:
        await disconnected(receive)
    finally:
        record("finally")


@app.socket("/never-reads")
async def never_reads(scope, receive, send):
    """Waits for something else than its client, so it does not see that it left."""
    await accept(receive, send)
    record("open")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        record("cancelled")
        raise


@app.socket("/subprotocol")
async def subprotocol(scope, receive, send):
    record("offered", names=scope["subprotocols"])
    await accept(receive, send, subprotocol="chat.v2", headers=[(b"x-from-app", b"yes"), (b"set-cookie", b"a=1")])
    await disconnected(receive)


@app.socket("/close-before-accept")
async def close_before_accept(scope, receive, send):
    await receive()
    await send({"type": "websocket.close", "code": 4000, "reason": "no"})


@app.socket("/deny")
async def deny(scope, receive, send):
    await receive()
    await send({
        "type": "websocket.http.response.start",
        "status": 418,
        "headers": [(b"content-type", b"text/plain"), (b"x-why", b"teapot")],
    })
    await send({"type": "websocket.http.response.body", "body": b"short ", "more_body": True})
    await send({"type": "websocket.http.response.body", "body": b"and stout"})


@app.socket("/return-before-accept")
async def return_before_accept(scope, receive, send):
    return


@app.socket("/raise-before-accept")
async def raise_before_accept(scope, receive, send):
    raise ValueError("before the accept")


@app.socket("/raise")
async def raise_after(scope, receive, send):
    await accept(receive, send)
    raise ValueError("after the accept")


@app.socket("/return")
async def only_return(scope, receive, send):
    await accept(receive, send)


@app.socket("/close")
async def close(scope, receive, send):
    await accept(receive, send)
    await send({"type": "websocket.close", "code": 4001, "reason": "enough"})
    await disconnected(receive)


@app.socket("/close-without-a-code")
async def close_without_a_code(scope, receive, send):
    await accept(receive, send)
    await send({"type": "websocket.close"})


@app.socket("/send-after-the-client-left")
async def send_after_the_client_left(scope, receive, send):
    await accept(receive, send)
    record("open")
    await disconnected(receive)
    try:
        await send({"type": "websocket.send", "text": "too late"})
    except BaseException as error:
        record("late send", raised=type(error).__name__, oserror=isinstance(error, OSError))
    else:
        record("late send", raised=None, oserror=False)


@app.socket("/send-after-close")
async def send_after_close(scope, receive, send):
    await accept(receive, send)
    await send({"type": "websocket.close"})
    try:
        await send({"type": "websocket.send", "text": "too late"})
    except Exception as error:
        record("send after close", raised=type(error).__name__)
    else:
        record("send after close", raised=None)


@app.socket("/poll")
async def poll(scope, receive, send):
    """Cancels receive() again and again, and must lose no message."""
    await accept(receive, send)
    record("open")
    cancelled = 0
    while True:
        try:
            message = await asyncio.wait_for(receive(), 0.01)
        except TimeoutError:
            cancelled += 1
            continue
        if message["type"] == "websocket.disconnect":
            return
        await send({"type": "websocket.send", "text": f"{message['text']} {cancelled > 3}"})


@app.socket("/flood")
async def flood(scope, receive, send):
    """Sends without an end and records how far it got each time that send() had to wait."""
    await accept(receive, send)
    piece = os.urandom(16384)
    sent = 0
    while sent < 512 * 1024 * 1024:
        try:
            await asyncio.wait_for(send({"type": "websocket.send", "bytes": piece}), 0.5)
        except TimeoutError:
            record("send waits", sent=sent)
            return
        sent += len(piece)
    record("never waited", sent=sent)


@app.socket("/slow-reader")
async def slow_reader(scope, receive, send):
    """Does not read for as long as the test wants."""
    await accept(receive, send)
    record("open")
    path = os.path.join(os.path.dirname(os.environ["RECORD"]), "read-on")
    while not os.path.exists(path):
        await asyncio.sleep(0.01)
    total = 0
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        total += len(message["bytes"])
        await send({"type": "websocket.send", "text": str(total)})


@app.route("/plain-http-to-a-socket")
async def plain(scope, receive, send):
    await start(send, 426, [(b"upgrade", b"websocket")])
    await body(send, b"this is a web socket")
