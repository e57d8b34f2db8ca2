"""Every option of Uvicorn 0.54.0, and what it is here.

Owns: names, flags, kinds and defaults of the options, their translation, and the sentence for the documentation and
the log. Refuses: to read a command line (`commandline`).
"""

import os

from .collected import Option, by_commas, certificate, shown, whole

VERSION = "0.54.0"

_RELOAD = "has no effect yet: after a change, run `oxicorn reload`"
_TLS = "the TLS library has only TLS 1.2 and 1.3, with ciphers that are safe"

# The columns are those of `gunicorn`. A flag such as `--access-log --no-access-log` has a form for off. The variable of
# an option is UVICORN_ and its name.
_TABLE = (
    ("app", "", "text", None, "same", "python.app", "also `path/to/main.py`"),
    ("host", "--host", "text", "127.0.0.1", "same", "server.bind", ""),
    (
        "port", "--port", "int", 8000, "same", "server.bind",
        "`PORT` in the environment counts without `--host` and `--port`",
    ),
    (
        "uds", "--uds", "text", None, "same", "server.bind",
        "every user may connect, unless `server.unix_mode` says less",
    ),
    ("fd", "--fd", "int", None, "same", "server.bind", "`fd://N`"),
    ("reload", "--reload", "bool", False, "instead", "", _RELOAD),
    ("reload_dirs", "--reload-dir", "list", None, "instead", "", _RELOAD),
    ("reload_includes", "--reload-include", "list", None, "instead", "", _RELOAD),
    ("reload_excludes", "--reload-exclude", "list", None, "instead", "", _RELOAD),
    ("reload_delay", "--reload-delay", "float", 0.25, "instead", "", _RELOAD),
    (
        "workers", "--workers", "count", None, "same", "workers.count",
        'also `"auto"`, the CPUs that the process may use; 1 without it, if the command is Uvicorn\'s',
    ),
    (
        "loop", "--loop", "text", "auto", "instead", "python.loop",
        "the event loop is asyncio on tokio, whatever is installed",
    ),
    ("http", "--http", "text", "auto", "unneeded", "", "there is one parser"),
    ("http2", "--http2", "bool", False, "same", "http.http2", "on without it; `--http zttp` is not needed"),
    (
        "ws", "--ws", "text", "auto", "unneeded", "",
        "web sockets need no library; `none` is told, because it has no effect",
    ),
    ("ws_max_size", "--ws-max-size", "int", 16777216, "same", "python.ws_max_size", ""),
    (
        "ws_max_queue", "--ws-max-queue", "int", 32, "unneeded", "",
        "the queue holds 64 KiB, however many messages that are",
    ),
    ("ws_ping_interval", "--ws-ping-interval", "float", 20.0, "same", "python.ws_ping_interval", ""),
    ("ws_ping_timeout", "--ws-ping-timeout", "float", 20.0, "same", "python.ws_ping_timeout", ""),
    ("ws_per_message_deflate", "--ws-per-message-deflate", "truth", True, "same", "python.ws_per_message_deflate", ""),
    ("lifespan", "--lifespan", "text", "auto", "same", "python.lifespan", ""),
    (
        "interface", "--interface", "text", "auto", "same", "python.interface",
        "`asgi2` is refused; `wsgi` has 10 threads",
    ),
    ("env_file", "--env-file", "text", None, "same", "process.env_file", ""),
    (
        "log_config", "--log-config", "text", None, "differs", "",
        "is applied in each worker, to the app's loggers; oxicorn's own log is `log.*`",
    ),
    ("log_level", "--log-level", "text", None, "same", "log.level", "`critical` is `error`"),
    (
        "access_log", "--access-log --no-access-log", "pair", True, "same", "log.access",
        "on without it, if the command is Uvicorn's; the lines are those of `log.access_format`",
    ),
    ("use_colors", "--use-colors --no-use-colors", "pair", None, "unneeded", "", "the log has no colours"),
    (
        "proxy_headers", "--proxy-headers --no-proxy-headers", "pair", True, "same", "http.forwarded_allow_ips",
        "off is an empty list",
    ),
    ("server_header", "--server-header --no-server-header", "pair", True, "unneeded", "", "no Server header is sent"),
    (
        "date_header", "--date-header --no-date-header", "pair", True, "instead", "",
        "a Date header is always sent, as RFC 9110 asks",
    ),
    (
        "forwarded_allow_ips", "--forwarded-allow-ips", "commas", None, "same", "http.forwarded_allow_ips",
        "addresses, networks and `*`; a peer on a unix socket is always trusted",
    ),
    ("root_path", "--root-path", "text", "", "same", "python.root_path", ""),
    (
        "limit_concurrency", "--limit-concurrency", "int", None, "differs", "http.limit_concurrency",
        "counts the requests of one worker, and not its connections; 503 with `Retry-After`, except for "
        "`http.limit_exempt`",
    ),
    ("backlog", "--backlog", "int", 2048, "same", "server.backlog", ""),
    (
        "limit_max_requests", "--limit-max-requests", "int", None, "same", "workers.max_requests",
        "the replacement serves before the old worker drains",
    ),
    ("limit_max_requests_jitter", "--limit-max-requests-jitter", "int", 0, "same", "workers.max_requests_jitter", ""),
    ("timeout_keep_alive", "--timeout-keep-alive", "int", 5, "same", "http.keep_alive", "75 seconds without it"),
    (
        "timeout_graceful_shutdown", "--timeout-graceful-shutdown", "int", None, "same", "workers.graceful_timeout",
        "30 seconds without it; 0 becomes 1 second",
    ),
    (
        "timeout_worker_healthcheck", "--timeout-worker-healthcheck", "int", 5, "same", "workers.timeout",
        "30 seconds without it",
    ),
    ("ssl_keyfile", "--ssl-keyfile", "text", None, "same", "tls.keyfile", ""),
    ("ssl_certfile", "--ssl-certfile", "text", None, "same", "tls.certfile", "re-read at a reload"),
    (
        "ssl_keyfile_password", "--ssl-keyfile-password", "text", None, "refused", "",
        "an encrypted key cannot be read: decrypt it, and protect the file; the master reads it, the workers need not",
    ),
    ("ssl_version", "--ssl-version", "int", 17, "instead", "", _TLS),
    (
        "ssl_cert_reqs", "--ssl-cert-reqs", "int", 0, "same", "tls.client_ca",
        "2 with `--ssl-ca-certs` asks every client for a certificate; 1 is refused, because a certificate cannot be "
        "optional",
    ),
    (
        "ssl_ca_certs", "--ssl-ca-certs", "text", None, "same", "tls.client_ca",
        "with `--ssl-cert-reqs 2`, and else without effect",
    ),
    ("ssl_ciphers", "--ssl-ciphers", "text", None, "instead", "", _TLS),
    (
        "headers", "--header", "list", None, "instead", "",
        "no header is added: let a middleware of the app or the proxy add it",
    ),
    ("version", "--version", "bool", False, "same", "`oxicorn --version`", "prints oxicorn's version"),
    ("app_dir", "--app-dir", "text", "", "same", "python.pythonpath", ""),
    (
        "h11_max_incomplete_event_size", "--h11-max-incomplete-event-size", "int", None, "unneeded", "",
        "`http.limit_request_line`, `limit_request_fields` and `limit_request_field_size` are the limits",
    ),
    (
        "reset_contextvars", "--reset-contextvars", "bool", False, "unneeded", "",
        "each request has a copy of the context of the worker, so that nothing leaks into the next one",
    ),
    ("factory", "--factory", "bool", False, "same", "python.app", "`APP:factory()`"),
)  # fmt: skip

