"""Every setting of Gunicorn 27.0.1, and what it is here.

Owns: names, flags, kinds and defaults of the settings, their translation, and the sentence for the documentation and
the log. Refuses: to read a command line (`commandline`) or a file (`configuration`).
"""

import os

from .collected import Given, Option, boolean, by_commas, certificate, octal, shown, string, strings, whole

VERSION = "27.0.1"

_LATER = "has no effect yet: each worker imports the app for itself"
_RELOAD = "has no effect yet: after a change, run `oxicorn reload`"
_SYSLOG = "there is no syslog: the log goes to stderr, which the journal and containers take, or to `log.file`"
_STATSD = "there is no statsd: `http.metrics_path` and `oxicorn status --format openmetrics` have the figures"
_DIRTY = "there is no second pool of processes for long tasks: use a task queue, or a second service"
_NO_DIRTY = "belongs to `dirty_apps`, which are refused"
_TLS = "the TLS library has only TLS 1.2 and 1.3, with ciphers that are safe"
_FIXED = "is fixed"
_STRICT = "such a request is always refused with 400"
_LOG_CONFIG = "is applied in each worker, to the app's loggers; oxicorn's own log is `log.*`"
_HOOK = "is called as in Gunicorn"
_IN_HELPER = (
    "is called in a process beside the master: what it puts into `os.environ` reaches the workers that are forked "
    "later, and other globals do not, which is told"
)

