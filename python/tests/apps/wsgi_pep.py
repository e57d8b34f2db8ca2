"""A WSGI app with one route for each rule of PEP 3333 that the tests look at. It knows nothing of its server."""

import io
import json
import os
import sys
import tempfile
import time

from toolkit import record

ROUTES = {}


def route(function):
    ROUTES["/" + function.__name__.replace("_", "-")] = function
    return function


def application(environ, start_response):
    # A path below a route is that route's: `/environ/a/b`.
    name = "/" + environ["PATH_INFO"].removeprefix("/prefix").lstrip("/").partition("/")[0]
    if name not in ROUTES:
        name = "/environ"
    return ROUTES[name](environ, start_response)


def answer(start_response, value, status="200 OK", fields=()):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(data))), *fields])
    return [data]


class Closing:
    """An iterable that writes down each call of its `close()`."""

    def __init__(self, name, items):
        self.name = name
        self.items = iter(items)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.items)

    def close(self):
        record("closed", name=self.name)


# --- the environment ---

INPUT = ("read", "readline", "readlines", "__iter__")
ERRORS = ("write", "writelines", "flush")


def kind(value):
    return type(value).__name__


@route
def environ(environ, start_response):
    seen = {name: value for name, value in environ.items() if isinstance(value, str)}
    environ["left.behind"] = "yes"
    return answer(start_response, seen)


@route
def types(environ, start_response):
    kinds = {name: kind(value) for name, value in environ.items() if name.startswith("wsgi.")}
    others = sorted({kind(value) for name, value in environ.items() if "." not in name})
    return answer(
        start_response,
        {
            "environ": kind(environ),
            "version": list(environ["wsgi.version"]),
            "version_kind": kinds["wsgi.version"],
            "url_scheme": environ["wsgi.url_scheme"],
            "multithread": environ["wsgi.multithread"],
            "multiprocess": environ["wsgi.multiprocess"],
            "run_once": environ["wsgi.run_once"],
            "input_terminated": environ["wsgi.input_terminated"],
            "file_wrapper": callable(environ["wsgi.file_wrapper"]),
            "kinds_of_cgi_names": others,
            "names": sorted(environ),
            "input": [name for name in INPUT if hasattr(environ["wsgi.input"], name)],
            "errors": [name for name in ERRORS if hasattr(environ["wsgi.errors"], name)],
        },
    )


@route
def errors(environ, start_response):
    word = environ["QUERY_STRING"]
    environ["wsgi.errors"].write(f"{word} one\n")
    environ["wsgi.errors"].writelines([f"{word} two\n", f"{word} thr\u00e9e\n"])
    environ["wsgi.errors"].flush()
    print(f"{word} four", file=environ["wsgi.errors"])
    return answer(start_response, "written")


# --- the input ---


@route
def input(environ, start_response):
    """Does what the query says with the input, step by step, and answers what came of each."""
    source, results = environ["wsgi.input"], []
    for step in environ["QUERY_STRING"].split("&"):
        name, _, size = step.partition("=")
        try:
            if name == "lines":
                value = [line.decode("latin-1") for line in source]
            elif name == "next":
                value = next(iter(source)).decode("latin-1")
            elif name == "readlines":
                value = [line.decode("latin-1") for line in source.readlines(*([int(size)] if size else []))]
            elif name == "length":
                value, total = None, 0
                while piece := source.read(65536):
                    total += len(piece)
                value = total
            else:
                arguments = [None] if size == "None" else [int(size)] if size else []
                value = getattr(source, name)(*arguments).decode("latin-1")
        except Exception as error:
            value = f"raised {kind(error)}"
        results.append(value)
    return answer(start_response, results)


@route
def unread(environ, start_response):
    return answer(start_response, "unread")


@route
def read_and_record(environ, start_response):
    data = error = None
    record("reading")
    try:
        data = environ["wsgi.input"].read()
    except Exception as raised:
        error = kind(raised)
    record("read", length=None if data is None else len(data), error=error)
    return answer(start_response, "read")


# --- the answer ---


