"""`pre_request` and `post_request`: the app with a call before and after each of its requests.

Owns: `req` and `resp`, made from an ASGI scope or a WSGI environ. Refuses: the access log, unless a class of the
configuration writes it.
"""

import datetime
import time


class Request:
    """A request, by Gunicorn's names. What a hook changes in `scheme` and `headers` reaches the app."""

    body = None
    proxy_protocol_info = None
    must_close = False

    def __init__(self, method, uri, path, query, version, scheme, client, headers):
        self.method, self.uri, self.path, self.query = method, uri, path, query
        self.version, self.scheme, self.remote_addr, self.headers = version, scheme, client, headers
        self.peer_addr, self.fragment, self.trailers = client, "", []
        self._before = scheme, list(headers)

    def changed(self):
        """Returns the scheme and the headers, each if a hook has changed it, or else None."""
        scheme, headers = self._before
        return (
            self.scheme if self.scheme != scheme else None,
            self.headers if self.headers != headers else None,
        )


class Response:
    """A response, by Gunicorn's names. `status` is None if there was none."""

    status = status_code = response_length = None
    headers_sent = False
    sent = 0

    def __init__(self):
        self.headers = []


class _Hooks:
    """The two hooks of a request, and the access log if a class of the configuration writes it."""

    def __init__(self, worker, hooks, access):
        self.worker, self.pre, self.post = worker, hooks.get("pre_request"), hooks.get("post_request")
        self.access = access

    def before(self, request):
        self.worker.nr += 1
        request.begun = time.monotonic()
        if self.pre is not None:
            self.pre(self.worker, request)

    def after(self, request, environ, response):
        if self.access is not None and response.status is not None:
            took = datetime.timedelta(seconds=time.monotonic() - request.begun)
            self.access(response, request, environ, took)
        if self.post is None:
            return
        try:
            self.post(self.worker, request, environ, response)
        except Exception:
            self.worker.log.exception("Exception in post_request hook")


def wrap_asgi(app, worker, hooks, access=None):
    """Returns the ASGI app with the hooks. They see the requests of HTTP, and no web sockets, as with Gunicorn.
    `access` writes the line of a request, if a class of the configuration does that."""
    hooks = _Hooks(worker, hooks, access)

    async def hooked(scope, receive, send):
        if scope["type"] != "http":
            return await app(scope, receive, send)
        request, response = _request_of_scope(scope), Response()

        async def watched(message):
            await send(message)
            kind = message["type"]
            if kind == "http.response.start":
                response.status = response.status_code = message["status"]
                response.headers = [_texts(header) for header in message.get("headers", ())]
                response.headers_sent = True
            elif kind == "http.response.body":
                response.sent += len(message.get("body", b""))

        try:
            hooks.before(request)
            _change_scope(scope, request)
            await app(scope, receive, watched)
        finally:
            hooks.after(request, _environ_of_scope(scope, request), response)

    return hooked


def _texts(header):
    name, value = header
    return bytes(name).decode("latin-1"), bytes(value).decode("latin-1")


def _request_of_scope(scope):
    query = scope["query_string"].decode("latin-1")
    raw_path = scope.get("raw_path") or scope["path"].encode()
    headers = [(name.upper(), value) for name, value in map(_texts, scope["headers"])]
    version = tuple(int(part) for part in f"{scope['http_version']}.0".split(".")[:2])
    uri, client = raw_path.decode("latin-1"), tuple(scope.get("client") or ("", 0))
    uri = f"{uri}?{query}" if query else uri
    request = Request(scope["method"], uri, scope["path"], query, version, scope["scheme"], client, headers)
    # Gunicorn decodes the path of an ASGI request, and not that of a WSGI request.
    request.raw_path = raw_path
    return request


def _change_scope(scope, request):
    scheme, headers = request.changed()
    if scheme is not None:
        scope["scheme"] = scheme
    if headers is not None:
        scope["headers"] = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def _environ_of_scope(scope, request):
    host, port = scope.get("server") or ("", None)
    environ = {
        "REQUEST_METHOD": request.method,
        "RAW_URI": request.uri,
        "SCRIPT_NAME": scope.get("root_path", ""),
        "PATH_INFO": scope["path"],
        "QUERY_STRING": request.query,
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "SERVER_NAME": host,
        "SERVER_PORT": "" if port is None else str(port),
        "REMOTE_ADDR": request.remote_addr[0],
        "REMOTE_PORT": str(request.remote_addr[1]),
        "wsgi.url_scheme": request.scheme,
    }
    for name, value in request.headers:
        name = _variable(name)
        environ[name] = f"{environ[name]},{value}" if name in environ else value
    return environ


