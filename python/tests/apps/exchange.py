"""How an answer is framed and how a body is read: one path for each case."""

import asyncio
import os
import tempfile

from toolkit import Routes, answer, body, read, record, start, text

app = Routes()
FILE = tempfile.NamedTemporaryFile(prefix="oxicorn-pathsend-", suffix=".bin")
FILE.write(bytes(range(256)) * 200)
FILE.flush()


@app.route("/hello")
async def hello(scope, receive, send):
    await text(send, "hello")


# --- receive ---


@app.route("/receive-after-the-end")
async def receive_after_the_end(scope, receive, send):
    await text(send, "hello")
    try:
        message = await asyncio.wait_for(receive(), 3)
    except TimeoutError:
        message = {"type": "nothing"}
    record("after the end", type=message["type"])


@app.route("/receive-twice")
async def receive_twice(scope, receive, send):
    first = await receive()
    try:
        second = (await asyncio.wait_for(receive(), 0.3))["type"]
    except TimeoutError:
        second = "waits"
    await answer(send, {"first": first, "second": second})


@app.route("/poll-then-read")
async def poll_then_read(scope, receive, send):
    """Cancels receive() five times before the body comes, as `is_disconnected` and `wait_for` do."""
    cancelled = 0
    whole = b""
    for _ in range(5):
        try:
            message = await asyncio.wait_for(receive(), 0.02)
        except TimeoutError:
            cancelled += 1
        else:
            whole += message["body"]
    record("polled", cancelled=cancelled)
    whole += await read(receive)
    await answer(send, {"cancelled": cancelled, "body": whole.decode()})


@app.route("/poll-between-pieces")
async def poll_between_pieces(scope, receive, send):
    """Cancels receive() again and again while the body comes in pieces, and must lose none of it."""
    whole, cancelled, more = b"", 0, True
    while more:
        task = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        if not task.done():
            task.cancel()
            cancelled += 1
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(0.001)
        if not task.cancelled():
            message = task.result()
            assert message["type"] == "http.request", message
            whole += message["body"]
            more = message["more_body"]
    await answer(send, {"length": len(whole), "sum": sum(whole), "cancelled": cancelled})


@app.route("/pieces")
async def pieces(scope, receive, send):
    sizes, more = [], []
    while True:
        message = await receive()
        sizes.append(len(message["body"]))
        more.append(message["more_body"])
        if not message["more_body"]:
            break
    await answer(send, {"sizes": sizes, "more": more})


@app.route("/echo")
async def echo(scope, receive, send):
    await text(send, await read(receive))


@app.route("/first-message")
async def first_message(scope, receive, send):
    await answer(send, await receive())


@app.route("/refuse")
async def refuse(scope, receive, send):
    await text(send, "no", 401)


@app.route("/wait-then-read")
async def wait_then_read(scope, receive, send):
    record("not read yet")
    await asyncio.sleep(0.2)
    await text(send, await read(receive))


@app.route("/answer-then-read")
async def answer_then_read(scope, receive, send):
    """Sends its whole answer first; what it reads then is no body any more."""
    await text(send, "early")
    record("read after the answer", type=(await receive())["type"])


# --- framing ---


@app.route("/one-message")
async def one_message(scope, receive, send):
    await start(send, 200, [(b"content-type", b"text/plain")])
    await body(send, b"hello")


@app.route("/two-messages")
async def two_messages(scope, receive, send):
    await start(send, 200, [(b"content-type", b"text/plain")])
    await body(send, b"hel", True)
    await body(send, b"lo")


@app.route("/empty")
async def empty(scope, receive, send):
    await start(send)
    await body(send)


@app.route("/no-body-key")
async def no_body_key(scope, receive, send):
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body"})


@app.route("/204")
async def no_content(scope, receive, send):
    await start(send, 204)
    await body(send, b"x")


@app.route("/304")
async def not_modified(scope, receive, send):
    await start(send, 304, [(b"etag", b'"1"')])
    await body(send, b"x")


@app.route("/too-short")
async def too_short(scope, receive, send):
    await start(send, 200, [(b"content-length", b"10")])
    await body(send, b"12345")


@app.route("/too-long")
async def too_long(scope, receive, send):
    await start(send, 200, [(b"content-length", b"3")])
    await body(send, b"12345")


@app.route("/own-date-and-server")
async def own_date_and_server(scope, receive, send):
    fields = [(b"date", b"Thu, 01 Jan 1970 00:00:00 GMT"), (b"server", b"my-own")]
    await text(send, "hello", headers=fields)


@app.route("/headers")
async def headers(scope, receive, send):
    fields = [(b"set-cookie", b"a=1"), (b"X-Caps", b"caf\xe9"), (b"set-cookie", b"b=2")]
    await text(send, "hello", headers=fields)


@app.route("/hop-by-hop")
async def hop_by_hop(scope, receive, send):
    await start(send, 200, [(b"transfer-encoding", b"chunked"), (b"keep-alive", b"timeout=5")])
    await body(send, b"hello")