# The columns: name, flags, kind, default, how, keys of oxicorn, sentence. `how` is one of
#   same      it means the same
#   differs   it is applied with another meaning, which the sentence says
#   instead   it is not applied; the sentence says what happens instead
#   unneeded  it is not applied, and nothing is lost
#   refused   the start ends with exit code 2, and the sentence says why
_TABLE = (
    ("config", "-c --config", "text", "./gunicorn.conf.py", "same", "-c", "a path, `file:PATH` or `python:MODULE`"),
    ("wsgi_app", "", "text", None, "same", "python.app", ""),
    ("bind", "-b --bind", "list", ["127.0.0.1:8000"], "same", "server.bind", "`PORT` counts if no address is given"),
    ("backlog", "--backlog", "int", 2048, "same", "server.backlog", ""),
    (
        "workers", "-w --workers", "count", 1, "same", "workers.count",
        'also `"auto"`, the CPUs that the process may use; 1 without it, if the command or the file is Gunicorn\'s',
    ),
    (
        "worker_class", "-k --worker-class", "class", "sync", "same", "python.interface",
        "`asgi` and Uvicorn's workers serve ASGI on an event loop, `sync` and `gthread` WSGI on threads; `gevent`, "
        "`eventlet` and `tornado` are 32 threads, which is told; any other class is refused",
    ),
    ("threads", "--threads", "int", 1, "same", "python.threads", "the threads of a WSGI worker"),
    (
        "worker_connections", "--worker-connections", "int", 1000, "differs", "http.worker_connections",
        "holds for every worker: at the limit a new connection takes the place of an idle one, else it waits",
    ),
    (
        "max_requests", "--max-requests", "int", 0, "same", "workers.max_requests",
        "the replacement serves before the old worker drains",
    ),
    ("max_requests_jitter", "--max-requests-jitter", "int", 0, "same", "workers.max_requests_jitter", ""),
    (
        "timeout", "-t --timeout", "int", 30, "differs", "workers.timeout",
        "ends a worker whose event loop, or each of whose WSGI threads, has been stuck for so long; for requests that "
        "only take long there is `http.request_timeout`",
    ),
    (
        "graceful_timeout", "--graceful-timeout", "int", 30, "same", "workers.graceful_timeout",
        "0 becomes 1 second",
    ),
    ("keepalive", "--keep-alive", "int", 2, "same", "http.keep_alive", "75 seconds without it"),
    (
        "limit_request_line", "--limit-request-line", "int", 4094, "same", "http.limit_request_line",
        "8190 without it",
    ),
    ("limit_request_fields", "--limit-request-fields", "int", 100, "same", "http.limit_request_fields", ""),
    (
        "limit_request_field_size", "--limit-request-field_size", "int", 8190, "same",
        "http.limit_request_field_size", "",
    ),
    ("reload", "--reload", "bool", False, "instead", "", _RELOAD),
    ("reload_engine", "--reload-engine", "text", "auto", "instead", "", _RELOAD),
    ("reload_extra_files", "--reload-extra-file", "list", [], "instead", "", _RELOAD),
    (
        "spew", "--spew", "bool", False, "instead", "",
        'Python is not traced; `log.level = "trace"` shows what oxicorn does',
    ),
    (
        "check_config", "--check-config", "bool", False, "same", "`oxicorn check`",
        "exits with 0 or 2",
    ),
    ("print_config", "--print-config", "bool", False, "same", "`oxicorn config`", "prints oxicorn's settings"),
    ("preload_app", "--preload", "bool", False, "instead", "", _LATER),
    ("sendfile", "--no-sendfile", "off", None, "unneeded", "", "how a file is sent is not a setting"),
    (
        "reuse_port", "--reuse-port", "bool", False, "same", "server.reuse_port",
        "on without it; the master owns the sockets, so that a worker that ends loses no connection",
    ),
    ("chdir", "--chdir", "text", ".", "same", "python.chdir", ""),
    (
        "daemon", "-D --daemon", "bool", False, "refused", "",
        "oxicorn stays in the foreground: start it from systemd or a container, or write `setsid -f oxicorn …`",
    ),
    ("raw_env", "-e --env", "list", [], "same", "python.raw_env", ""),
    ("pidfile", "-p --pid", "text", None, "same", "process.pidfile", ""),
    (
        "worker_tmp_dir", "--worker-tmp-dir", "text", None, "unneeded", "",
        "the heartbeat is in shared memory, and no file",
    ),
    ("user", "-u --user", "user", None, "same", "process.user", ""),
    ("group", "-g --group", "user", None, "same", "process.group", ""),
    (
        "umask", "-m --umask", "octal", 0, "same", "server.unix_mode",
        "of the files of unix sockets; in a command that has only flags of oxicorn's, `-m` is `process.umask`",
    ),
    ("initgroups", "--initgroups", "bool", False, "unneeded", "", "is always done with `process.user`"),
    ("tmp_upload_dir", "", "text", None, "unneeded", "", "is not used in Gunicorn either"),
    (
        "secure_scheme_headers", "", "dict",
        {"X-FORWARDED-PROTOCOL": "ssl", "X-FORWARDED-PROTO": "https", "X-FORWARDED-SSL": "on"}, "instead", "",
        "the scheme comes from `X-Forwarded-Proto` and `Forwarded` of trusted peers, and from no other header",
    ),
    (
        "forwarded_allow_ips", "--forwarded-allow-ips", "commas", ["127.0.0.1", "::1"], "same",
        "http.forwarded_allow_ips", "",
    ),
    ("accesslog", "--access-logfile", "text", None, "same", "log.access", ""),
    (
        "disable_redirect_access_to_syslog", "--disable-redirect-access-to-syslog", "bool", False, "unneeded", "",
        _SYSLOG,
    ),
    (
        "access_log_format", "--access-logformat", "text",
        '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"', "same", "log.access_format", "",
    ),
    ("errorlog", "--error-logfile --log-file", "text", "-", "same", "log.file", ""),
    ("loglevel", "--log-level", "text", "info", "same", "log.level", "`critical` is `error`"),
    (
        "capture_output", "--capture-output", "bool", False, "instead", "",
        "what the app prints stays on stdout and stderr, which the journal and containers take",
    ),
    (
        "logger_class", "--logger-class", "class", "gunicorn.glogging.Logger", "differs", "log.access",
        "writes the access log and what hooks say to `log`, for which it needs Gunicorn; oxicorn's own log is `log.*`",
    ),
    ("logconfig", "--log-config", "text", None, "differs", "", _LOG_CONFIG),
    ("logconfig_dict", "", "dict", {}, "differs", "", _LOG_CONFIG),
    ("logconfig_json", "--log-config-json", "text", None, "differs", "", _LOG_CONFIG),
    ("syslog_addr", "--log-syslog-to", "text", "udp://localhost:514", "instead", "", _SYSLOG),
    ("syslog", "--log-syslog", "bool", False, "instead", "", _SYSLOG),
    ("syslog_prefix", "--log-syslog-prefix", "text", None, "instead", "", _SYSLOG),
    ("syslog_facility", "--log-syslog-facility", "text", "user", "instead", "", _SYSLOG),
    (
        "enable_stdio_inheritance", "-R --enable-stdio-inheritance", "bool", False, "unneeded", "",
        "stdin, stdout and stderr are always inherited",
    ),
    ("statsd_host", "--statsd-host", "text", None, "instead", "", _STATSD),
    ("dogstatsd_tags", "--dogstatsd-tags", "text", "", "instead", "", _STATSD),
    ("statsd_prefix", "--statsd-prefix", "text", "", "instead", "", _STATSD),
    (
        "enable_backlog_metric", "--enable-backlog-metric", "bool", False, "unneeded", "",
        "`oxicorn_listener_queue` is always among the metrics",
    ),
    ("proc_name", "-n --name", "text", None, "same", "process.name", ""),
    (
        "default_proc_name", "", "text", "gunicorn", "unneeded", "",
        "is internal to Gunicorn: `process.name` is the name",
    ),
    ("pythonpath", "--pythonpath", "commas", [], "same", "python.pythonpath", "after the folder of `python.chdir`"),
    ("paste", "--paste --paster", "text", None, "same", "python.app", "`paste.deploy:loadapp(…)`"),
    ("on_starting", "", "hook", None, "same", "", _IN_HELPER),
    ("on_reload", "", "hook", None, "same", "", _IN_HELPER),
    ("when_ready", "", "hook", None, "same", "", _IN_HELPER),
    ("pre_fork", "", "hook", None, "same", "", _IN_HELPER),
    ("post_fork", "", "hook", None, "same", "", _HOOK),
    ("post_worker_init", "", "hook", None, "same", "", _HOOK),
    ("worker_int", "", "hook", None, "same", "", _HOOK),
    ("worker_abort", "", "hook", None, "same", "", _HOOK),
    ("pre_exec", "", "hook", None, "same", "", _IN_HELPER),
    ("pre_request", "", "hook", None, "same", "", _HOOK),
    ("post_request", "", "hook", None, "same", "", _HOOK),
    ("child_exit", "", "hook", None, "same", "", _IN_HELPER),
    ("worker_exit", "", "hook", None, "same", "", _HOOK),
    ("nworkers_changed", "", "hook", None, "same", "", _IN_HELPER),
    ("on_exit", "", "hook", None, "same", "", _IN_HELPER),
    ("ssl_context", "", "hook", None, "instead", "", f"is not called: {_TLS}"),
    ("proxy_protocol", "--proxy-protocol", "proxy", "off", "same", "server.proxy_protocol", ""),
    (
        "proxy_allow_ips", "--proxy-allow-from", "commas", ["127.0.0.1", "::1"], "refused", "http.forwarded_allow_ips",
        "peers that may send a PROXY header and those whose X-Forwarded headers are trusted are one list here: give "
        "`forwarded_allow_ips` the same value",
    ),
    ("protocol", "--protocol", "text", "http", "refused", "", "only `http` is spoken: let nginx use proxy_pass"),
    ("uwsgi_allow_ips", "--uwsgi-allow-from", "commas", ["127.0.0.1", "::1"], "unneeded", "", "uwsgi is not spoken"),
    ("keyfile", "--keyfile", "text", None, "same", "tls.keyfile", ""),
    ("certfile", "--certfile", "text", None, "same", "tls.certfile", "re-read at a reload"),
    ("ssl_version", "--ssl-version", "any", None, "instead", "", _TLS),
    (
        "cert_reqs", "--cert-reqs", "int", 0, "same", "tls.client_ca",
        "2 with `ca_certs` asks every client for a certificate; 1 is refused, because a certificate cannot be optional",
    ),
    ("ca_certs", "--ca-certs", "text", None, "same", "tls.client_ca", "with `cert_reqs = 2`, and else without effect"),
    ("suppress_ragged_eofs", "--suppress-ragged-eofs", "bool", True, "unneeded", "", "is about Python's ssl module"),
    (
        "do_handshake_on_connect", "--do-handshake-on-connect", "bool", False, "unneeded", "",
        "a handshake never blocks a worker",
    ),
    ("ciphers", "--ciphers", "text", None, "instead", "", _TLS),
    (
        "http_protocols", "--http-protocols", "commas", ["h1"], "same", "http.http2",
        "HTTP/2 is on without it; HTTP/1.1 is always spoken",
    ),
    (
        "http2_cleartext", "--http2-cleartext", "text", "off", "differs", "http.http2",
        "HTTP/2 without TLS is spoken with prior knowledge, by every peer, as long as `http.http2` is on; an "
        "`Upgrade: h2c` is not answered",
    ),
    ("http2_max_concurrent_streams", "--http2-max-concurrent-streams", "int", 100, "unneeded", "", _FIXED),
    ("http2_initial_window_size", "--http2-initial-window-size", "int", 65535, "unneeded", "", _FIXED),
    ("http2_max_frame_size", "--http2-max-frame-size", "int", 16384, "unneeded", "", _FIXED),
    (
        "http2_max_header_list_size", "--http2-max-header-list-size", "int", 65536, "unneeded", "",
        "follows from `http.limit_request_fields` and `http.limit_request_field_size`",
    ),
    ("raw_paste_global_conf", "--paste-global", "list", [], "same", "python.app", "with `paste`"),
    ("permit_obsolete_folding", "--permit-obsolete-folding", "bool", False, "instead", "", _STRICT),
    ("strip_header_spaces", "--strip-header-spaces", "bool", False, "instead", "", _STRICT),
    (
        "permit_unconventional_http_method", "--permit-unconventional-http-method", "bool", False, "unneeded", "",
        "every method that RFC 9110 allows is passed on",
    ),
    (
        "permit_unconventional_http_version", "--permit-unconventional-http-version", "bool", False, "instead", "",
        _STRICT,
    ),
    (
        "casefold_http_method", "--casefold-http-method", "bool", False, "instead", "",
        "the app gets the method as the client sent it",
    ),
    (
        "forwarder_headers", "--forwarder-headers", "commas", ["SCRIPT_NAME", "PATH_INFO"], "instead", "",
        "no header becomes a variable such as SCRIPT_NAME: `python.root_path` is the prefix of the app",
    ),
    (
        "header_map", "--header-map", "text", "drop", "instead", "",
        "a WSGI app gets no header with an underscore in its name, and an ASGI app every header as it came",
    ),
    (
        "asgi_loop", "--asgi-loop", "text", "auto", "instead", "python.loop",
        "the event loop is asyncio on tokio, whatever is installed",
    ),
    ("asgi_lifespan", "--asgi-lifespan", "text", "auto", "same", "python.lifespan", ""),
    (
        "asgi_disconnect_grace_period", "--asgi-disconnect-grace-period", "int", 3, "instead", "",
        "a client that leaves never cancels the app's task",
    ),
    ("websocket_max_message_size", "--websocket-max-message-size", "int", 16777216, "same", "python.ws_max_size", ""),
    ("http_parser", "--http-parser", "text", "auto", "unneeded", "", "there is one parser"),
    ("root_path", "--root-path", "text", "", "same", "python.root_path", "also `SCRIPT_NAME` of a WSGI app"),
    ("dirty_apps", "--dirty-app", "list", [], "refused", "", _DIRTY),
    ("dirty_workers", "--dirty-workers", "int", 0, "refused", "", _DIRTY),
    ("dirty_timeout", "--dirty-timeout", "int", 300, "unneeded", "", _NO_DIRTY),
    ("dirty_threads", "--dirty-threads", "int", 1, "unneeded", "", _NO_DIRTY),
    ("dirty_graceful_timeout", "--dirty-graceful-timeout", "int", 30, "unneeded", "", _NO_DIRTY),
    ("on_dirty_starting", "", "hook", None, "instead", "", "is not called, because there are no dirty apps"),
    ("dirty_post_fork", "", "hook", None, "instead", "", "is not called, because there are no dirty apps"),
    ("dirty_worker_init", "", "hook", None, "instead", "", "is not called, because there are no dirty apps"),
    ("dirty_worker_exit", "", "hook", None, "instead", "", "is not called, because there are no dirty apps"),
    (
        "control_socket", "--control-socket", "text", None, "differs", "control.socket",
        "for `oxicorn status`, `reload`, `scale` and so on, and not for gunicornc",
    ),
    ("control_socket_mode", "--control-socket-mode", "octal", 0o600, "instead", "", "the mode of the socket is 0600"),
    ("control_socket_disable", "--no-control-socket", "bool", False, "same", "control.socket", '`"off"`'),
)  # fmt: skip