def _variable(name):
    """Returns the name that a header has in an environ."""
    name = name.upper().replace("-", "_")
    return name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"


def wrap_wsgi(app, worker, hooks, access=None):
    """Returns the WSGI app with the hooks. post_request runs when the server has sent the response."""
    return watch_wsgi(app, _Hooks(worker, hooks, access))


def watch_wsgi(app, hooks):
    """Returns the WSGI app with calls of `hooks.before` and `hooks.after`."""

    def hooked(environ, start_response):
        request, response = _request_of_environ(environ), _Started(start_response)
        ended = lambda: hooks.after(request, environ, response)
        try:
            hooks.before(request)
            _change_environ(environ, request)
            items = app(environ, response.start)
            response.returned(items, environ["REQUEST_METHOD"])
        except BaseException:
            ended()
            raise
        if type(items) is environ.get("wsgi.file_wrapper"):
            return _file(items, response, ended)
        return _Body(items, response, ended)

    return hooked


class _Started(Response):
    """A response that the app starts. The server hears of it when the app has returned or written: then the length of
    a list is known, which the server does not see behind `_Body`."""

    def __init__(self, start_response):
        super().__init__()
        self._start_response, self._has_returned = start_response, False
        self._write = self._exc_info = None

    def start(self, status, headers, exc_info=None):
        if self.status is not None and exc_info is None:
            raise AssertionError("start_response() was called before")
        self.status, self.headers, self._exc_info = status, list(headers), exc_info
        self.status_code = int(status[:3])
        if self._has_returned or self._write is not None:
            self._tell()
        return self.write

    def _tell(self):
        exc_info, self._exc_info = self._exc_info, None
        self._write = self._start_response(self.status, self.headers, *([exc_info] if exc_info else []))

    def write(self, data):
        if self._write is None:
            self._tell()
        self._write(data)
        self.headers_sent = True
        self.sent += len(data)

    def returned(self, items, method):
        self._has_returned = True
        if self.status is None or self._write is not None:
            return
        has_length = any(name.lower() == "content-length" for name, _ in self.headers)
        has_body = method != "HEAD" and self.status_code not in (204, 304)
        if type(items) in (list, tuple) and has_body and not has_length:
            self.headers.append(("Content-Length", str(sum(map(len, items)))))
        self._tell()


def _file(items, response, ended):
    """Returns the file as it is, because the server sends it without Python."""
    close = getattr(items, "close", None)
    response.headers_sent = True
    lengths = [value for name, value in response.headers if name.lower() == "content-length"]
    response.sent = int(lengths[0]) if lengths else 0

    def closed():
        try:
            if close is not None:
                close()
        finally:
            ended()

    items.close = closed
    return items


class _Body:
    """The body of a response, which knows its end."""

    def __init__(self, items, response, ended):
        self._items, self._response, self._ended = items, response, ended

    def __iter__(self):
        for item in self._items:
            self._response.headers_sent = True
            self._response.sent += len(item)
            yield item

    def close(self):
        try:
            if hasattr(self._items, "close"):
                self._items.close()
        finally:
            self._ended()


def _request_of_environ(environ):
    headers = []
    for name, value in environ.items():
        if name.startswith("HTTP_"):
            headers.append((name[5:].replace("_", "-"), value))
        elif name in ("CONTENT_TYPE", "CONTENT_LENGTH") and value:
            headers.append((name.replace("_", "-"), value))
    query = environ.get("QUERY_STRING", "")
    uri = environ.get("RAW_URI") or environ["PATH_INFO"] + (f"?{query}" if query else "")
    path = uri.partition("?")[0]
    version = tuple(int(part) for part in f"{environ['SERVER_PROTOCOL'].removeprefix('HTTP/')}.0".split(".")[:2])
    client = environ.get("REMOTE_ADDR", ""), int(environ.get("REMOTE_PORT") or 0)
    scheme = environ["wsgi.url_scheme"]
    return Request(environ["REQUEST_METHOD"], uri, path, query, version, scheme, client, headers)


def _change_environ(environ, request):
    scheme, headers = request.changed()
    if scheme is not None:
        environ["wsgi.url_scheme"] = scheme
    if headers is not None:
        for name, _ in request._before[1]:
            environ.pop(_variable(name), None)
        environ.update((_variable(name), value) for name, value in headers)