@route
def respond(environ, start_response):
    """Answers with the status and body of the query: `?204 No Content|body`."""
    status, _, body = environ["QUERY_STRING"].replace("%20", " ").replace("%C3%A8", "\u00e8").partition("|")
    start_response(status, [("Content-Type", "text/plain")])
    return [body.encode()]


@route
def respond_with_length(environ, start_response):
    status, _, body = environ["QUERY_STRING"].replace("%20", " ").partition("|")
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body.encode()]


@route
def list_of_one(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


@route
def list_of_two(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello ", b"world"]


@route
def list_of_none(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return []


@route
def generator(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"hello "
    yield b""
    yield b"world"


@route
def generator_with_length(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "11")])
    yield b"hello "
    yield b"world"


@route
def as_iterated(environ, start_response):
    """The second piece comes once the test has seen the first: the file of the query exists then."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"first"
    for _ in range(1000):
        if os.path.exists(environ["QUERY_STRING"]):
            break
        time.sleep(0.01)
    yield b"second"


@route
def too_long(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello", b" world"]


@route
def too_long_in_one(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello world"]


@route
def too_short(environ, start_response):
    start_response("200 OK", [("Content-Length", "10")])
    return [b"hello"]


@route
def late_start(environ, start_response):
    """The server must not need the status before it asks for the first piece."""
    start_response("200 OK", [("X-Late", "yes")])
    yield b"late"


@route
def start_after_empty_chunk(environ, start_response):
    yield b""
    start_response("200 OK", [("X-Late", "yes")])
    yield b"late"


@route
def start_never(environ, start_response):
    return [b"no status"]


@route
def start_twice(environ, start_response):
    start_response("200 OK", [("X-Which", "first")])
    start_response("202 Accepted", [("X-Which", "second")])
    return [b"twice"]


@route
def start_twice_with_exc_info(environ, start_response):
    start_response("200 OK", [("X-Which", "first")])
    try:
        raise ValueError("before the head")
    except ValueError:
        start_response("503 Not Now", [("X-Which", "second")], sys.exc_info())
    return [b"replaced"]


@route
def exc_info_after_the_head(environ, start_response):
    start_response("200 OK", [])
    yield b"sent"
    try:
        raise ValueError("after the head")
    except ValueError:
        try:
            start_response("500 Too Late", [], sys.exc_info())
        except ValueError:
            record("raised again")
            raise
    record("not raised")
    yield b"more"


@route
def write(environ, start_response):
    write = start_response("200 OK", [("X-By", "write")])
    write(b"one ")
    write(b"two ")
    return [b"three"]


@route
def write_with_length(environ, start_response):
    write = start_response("200 OK", [("Content-Length", "8")])
    write(b"one ")
    write(b"two ")
    return []


@route
def write_at_once(environ, start_response):
    """What `write()` gets is on its way before it returns."""
    write = start_response("200 OK", [])
    write(b"first")
    for _ in range(1000):
        if os.path.exists(environ["QUERY_STRING"]):
            break
        time.sleep(0.01)
    return [b"second"]


@route
def write_then_raise(environ, start_response):
    write = start_response("200 OK", [])
    write(b"one ")
    raise RuntimeError("after write")


@route
def text_chunk(environ, start_response):
    start_response("200 OK", [])
    return ["text"]


@route
def bytearray_chunk(environ, start_response):
    start_response("200 OK", [])
    return [bytearray(b"bytearray")]


@route
def plain_bytes(environ, start_response):
    """Bytes are an iterable of numbers, not of bytes."""
    start_response("200 OK", [])
    return b"abc"


@route
def returns_none(environ, start_response):
    start_response("200 OK", [])


@route
def headers(environ, start_response):
    """Sends the headers of the query, in JSON: a list of pairs."""
    fields = [tuple(pair) for pair in json.loads(environ["HTTP_X_FIELDS"])]
    start_response("200 OK", fields)
    return [b"headers"]


@route
def headers_in_tuple(environ, start_response):
    start_response("200 OK", (("X-Of", "tuple"),))
    return [b"headers"]


@route
def status_kind(environ, start_response):
    status = {"number": 200, "bytes": b"200 OK", "word": "fine", "code": "200", "long": "2000 OK"}
    start_response(status[environ["QUERY_STRING"]], [])
    return [b"status"]


# --- errors and ends ---


@route
def raise_at_once(environ, start_response):
    raise RuntimeError("a secret of the app")


@route
def raise_after_start(environ, start_response):
    start_response("200 OK", [("X-Sent", "no")])
    raise RuntimeError("after start_response")


@route
def raise_before_the_first_chunk(environ, start_response):
    def items():
        start_response("200 OK", [("X-Sent", "no")])
        raise RuntimeError("before the first chunk")
        yield

    return Closing(environ["QUERY_STRING"], items())


@route
def raise_after_the_first_chunk(environ, start_response):
    def items():
        start_response("200 OK", [])
        yield b"first"
        raise RuntimeError("after the first chunk")

    return Closing(environ["QUERY_STRING"], items())


@route
def raise_with_length(environ, start_response):
    start_response("200 OK", [("Content-Length", "10")])
    yield b"first"
    raise RuntimeError("within the length")


@route
def raise_in_close(environ, start_response):
    class Bad(Closing):
        def close(self):
            super().close()
            raise RuntimeError("in close")

    start_response("200 OK", [("Content-Length", "5")])
    return Bad(environ["QUERY_STRING"], [b"hello"])


@route
def exit(environ, start_response):
    raise SystemExit(7)


@route
def closing(environ, start_response):
    start_response("200 OK", [])
    return Closing(environ["QUERY_STRING"], [b"one", b"two"])


@route
def closing_nothing(environ, start_response):
    start_response("204 No Content", [])
    return Closing(environ["QUERY_STRING"], [])


@route
def closing_endless(environ, start_response):
    def items():
        while True:
            yield b"x" * 65536

    start_response("200 OK", [])
    return Closing(environ["QUERY_STRING"], items())


@route
def close_attribute_of_list(environ, start_response):
    class List(list):
        def close(self):
            record("closed", name=environ["QUERY_STRING"])

    start_response("200 OK", [])
    return List([b"list"])


# --- wsgi.file_wrapper ---


class Named(io.FileIO):
    def __init__(self, path, name):
        super().__init__(path)
        self.label = name

    def close(self):
        if not self.closed:
            record("closed", name=self.label)
        super().close()


def file_of(data):
    handle, path = tempfile.mkstemp()
    os.write(handle, data)
    os.close(handle)
    return path


@route
def file(environ, start_response):
    """Sends 0..9 repeated, from `offset` on; `length` is the Content-Length, `kind` the sort of file."""
    options = dict(part.split("=") for part in environ["QUERY_STRING"].split("&") if "=" in part)
    data = b"0123456789" * int(options.get("times", "1"))
    path = file_of(data)
    kind = options.get("kind", "file")
    if kind == "file":
        source = open(path, "rb")
    elif kind == "raw":
        source = Named(path, options["name"])
    elif kind == "memory":
        source = io.BytesIO(data)
    elif kind == "reader":
        source = Reader(data, options.get("name", ""))
    elif kind == "text":
        source = open(path)
    os.unlink(path)
    if "offset" in options:
        source.seek(int(options["offset"]))
    if "readfirst" in options:
        source.read(int(options["readfirst"]))
    fields = [("Content-Length", options["length"])] if "length" in options else []
    start_response(options.get("status", "200 OK").replace("%20", " "), fields)
    wrapper = environ["wsgi.file_wrapper"]
    wrapped = wrapper(source, int(options["block"])) if "block" in options else wrapper(source)
    if "iterate" in options:
        return [b"|".join(wrapped)]
    return wrapped


class Reader:
    """A file that has `read()` and `close()`, and nothing else."""

    def __init__(self, data, name):
        self.source = io.BytesIO(data)
        self.name = name
        self.sizes = []

    def read(self, size):
        self.sizes.append(size)
        return self.source.read(size)

    def close(self):
        record("closed", name=self.name, size=self.sizes[0] if self.sizes else None)