OPTIONS = {row[0]: Option(*row) for row in _TABLE}

#: The hooks that run in the helper process, because they belong to the master.
MASTER_HOOKS = {name for name, option in OPTIONS.items() if option.text == _IN_HELPER}

#: The names of Gunicorn's own logger.
OWN_LOGGERS = ("simple", "gunicorn.glogging.Logger")

#: The settings that configure Python's loggers.
LOG_CONFIGS = {"logconfig", "logconfig_dict", "logconfig_json"}

#: How many arguments each hook takes.
HOOK_ARGUMENTS = {
    "on_starting": (1,), "on_reload": (1,), "when_ready": (1,), "pre_fork": (2,), "post_fork": (2,),
    "post_worker_init": (1,), "worker_int": (1,), "worker_abort": (1,), "pre_exec": (1,), "pre_request": (2,),
    "post_request": (4, 3, 2), "child_exit": (2,), "worker_exit": (2,), "nworkers_changed": (3,), "on_exit": (1,),
    "ssl_context": (2,),
}  # fmt: skip

#: The kinds of values that a flag has without a word of its own.
SWITCHES = ("bool", "off")

#: What `--proxy-protocol` may be followed by.
PROXY_PROTOCOL = {
    "off": "off", "false": "off", "0": "off", "none": "off",
    "auto": "auto", "true": "auto", "1": "auto", "v1": "v1", "v2": "v2",
}  # fmt: skip