OPTIONS = {row[0]: Option(*row) for row in _TABLE}

#: The kinds of values that a flag has without a word of its own.
SWITCHES = ("bool", "pair")

#: The options that mean several things together, or something for the app's name.
_TOGETHER = (
    "app", "host", "port", "uds", "fd", "version", "app_dir", "factory", "proxy_headers", "forwarded_allow_ips",
    "ssl_cert_reqs", "ssl_ca_certs",
)  # fmt: skip

_CHOICES = {
    "lifespan": ("auto", "on", "off"),
    "interface": ("auto", "asgi3", "asgi2", "wsgi"),
    "log_level": ("critical", "error", "warning", "info", "debug", "trace"),
}

#: The choices of Uvicorn's own; any other value names code that would have to be called.
_NAMES = {
    "loop": ("auto", "asyncio", "uvloop", "zuvloop", "none"),
    "http": ("auto", "h11", "httptools", "zttp"),
    "ws": ("auto", "none", "websockets", "websockets-sansio", "wsproto"),
}

#: The threads in which Uvicorn runs a WSGI app.
WSGI_THREADS = 10

_TRUE = ("1", "true", "t", "yes", "y", "on")
_FALSE = ("0", "false", "f", "no", "n", "off")


def read_value(option, value):
    """Returns the value of an option as Uvicorn understands it. Raises ValueError with a sentence."""
    if option.kind == "count":
        formula = value == "auto" or (value[-1:].isdigit() and "n" in value)
        return value if formula else whole(value)
    if option.kind == "int":
        return whole(value)
    if option.kind == "float":
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{shown(value)} is not a number") from None
    if option.kind in ("bool", "pair", "truth"):
        if value in (True, False):
            return bool(value)
        text = value.strip().lower()
        if text not in _TRUE + _FALSE:
            raise ValueError(f"{shown(value)} is neither true nor false")
        return text in _TRUE
    if option.kind == "list":
        return value.split() if isinstance(value, str) else list(value)
    if option.kind == "commas":
        return by_commas(value)
    if option.name in _CHOICES:
        value = value.strip().lower()
        if value not in _CHOICES[option.name]:
            raise ValueError(f"{shown(value)} is none of {', '.join(_CHOICES[option.name])}")
    return value


