"""The standard streams and the loggers of a worker, as apps for Uvicorn and Gunicorn expect them.

Owns: whole lines on stdout and stderr, the loggers `uvicorn…` and `gunicorn…`, and the records of requests that these
get. Refuses: to touch the root logger, and to write the log and the access log of oxicorn, which are Rust's.
"""

import base64
import io
import logging
import os
import sys
import time
import traceback
import urllib.parse

from . import _oxicorn

#: The most bytes of a line that stays in one piece. A longer line is written in several pieces.
LINE_MAX = 256 * 1024

#: The format of Gunicorn's access log, which is the message of its records. A Gunicorn configuration may have another.
access_format = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'

#: The numbers of oxicorn's levels in `logging`. Uvicorn has a level below DEBUG, too.
LEVELS = {"error": logging.ERROR, "warn": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG, "trace": 5}


def install(level):
    """Prepares the streams and the loggers, before the app is imported. `level` is the value of `log.level`."""
    _replace_streams()
    _prepare_loggers(LEVELS[level])


class _Pieces(io.FileIO):
    """A standard stream without a buffer. What it is given by one call stays in one piece, also in a pipe."""

    def __init__(self, number, shared):
        super().__init__(number, "w", closefd=False)
        self._shared = shared

    def write(self, data):
        return self._shared.write(data)


def _replace_streams():
    for name, number in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        if not isinstance(old, io.TextIOWrapper):
            # The stream was closed at the start, or `sitecustomize` has put its own there.
            continue
        try:
            old.flush()
            pieces = _Pieces(number, _oxicorn.SharedStream(number))
        except OSError:
            continue
        pieces.name = f"<{name}>"
        # A line is written when it is whole, even if PYTHONUNBUFFERED is set: otherwise print() writes the text and its
        # end separately, and the lines of several workers mix. The buffer is large so that it holds a whole line.
        buffer = io.BufferedWriter(pieces, LINE_MAX)
        stream = io.TextIOWrapper(buffer, old.encoding, old.errors, newline="\n", line_buffering=True)
        stream.mode = "w"
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


class UvicornFormatter(logging.Formatter):
    """Uvicorn's form of a line: `INFO:     text`."""

    def formatMessage(self, record):
        record.levelprefix = f"{record.levelname}:".ljust(9)
        return super().formatMessage(record)


class _OwnHandler(logging.StreamHandler):
    """A handler that oxicorn has attached, so that an app finds one, as it does under Uvicorn and Gunicorn."""

    def __init__(self, stream, formatter):
        super().__init__(stream)
        self.formatter = self.own_formatter = formatter

    def handle(self, record):
        # The log has an event for this record already.
        return False if hasattr(record, "oxicorn_event") else super().handle(record)


class _OwnAccessHandler(_OwnHandler):
    """Writes nothing until an app gives it another formatter, because oxicorn has its own access log."""

    @property
    def is_configured(self):
        return self.formatter is not self.own_formatter

    def setFormatter(self, formatter):
        super().setFormatter(formatter)
        look()

    def handle(self, record):
        return super().handle(record) if self.is_configured else False