@app.route("/bad-header")
async def bad_header(scope, receive, send):
    try:
        await start(send, 200, [(b"x-evil", b"1\r\nx-injected: 1")])
        await body(send, b"hello")
    except Exception as error:
        record("refused", error=type(error).__name__)
        raise


# --- errors ---


@app.route("/raise")
async def raise_before(scope, receive, send):
    raise ValueError("on purpose")


@app.route("/read-then-raise")
async def read_then_raise(scope, receive, send):
    await read(receive)
    raise ValueError("on purpose")


@app.route("/raise-after-a-chunk")
async def raise_after_a_chunk(scope, receive, send):
    await start(send)
    await body(send, b"first", True)
    await asyncio.sleep(0.05)
    raise ValueError("in the middle")


@app.route("/start-then-return")
async def start_then_return(scope, receive, send):
    await start(send)


@app.route("/start-then-raise")
async def start_then_raise(scope, receive, send):
    await start(send)
    raise ValueError("after the start")


@app.route("/return")
async def only_return(scope, receive, send):
    return


@app.route("/chunk-then-return")
async def chunk_then_return(scope, receive, send):
    await start(send)
    await body(send, b"first", True)
    await asyncio.sleep(0.05)


async def attempt(what, call):
    try:
        await call
    except Exception as error:
        record(what, raised=type(error).__name__, oserror=isinstance(error, OSError))
    else:
        record(what, raised=None)


@app.route("/body-after-the-end")
async def body_after_the_end(scope, receive, send):
    await text(send, "hello")
    await attempt("body after the end", body(send, b"more"))


@app.route("/second-start")
async def second_start(scope, receive, send):
    await start(send)
    await attempt("second start", start(send, 201))
    await body(send, b"hello")


@app.route("/body-before-start")
async def body_before_start(scope, receive, send):
    await attempt("body before start", body(send, b"hello"))
    await text(send, "hello")


@app.route("/unknown-message")
async def unknown_message(scope, receive, send):
    await attempt("unknown message", send({"type": "http.nonsense"}))
    await text(send, "hello")


@app.route("/raise-after-the-end")
async def raise_after_the_end(scope, receive, send):
    await text(send, "hello")
    raise ValueError("after the answer")


# --- extensions ---


@app.route("/early-hint")
async def early_hint(scope, receive, send):
    offered = "http.response.early_hint" in (scope.get("extensions") or {})
    await send({"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload; as=style"]})
    await answer(send, {"offered": offered})


@app.route("/trailers")
async def trailers(scope, receive, send):
    offered = "http.response.trailers" in (scope.get("extensions") or {})
    await send({
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"trailer", b"x-sum"), (b"x-offered", str(offered).encode())],
        "trailers": True,
    })
    await body(send, b"hello")
    await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"42")], "more_trailers": False})
    record("trailers were sent")


@app.route("/file")
async def file(scope, receive, send):
    await start(send, 200, [(b"content-length", b"51200"), (b"content-type", b"application/octet-stream")])
    await send({"type": "http.response.pathsend", "path": FILE.name})


@app.route("/file-without-length")
async def file_without_length(scope, receive, send):
    await start(send, 200)
    await send({"type": "http.response.pathsend", "path": FILE.name})


@app.route("/empty-file")
async def empty_file(scope, receive, send):
    await start(send, 200)
    await send({"type": "http.response.pathsend", "path": os.devnull})


@app.route("/missing-file")
async def missing_file(scope, receive, send):
    await start(send, 200)
    await send({"type": "http.response.pathsend", "path": "/no/such/file"})


# --- the app as a Task ---


@app.route("/task")
async def task(scope, receive, send):
    """A request runs in a Task of its own, from its first step on."""
    before = asyncio.current_task()
    listed = before in asyncio.all_tasks()
    async with asyncio.timeout(5):
        async with asyncio.TaskGroup() as group:
            child = group.create_task(asyncio.sleep(0.01, "child"))
    await asyncio.create_task(start(send, 200))
    await asyncio.wait_for(body(send, b"", True), 5)
    await asyncio.gather(body(send, str(child.result()).encode(), True))
    await body(send, f" {listed} {before is asyncio.current_task()}".encode())


VAR = __import__("contextvars").ContextVar("var", default="nothing")
AT_IMPORT = __import__("contextvars").ContextVar("at_import")
AT_IMPORT.set("set at import")


@app.route("/context")
async def context(scope, receive, send):
    seen = VAR.get()
    VAR.set(scope["query_string"].decode())
    await asyncio.sleep(0.02)
    await answer(send, {"seen": seen, "own": VAR.get(), "import": AT_IMPORT.get("lost")})


@app.route("/call-later")
async def call_later(scope, receive, send):
    """Timers, threads and sockets of the app work beside the server's own."""
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()
    loop.call_later(0.02, woken.set)
    await woken.wait()
    thread = await asyncio.to_thread(lambda: "thread")
    server = await asyncio.start_server(serve_echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"socket\n")
    line = (await reader.readline()).decode().strip()
    writer.close()
    server.close()
    process = await asyncio.create_subprocess_exec("echo", "subprocess", stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    await answer(send, [thread, line, out.decode().strip(), process.returncode])


async def serve_echo(reader, writer):
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()