def translate(given, collected):
    """Turns one option into settings, notes and problems. `given.value` comes from `read_value`."""
    name, value, key = given.option.name, given.value, given.option.key
    if name in _TOGETHER or value is None:
        return
    put = lambda value: collected.put(key, value, given.origin, given.strength)
    if name in _NAMES:
        _implementation(given, collected)
    elif name == "interface":
        _interface(given, collected)
    elif name == "access_log":
        put("-" if value else "off")
    elif name == "timeout_keep_alive":
        put(value or "1ms")
    elif name == "timeout_graceful_shutdown":
        put(value or "1s")
    elif name in ("use_colors", "server_header"):
        # Without colours and without the header is what oxicorn does.
        if value:
            collected.tell(given)
    else:
        if "." in key and given.option.how in ("same", "differs"):
            put(value)
        if value != given.option.default:
            collected.tell(given)


def _implementation(given, collected):
    name, value = given.option.name, given.value
    if value not in _NAMES[name]:
        what = {"loop": "an event loop", "http": "an HTTP protocol", "ws": "a web socket protocol"}[name]
        collected.problem(given.typed, f"{what} of your own cannot be used: leave the flag out")
    elif name == "ws" and value == "none":
        collected.note(given.typed, "warn", "web sockets are not switched off: the app still gets them")
    elif value not in ("auto", "asyncio", "none"):
        collected.tell(given)


def _interface(given, collected):
    if given.value == "asgi2":
        text = "ASGI 2 is not spoken: wrap the app with asgiref.compatibility.guarantee_single_callable"
        collected.problem(given.typed, text)
        return
    collected.put("python.interface", given.value.removesuffix("3"), given.origin, given.strength)
    if given.value == "wsgi":
        collected.put("python.threads", WSGI_THREADS, given.origin, given.strength)


def combine(everything, collected, defaults, counted):
    """Translates what several options mean together. `everything` maps their names to what was given.

    `defaults` says whether the command is Uvicorn's, so that its defaults count, and `counted` whether a variable says
    how many workers there are."""
    _bind(everything, collected)
    _trusted(everything, collected)
    certificate(everything, ("ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_ca_certs"), collected, str)
    if defaults and not collected.own_file:
        if not collected.has("workers.count") and not counted:
            collected.put("workers.count", 1, "Uvicorn's default", collected.derived)
        if not collected.has("log.access"):
            collected.put("log.access", "-", "Uvicorn's default", collected.derived)


def _bind(everything, collected):
    given = [everything[name] for name in ("fd", "uds", "host", "port") if name in everything]
    if not given:
        return
    first = given[0]
    if first.option.name == "fd":
        address = f"fd://{first.value}"
    elif first.option.name == "uds":
        address = f"unix:{first.value}"
        if not collected.own_file:
            collected.put("server.unix_mode", "0666", first.origin, collected.derived)
    else:
        host, port = (everything[name].value if name in everything else None for name in ("host", "port"))
        host = "127.0.0.1" if host is None else host
        port = 8000 if port is None else port
        address = f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
    strength = "flag" if any(entry.strength == "flag" for entry in given) else first.strength
    collected.put("server.bind", [address], first.origin, strength)


def _trusted(everything, collected):
    switch, peers = everything.get("proxy_headers"), everything.get("forwarded_allow_ips")
    if switch and not switch.value:
        collected.put("http.forwarded_allow_ips", [], switch.origin, switch.strength)
    elif peers:
        # Uvicorn takes the path of a unix socket too; a peer on one is always trusted here.
        addresses = [peer for peer in peers.value if not peer.startswith(("/", "unix:"))]
        collected.put("http.forwarded_allow_ips", addresses, peers.origin, peers.strength)


def app_of(name, everything, collected):
    """Returns the app's name as oxicorn has it, with what `--factory` and `--app-dir` say about it."""
    factory, folder = everything.get("factory"), everything.get("app_dir")
    if factory and factory.value and not name.endswith(")"):
        if ":" in name:
            name += "()"
        else:
            collected.problem(factory.typed, f"{name} names no factory: write {name}:create_app, or as yours is called")
    if folder and folder.value:
        here = name.partition(":")[0]
        if _hides(here.partition(".")[0], folder.value) and (file := _file_of(here, folder.value)):
            # A module of this name in the present folder would be imported instead.
            return file + name[len(here) :]
        collected.put("python.pythonpath", [folder.value], folder.origin, folder.strength)
    return name


def _hides(package, folder):
    """Says whether the present folder and `folder` both have a module of this name."""
    found = lambda path: os.path.isdir(path) or os.path.isfile(path + ".py")
    return found(package) and found(os.path.join(folder, package)) and not os.path.samefile(folder, ".")


def _file_of(module, folder):
    path = os.path.join(folder, *module.split("."))
    return next((file for file in (path + ".py", os.path.join(path, "__init__.py")) if os.path.isfile(file)), None)
