"""A WSGI app with one path for each rule of PEP 3333 that a test asks about."""

import contextvars
import io
import os
import sys
import tempfile
import threading
import time

from toolkit import record

ROUTES = {}
FILE = tempfile.NamedTemporaryFile(prefix="oxicorn-wsgi-", suffix=".bin")
FILE.write(bytes(range(256)) * 2000)
FILE.flush()
VARIABLE = contextvars.ContextVar("variable")
PLAIN = [("Content-Type", "text/plain")]


def route(path):
    def add(function):
        ROUTES[path] = function
        return function

    return add


def app(environ, start_response):
    path = environ["PATH_INFO"]
    function = path_of if path.startswith("/path-of/") else ROUTES.get(path, hello)
    return function(environ, start_response)


class Closing:
    """An iterable that records its close()."""

    def __init__(self, parts, name="closed", at_close=None):
        self.parts, self.name, self.at_close = iter(parts), name, at_close

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.parts)

    def close(self):
        record(self.name, thread=threading.current_thread().name)
        if self.at_close is not None:
            raise self.at_close


def hello(environ, start_response):
    start_response("200 OK", PLAIN + [("Content-Length", "6")])
    return [b"hello\n"]


def path_of(environ, start_response):
    start_response("200 OK", PLAIN)
    return [repr(environ["PATH_INFO"]).encode()]


@route("/environ")
def show(environ, start_response):
    start_response("200 OK", PLAIN)
    return ["".join(f"{key}={environ[key]!r}\n" for key in sorted(environ)).encode()]


@route("/facts")
def facts(environ, start_response):
    start_response("200 OK", PLAIN)
    seen = {
        "asyncio": "asyncio" in sys.modules,
        "thread": threading.current_thread().name,
        "is_main": threading.current_thread() is threading.main_thread(),
        "pid": os.getpid(),
    }
    return [repr(seen).encode()]


# --- the head ---


@route("/reason")
def reason(environ, start_response):
    start_response("404 Nothing Of That Kind", PLAIN)
    return [b"no"]


@route("/headers")
def headers(environ, start_response):
    start_response("200 OK", [
        ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Connection", "keep-alive"), ("Keep-Alive", "timeout=5"),
        ("Transfer-Encoding", "chunked"), ("X-Padded", "  a b\t"), ("X-Latin", "\xe9"),
    ])
    return [b"ok"]


@route("/bad-value")
def bad_value(environ, start_response):
    start_response("200 OK", [("X-Bad", "a\r\nSet-Cookie: evil=1")])
    return [b"ok"]


@route("/bad-name")
def bad_name(environ, start_response):
    start_response("200 OK", [("X Bad", "a")])
    return [b"ok"]


@route("/bytes-header")
def bytes_header(environ, start_response):
    start_response("200 OK", [(b"X-Bad", "a")])
    return [b"ok"]


@route("/bad-status")
def bad_status(environ, start_response):
    start_response("20 OK", PLAIN)
    return [b"ok"]


@route("/start-twice")
def start_twice(environ, start_response):
    start_response("200 OK", PLAIN)
    start_response("201 Created", PLAIN)
    return [b"ok"]


@route("/replace")
def replace(environ, start_response):
    start_response("200 OK", PLAIN + [("X-First", "1")])
    try:
        raise KeyError("before the first part")
    except KeyError:
        start_response("500 Replaced", PLAIN, sys.exc_info())
    return [b"replaced"]


@route("/replace-too-late")
def replace_too_late(environ, start_response):
    start_response("200 OK", PLAIN)
    yield b"a part"
    try:
        raise KeyError("after the first part")
    except KeyError:
        start_response("500 Replaced", PLAIN, sys.exc_info())
    yield b"never"


@route("/never-started")
def never_started(environ, start_response):
    return [b"body"]


@route("/started-late")
def started_late(environ, start_response):
    start_response("202 Accepted", PLAIN)
    yield b"late"


@route("/empty")
def empty(environ, start_response):
    start_response("200 OK", PLAIN)
    return []


@route("/no-content")
def no_content(environ, start_response):
    start_response("204 No Content", [("Content-Length", "5")])
    return [b"hello"]


@route("/not-modified")
def not_modified(environ, start_response):
    start_response("304 Not Modified", [("ETag", '"a"')])
    return []


# --- the body ---


@route("/list")
def many(environ, start_response):
    start_response("200 OK", PLAIN)
    return [b"a", b"", b"b", b"c"]


@route("/slow-parts")
def slow_parts(environ, start_response):
    start_response("200 OK", PLAIN)
    yield b"first"
    record("first part")
    while not os.path.exists(os.environ["RECORD"] + ".go"):
        time.sleep(0.005)
    yield b""
    yield b"second"


@route("/write")
def write(environ, start_response):
    write = start_response("200 OK", PLAIN)
    write(b"written ")
    return [b"returned"]


@route("/write-then-wait")
def write_then_wait(environ, start_response):
    write = start_response("200 OK", PLAIN)
    write(b"written ")
    while not os.path.exists(os.environ["RECORD"] + ".go"):
        time.sleep(0.005)
    return [b"returned"]