_READERS = {
    "text": string,
    "int": whole,
    "octal": octal,
    "bool": boolean,
    "off": boolean,
    "list": strings,
    "commas": by_commas,
}

#: Values of these settings are paths. Gunicorn enters `chdir` before it uses one.
PATHS = ("pidfile", "accesslog", "errorlog", "certfile", "keyfile", "ca_certs", "control_socket")

#: The worker classes whose apps are ASGI, by the last part of their names.
_ASGI = ("asgi", "ASGIWorker", "UvicornWorker", "UvicornH11Worker")

#: Those whose apps are WSGI, with one thread unless `threads` says more.
_WSGI = ("sync", "SyncWorker", "gthread", "ThreadWorker")

#: Those whose apps are WSGI and wait a lot: many threads stand for their green threads.
_GREEN = (
    "gevent", "gevent_wsgi", "gevent_pywsgi", "GeventWorker", "GeventPyWSGIWorker", "eventlet", "EventletWorker",
    "tornado", "TornadoWorker",
)  # fmt: skip

#: The packages that worker classes known here come from.
_PACKAGES = ("gunicorn.workers.", "uvicorn.workers.", "uvicorn_worker.")

#: The threads of a worker whose class has green threads.
GREEN_THREADS = 32


def read_value(option, value):
    """Returns the value of a setting as Gunicorn understands it. Raises ValueError with a sentence."""
    if option.kind == "count":
        return value if value == "auto" or _is_formula(value) else whole(value)
    if option.kind == "proxy":
        text = str(value).strip().lower()
        if text not in PROXY_PROTOCOL:
            raise ValueError(f"{shown(value)} is none of off, v1, v2 and auto")
        return PROXY_PROTOCOL[text]
    if option.kind == "dict":
        if not isinstance(value, dict):
            raise ValueError(f"{shown(value)} is not a dictionary")
        return value
    if option.kind == "hook":
        if not callable(value) and not isinstance(value, str):
            raise ValueError(f"{shown(value)} cannot be called")
        return value
    return _READERS[option.kind](value) if option.kind in _READERS else value