class _AccessLogger(logging.Logger):
    """A logger for requests. It tells the worker of each change, because records cost time only if they are wanted."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        look()

    def addHandler(self, handler):
        super().addHandler(handler)
        look()

    def removeHandler(self, handler):
        super().removeHandler(handler)
        look()

    def setLevel(self, level):
        super().setLevel(level)
        look()

    def is_wanted(self):
        """Says whether a record would reach a handler that the app has configured."""
        if not self.isEnabledFor(logging.INFO):
            return False
        return self.propagate or any(getattr(handler, "is_configured", True) for handler in self.handlers)


_access_loggers = {}


def _prepare_loggers(level):
    text = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"
    gunicorn = logging.Formatter(text, "[%Y-%m-%d %H:%M:%S %z]")
    uvicorn = UvicornFormatter("%(levelprefix)s %(message)s")
    # `uvicorn.error` has no handler: its records go to that of `uvicorn`.
    for name, formatter in (("uvicorn", uvicorn), ("gunicorn.error", gunicorn)):
        _prepare(name, level, _OwnHandler(sys.stderr, formatter))
    for name in ("uvicorn.error", "uvicorn.asgi"):
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(level)
    plain = logging.Formatter("%(message)s")
    for name, formatter in (("uvicorn.access", uvicorn), ("gunicorn.access", plain)):
        logger = _prepare(name, logging.INFO, _OwnAccessHandler(sys.stdout, formatter))
        logger.__class__ = type("AccessLogger", (_AccessLogger, type(logger)), {})
        _access_loggers[name] = logger
    look()


def _prepare(name, level, handler):
    logger = logging.getLogger(name)
    # A logger that `sitecustomize` has configured stays as it is.
    if not logger.handlers and logger.level == logging.NOTSET:
        logger.setLevel(level)
        logger.propagate = False
        logger.addHandler(handler)
    return logger


def leave_gunicorn():
    """Leaves the loggers of Gunicorn to a class that writes their records itself, and returns them."""
    _access_loggers.pop("gunicorn.access", None)
    look()
    return [logging.getLogger(name) for name in ("gunicorn.error", "gunicorn.access")]


def look():
    """Looks whether the app wants records of requests, and tells the worker."""
    _oxicorn.want_access_records(any(logger.is_wanted() for logger in _access_loggers.values()))


def with_records(app):
    """Returns the app, with a record for each request. The worker calls it in place of the app while records are
    wanted."""

    async def recorded(scope, receive, send):
        if scope["type"] != "http":
            return await app(scope, receive, send)
        begun = time.perf_counter()
        status, headers, length, is_complete = 500, (), 0, False

        async def watched(message):
            nonlocal status, headers, length, is_complete
            await send(message)
            kind = message["type"]
            if kind == "http.response.start":
                status, headers = message["status"], message.get("headers", ())
            elif kind == "http.response.body":
                length += len(message.get("body", b""))
                is_complete = not message.get("more_body", False)
            elif kind == "http.response.pathsend":
                is_complete = True
            if is_complete:
                _record(scope, status, headers, length, time.perf_counter() - begun)

        try:
            await app(scope, receive, watched)
        except Exception:
            if not is_complete:
                _record(scope, status, headers, length, time.perf_counter() - begun)
            raise

    return recorded


class _WsgiRecords:
    """Makes a record for each request of a WSGI app."""

    def before(self, request):
        request.begun = time.perf_counter()

    def after(self, request, environ, response):
        scope = {
            "method": request.method,
            "path": environ["PATH_INFO"],
            "raw_path": request.path.encode("latin-1"),
            "query_string": request.query.encode("latin-1"),
            "http_version": environ["SERVER_PROTOCOL"].removeprefix("HTTP/"),
            "client": request.remote_addr if request.remote_addr[0] else None,
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in request.headers],
            "environ": environ,
        }
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
        _record(scope, response.status_code or 500, headers, response.sent, time.perf_counter() - request.begun)


def with_wsgi_records(app):
    """Returns the WSGI app, with a record for each request. A worker calls it as it calls that of `with_records`."""
    watched = None

    def recorded(environ, start_response):
        nonlocal watched
        if watched is None:
            # Most workers never come here.
            from ._compat.requests import watch_wsgi

            watched = watch_wsgi(app, _WsgiRecords())
        return watched(environ, start_response)

    return recorded


def _record(scope, status, headers, length, seconds):
    """Makes the records of a request, each with the arguments that its server gives."""
    logger = _access_loggers["uvicorn.access"]
    if logger.is_wanted():
        path = urllib.parse.quote(scope["path"])
        if query := scope["query_string"]:
            path = f"{path}?{query.decode('latin-1')}"
        client = "{}:{}".format(*scope["client"]) if scope.get("client") else ""
        logger.info('%s - "%s %s HTTP/%s" %d', client, scope["method"], path, scope["http_version"], status)
    logger = _access_loggers.get("gunicorn.access")
    if logger is not None and logger.is_wanted():
        logger.info(access_format, _Atoms(scope, status, headers, length, seconds))


class _Atoms(dict):
    """What Gunicorn's access log knows of a request, by the names of its format. An unknown name is `-`."""

    def __init__(self, scope, status, headers, length, seconds):
        query = scope["query_string"].decode("latin-1")
        raw = scope.get("raw_path")
        path = raw.decode("latin-1") if raw else urllib.parse.quote(scope["path"])
        protocol = f"HTTP/{scope['http_version']}"
        received = [(f"{{{name.decode('latin-1')}}}i", value.decode("latin-1")) for name, value in scope["headers"]]
        sent = [
            (f"{{{bytes(name).decode('latin-1').lower()}}}o", bytes(value).decode("latin-1")) for name, value in headers
        ]
        variables = [(f"{{{name.lower()}}}e", value) for name, value in scope.get("environ", {}).items()]
        super().__init__(received + sent + variables)
        micros = int(seconds * 1_000_000)
        self.update(
            h=(scope.get("client") or ("-",))[0] or "-",
            l="-",
            u=_user(self.get("{authorization}i", "")),
            t=time.strftime("[%d/%b/%Y:%H:%M:%S %z]"),
            r=f"{scope['method']} {path}{'?' + query if query else ''} {protocol}",
            s=str(status),
            m=scope["method"],
            U=scope["path"],
            q=query,
            H=protocol,
            b=str(length) if length else "-",
            B=length,
            f=self.get("{referer}i", "-"),
            a=self.get("{user-agent}i", "-"),
            T=micros // 1_000_000,
            D=micros,
            M=micros // 1_000,
            L=f"{micros / 1_000_000:.6f}",
            p=f"<{os.getpid()}>",
        )

    def __getitem__(self, name):
        value = self.get(name.lower() if name.startswith("{") else name, "-")
        return value.replace('"', '\\"') if isinstance(value, str) else value


def _user(authorization):
    """Returns the user of Basic authentication, or `-`."""
    scheme, _, encoded = authorization.strip().partition(" ")
    if scheme.lower() != "basic":
        return "-"
    try:
        return base64.b64decode(encoded).partition(b":")[0].decode() or "-"
    except ValueError:
        return "-"


def app_failed(error):
    """Returns the traceback of an exception that a request has raised, for the event of the log. Handlers that the app
    has attached get Uvicorn's record of it too. oxicorn's own handlers leave this record out."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    error = error.with_traceback(trace)
    logging.getLogger("uvicorn.error").error(
        "Exception in ASGI application\n", exc_info=error, extra={"oxicorn_event": "app_error"}
    )
    return "".join(traceback.format_exception(error))