@route("/str-part")
def str_part(environ, start_response):
    start_response("200 OK", PLAIN)
    return ["text"]


@route("/too-long")
def too_long(environ, start_response):
    start_response("200 OK", PLAIN + [("Content-Length", "5")])
    yield b"hel"
    yield b"lo and more"
    yield b"and more"


@route("/too-short")
def too_short(environ, start_response):
    start_response("200 OK", PLAIN + [("Content-Length", "10")])
    return Closing([b"hel", b"lo"])


@route("/raises")
def raises(environ, start_response):
    raise ValueError("at once")


@route("/raises-before")
def raises_before(environ, start_response):
    start_response("200 OK", PLAIN)

    def parts():
        raise ValueError("before the first part")
        yield b""

    return Closing(parts())


@route("/raises-after")
def raises_after(environ, start_response):
    start_response("200 OK", PLAIN)

    def parts():
        yield b"a part"
        raise ValueError("after the first part")

    return Closing(parts())


@route("/close")
def close(environ, start_response):
    start_response("200 OK", PLAIN)
    return Closing([b"a", b"b"])


@route("/close-raises")
def close_raises(environ, start_response):
    start_response("200 OK", PLAIN)
    return Closing([b"a", b"b"], at_close=ValueError("in close"))


@route("/endless")
def endless(environ, start_response):
    start_response("200 OK", PLAIN)

    def parts():
        while True:
            record("part")
            yield b"x" * 16384

    return Closing(parts())


@route("/endless-write")
def endless_write(environ, start_response):
    write = start_response("200 OK", PLAIN)
    try:
        while True:
            write(b"x" * 65536)
    except OSError as error:
        record("write failed", kind=type(error).__name__)
        raise


# --- files ---


@route("/file")
def file(environ, start_response):
    start_response("200 OK", PLAIN)
    return environ["wsgi.file_wrapper"](open(FILE.name, "rb"))


@route("/file-part")
def file_part(environ, start_response):
    start_response("200 OK", PLAIN + [("Content-Length", "100")])
    opened = open(FILE.name, "rb")
    opened.seek(1000)
    return environ["wsgi.file_wrapper"](opened, 16)


@route("/file-buffered")
def file_buffered(environ, start_response):
    """The descriptor of a file that was read by a buffer stands further than the file itself."""
    start_response("200 OK", PLAIN)
    opened = open(FILE.name, "rb")
    opened.read(10)
    return environ["wsgi.file_wrapper"](opened)


@route("/file-short")
def file_short(environ, start_response):
    start_response("200 OK", PLAIN + [("Content-Length", str(256 * 2000 + 1))])
    return environ["wsgi.file_wrapper"](open(FILE.name, "rb"))


class Watched(io.BytesIO):
    def close(self):
        record("file closed")
        super().close()


@route("/file-like")
def file_like(environ, start_response):
    start_response("200 OK", PLAIN)
    return environ["wsgi.file_wrapper"](Watched(b"0123456789" * 5), 16)


@route("/file-pipe")
def file_pipe(environ, start_response):
    reader, writer = os.pipe()
    os.write(writer, b"through a pipe")
    os.close(writer)
    start_response("200 OK", PLAIN)
    return environ["wsgi.file_wrapper"](os.fdopen(reader, "rb"))


# --- wsgi.input ---


def reads(path):
    def add(function):
        @route(path)
        def run(environ, start_response):
            seen = function(environ["wsgi.input"])
            start_response("200 OK", PLAIN)
            return [repr(seen).encode()]

        return run

    return add


reads("/read")(lambda body: body.read())
reads("/read-sizes")(lambda body: [body.read(size) for size in (0, 3, 4, -1, 5, None)])
reads("/readline")(lambda body: [body.readline(size) for size in (None, 2, 0, -1, 100)])
reads("/readlines")(lambda body: body.readlines())
reads("/readlines-hint")(lambda body: [body.readlines(3), body.read()])
reads("/iterate")(lambda body: list(body))
reads("/mixed")(lambda body: [body.readline(), body.read(1), body.readlines()])
reads("/unread")(lambda body: None)


@route("/echo")
def echo(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


@route("/read-when-told")
def read_when_told(environ, start_response):
    record("began")
    while not os.path.exists(os.environ["RECORD"] + ".go"):
        time.sleep(0.005)
    body = environ["wsgi.input"].read()
    start_response("200 OK", PLAIN)
    return [str(len(body)).encode()]


@route("/read-of-gone")
def read_of_gone(environ, start_response):
    record("began")
    try:
        environ["wsgi.input"].read()
    except OSError as error:
        record("read failed", kind=type(error).__name__)
        raise
    start_response("200 OK", PLAIN)
    return [b"whole"]


@route("/refuse")
def refuse(environ, start_response):
    start_response("403 Forbidden", PLAIN)
    return [b"no"]


@route("/context")
def context(environ, start_response):
    seen = VARIABLE.get("nothing")
    VARIABLE.set("something")
    start_response("200 OK", PLAIN)
    yield seen.encode()
    yield VARIABLE.get("lost").encode()


@route("/exit")
def exit(environ, start_response):
    sys.exit(3)