def _is_formula(value):
    return isinstance(value, str) and value[-1:].isdigit() and "n" in value


def translate(given, collected, folder=""):
    """Turns one setting into settings, notes and problems. `given.value` comes from `read_value`."""
    name, value = given.option.name, given.value
    special = _SPECIAL.get(name)
    if name in PATHS:
        value = below(folder, value)
    if special is not None:
        special(given, value, collected, folder)
        return
    if value is None:
        return
    if "." in given.option.key and given.option.how in ("same", "differs"):
        collected.put(given.option.key, value, given.origin, given.strength)
    if value != given.option.default:
        collected.tell(given)


def below(folder, path):
    """Returns a path as it is meant after Gunicorn has entered `chdir`."""
    plain = not path or path in ("-", "off", "auto") or os.path.isabs(path)
    return path if plain or not folder else os.path.join(folder, path)


def combine(everything, collected, folder, count):
    """Translates what several settings mean together. `everything` maps the names of settings to what was given.

    `count` says whether Gunicorn's default of one worker counts."""
    _bind_mode(everything, collected)
    certificate(
        everything, ("certfile", "keyfile", "cert_reqs", "ca_certs"), collected, lambda path: below(folder, path)
    )
    _threads(everything, collected)
    _proxy(everything, collected)
    _paste(everything, collected)
    if count and not collected.has("workers.count") and not collected.own_file:
        collected.put("workers.count", 1, "Gunicorn's default", collected.derived)


