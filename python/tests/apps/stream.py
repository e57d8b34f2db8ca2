"""Large bodies in both directions. Each path counts and never keeps what it has seen."""

import asyncio
import hashlib
import os
import pathlib
import tempfile

from toolkit import Routes, answer, body, record, start, text

app = Routes()
FOLDER = pathlib.Path(os.environ["RECORD"]).parent
PIECE = bytes(range(256)) * 256

BIG = tempfile.NamedTemporaryFile(prefix="oxicorn-big-", suffix=".bin")
BIG.truncate(int(os.environ["MEBIBYTES"]) * 1024 * 1024)


def number(scope):
    return int(scope["query_string"])


@app.route("/hello")
async def hello(scope, receive, send):
    await text(send, "hello")


@app.route("/count")
async def count(scope, receive, send):
    """Reads a body and answers its length."""
    total = 0
    while True:
        message = await receive()
        total += len(message["body"])
        if not message["more_body"]:
            break
    await answer(send, {"total": total})


@app.route("/digest")
async def digest(scope, receive, send):
    whole = hashlib.sha256()
    while True:
        message = await receive()
        whole.update(message["body"])
        if not message["more_body"]:
            break
    await text(send, whole.hexdigest())


@app.route("/read-later")
async def read_later(scope, receive, send):
    """Reads nothing until the test has made the file `read-on`."""
    record("holds")
    while not (FOLDER / "read-on").exists():
        await asyncio.sleep(0.01)
    await count(scope, receive, send)


@app.route("/much")
async def much(scope, receive, send):
    """Sends this number of MiB in pieces of 64 KiB."""
    await start(send, 200, [(b"content-length", b"%d" % (number(scope) * 1024 * 1024))])
    for _ in range(number(scope) * 16):
        await body(send, PIECE, True)
    await body(send)


@app.route("/much-in-chunks")
async def much_in_chunks(scope, receive, send):
    await start(send)
    for _ in range(number(scope) * 16):
        await body(send, PIECE, True)
    await body(send)


@app.route("/much-to-a-slow-reader")
async def much_to_a_slow_reader(scope, receive, send):
    """Records how many bytes were taken before send() had to wait."""
    total = number(scope) * 1024 * 1024
    await start(send, 200, [(b"content-length", b"%d" % total)])
    sent, told = 0, False
    while sent < total:
        sending = asyncio.ensure_future(body(send, PIECE, sent + len(PIECE) < total))
        done, _ = await asyncio.wait([sending], timeout=0.5)
        if not done and not told:
            record("send waits", sent=sent)
            told = True
        await sending
        sent += len(PIECE)
    record("all sent", sent=sent, waited=told)


@app.route("/one-large-message")
async def one_large_message(scope, receive, send):
    await start(send)
    await body(send, PIECE * (number(scope) * 16))


@app.route("/big-file")
async def big_file(scope, receive, send):
    await start(send)
    await send({"type": "http.response.pathsend", "path": BIG.name})


@app.route("/read-and-send")
async def read_and_send(scope, receive, send):
    """Sends each piece back as it comes: both directions of one connection at once."""
    await start(send)
    while True:
        message = await receive()
        await body(send, message["body"], True)
        if not message["more_body"]:
            break
    await body(send)