def _bind(given, value, collected, folder):
    addresses = [address_of(text, folder) for text in value]
    if addresses:
        collected.put("server.bind", addresses, given.origin, given.strength)


def address_of(text, folder=""):
    """Returns an address as oxicorn writes it. Gunicorn takes port 8000 if none is named."""
    if text.startswith("unix:"):
        path = text[5:].removeprefix("//")
        return f"unix:{below(folder, path)}"
    if text.startswith("fd://"):
        return text
    text = text.removeprefix("tcp://")
    if not text:
        return ":8000"
    if ":" in text or text.isdigit():
        return text
    return f"{text}:8000"


def _bind_mode(everything, collected):
    """Gunicorn gives the file of a unix socket every permission that its umask, 0 by default, does not take away."""
    bind = everything.get("bind")
    if bind is None or collected.own_file or not any(text.startswith("unix:") for text in bind.value):
        return
    umask = everything.get("umask")
    mode = 0o666 & ~(umask.value if umask else 0)
    collected.put("server.unix_mode", f"{mode:04o}", (umask or bind).origin, collected.derived)


def _graceful_timeout(given, value, collected, folder):
    collected.put("workers.graceful_timeout", value or "1s", given.origin, given.strength)
    if not value:
        collected.note(given.typed, "info", "a worker that drains needs some time: it gets 1 second")


def _keepalive(given, value, collected, folder):
    # 0 is no limit in oxicorn's own words, and no second request in Gunicorn's.
    collected.put("http.keep_alive", value or "1ms", given.origin, given.strength)


def _reuse_port(given, value, collected, folder):
    # Gunicorn's False means an ordinary socket, which is no reason to give up one socket for each worker.
    if value:
        collected.put("server.reuse_port", True, given.origin, given.strength)


def _worker_class(given, value, collected, folder):
    kind, base = class_of(value)
    if kind is None:
        collected.problem(
            given.typed,
            f"the worker class {shown(base)} is not known: leave it out, or write `asgi` or `gthread`, "
            "and give its own settings as flags",
        )
        return
    collected.put("python.interface", "asgi" if kind in ("asgi", "derived") else "wsgi", given.origin, given.strength)
    if kind == "green":
        collected.note(
            given.typed,
            "warn",
            f"Python threads take the place of green threads, {GREEN_THREADS} in a worker unless --threads says more; "
            "nothing is monkey-patched",
        )
    elif kind == "derived":
        collected.note(given.typed, "warn", f"is served as ASGI; what {base} changes in its base class has no effect")


def class_of(value):
    """Returns the kind of a worker class ("asgi", "wsgi", "green" or None), and its name.

    A configuration file may name a class or give the class itself."""
    if isinstance(value, type):
        for at, base in enumerate(value.__mro__):
            kind, _ = class_of(f"{base.__module__}.{base.__qualname__}")
            if kind is not None:
                return ("derived" if at and kind == "asgi" else kind), value.__qualname__
        return None, value.__qualname__
    name = str(value).strip().removeprefix("egg:gunicorn#")
    known = "." not in name or name.startswith(_PACKAGES)
    last = name.rpartition(".")[2]
    for kind, names in (("asgi", _ASGI), ("wsgi", _WSGI), ("green", _GREEN)):
        if known and last in names and ("." in name or last.islower()):
            return kind, name
    return None, name


def _threads(everything, collected):
    given = everything.get("worker_class")
    if given and "threads" not in everything and class_of(given.value)[0] == "green":
        collected.put("python.threads", GREEN_THREADS, given.origin, given.strength)


def _secure_scheme_headers(given, value, collected, folder):
    others = [name for name, said in value.items() if (name.upper(), said) != ("X-FORWARDED-PROTO", "https")]
    if others:
        collected.tell(given)


def _told_if_changed(given, value, collected, folder):
    if value != given.option.default:
        collected.tell(given)


def _proxy(everything, collected):
    """Both lists of trusted peers are one here. They must not differ when both count."""
    given, protocol = everything.get("proxy_allow_ips"), everything.get("proxy_protocol")
    if given is None or protocol is None or protocol.value == "off":
        return
    trusted = everything.get("forwarded_allow_ips")
    trusted = trusted.value if trusted else given.option.default
    if sorted(given.value) != sorted(trusted):
        collected.tell(given)


def _asgi_loop(given, value, collected, folder):
    if value.lower() == "uvloop":
        collected.tell(given)


def _log_config(given, value, collected, folder):
    if value:
        collected.tell(given)


def _logger_class(given, value, collected, folder):
    name = f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else str(value)
    if name not in OWN_LOGGERS:
        # Each request would have two lines.
        collected.put("log.access", "off", given.origin, "flag")
        collected.tell(given)


def _protocol(given, value, collected, folder):
    if value.lower() != "http":
        collected.tell(given)


def _told_if_set(given, value, collected, folder):
    if value not in (None, "", 0, False, given.option.default):
        collected.tell(given)


def _http_protocols(given, value, collected, folder):
    protocols = [part.lower() for part in value]
    if unknown := [part for part in protocols if part not in ("h1", "h2")]:
        collected.problem(given.typed, f"{shown(unknown[0])} is neither h1 nor h2")
    else:
        collected.put("http.http2", "h2" in protocols, given.origin, given.strength)


def _http2_cleartext(given, value, collected, folder):
    if str(value).lower() not in ("off", "false"):
        collected.tell(given)


def _nothing(given, value, collected, folder):
    """For settings that `combine`, or the reader of the command line, looks at."""


def _only_a_flag(given, value, collected, folder):
    if value:
        collected.note(given.typed, "warn", "has an effect only on the command line, or as a command of oxicorn")


def _control_socket_disable(given, value, collected, folder):
    if value:
        collected.put("control.socket", "off", given.origin, given.strength)


def _paste(everything, collected):
    """PasteDeploy's own function loads the app: a name of an app may be a call with literals."""
    given = everything.get("paste")
    if given is None or not given.value:
        return
    uri = given.value if ":" in given.value else f"config:{os.path.abspath(given.value)}"
    words = [repr(uri)]
    conf = everything.get("raw_paste_global_conf")
    if conf and conf.value:
        pairs = [item.replace("\\=", "\0").partition("=") for item in conf.value]
        defaults = {name.replace("\0", "="): value.replace("\0", "=") for name, _, value in pairs}
        words.append(f"global_conf={defaults!r}")
    collected.put("python.app", f"paste.deploy:loadapp({', '.join(words)})", given.origin, given.strength)


def logging_of_paste(paste):
    """Returns the file that `paste` names if it also configures Python's loggers, as Gunicorn looks for it."""
    path = os.path.abspath(paste.value.partition("#")[0])
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            found = any(line.strip() == "[loggers]" for line in file)
    except OSError:
        found = False
    return Given(OPTIONS["logconfig"], path, paste.origin, paste.typed, paste.strength) if found else None


_SPECIAL = {
    "config": _nothing,
    "check_config": _only_a_flag,
    "print_config": _only_a_flag,
    "bind": _bind,
    "graceful_timeout": _graceful_timeout,
    "keepalive": _keepalive,
    "umask": _nothing,
    "reuse_port": _reuse_port,
    "worker_class": _worker_class,
    "secure_scheme_headers": _secure_scheme_headers,
    "forwarder_headers": _told_if_changed,
    "uwsgi_allow_ips": _told_if_changed,
    "proxy_allow_ips": _nothing,
    "asgi_loop": _asgi_loop,
    "logconfig": _log_config,
    "logconfig_dict": _log_config,
    "logconfig_json": _log_config,
    "logger_class": _logger_class,
    "protocol": _protocol,
    "ssl_version": _told_if_set,
    "http_protocols": _http_protocols,
    "http2_cleartext": _http2_cleartext,
    "cert_reqs": _nothing,
    "ca_certs": _nothing,
    "paste": _nothing,
    "raw_paste_global_conf": _nothing,
    "control_socket_disable": _control_socket_disable,
}
