"""What Gunicorn's server hooks are given: `server`, `worker`, `cfg` and `log`.

Owns: the attributes of these four objects. Refuses: to run a configuration (`configuration`), and to call a hook
(`hooks`, `worker`).
"""

import grp
import importlib
import inspect
import json
import logging
import os
import pwd
import signal
import sys

from .. import _logging
from .collected import by_commas
from .gunicorn import HOOK_ARGUMENTS, OPTIONS, OWN_LOGGERS

#: The numbers of Gunicorn's levels.
LEVELS = {
    "critical": logging.CRITICAL,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}


def hooks_of(values):
    """Returns the hooks among the settings, each as a function of all its arguments."""
    hooks = {name: values[name] for name in HOOK_ARGUMENTS if values.get(name) is not None}
    if hook := hooks.get("post_request"):
        hooks["post_request"] = _with_four_arguments(hook)
    return hooks


def _with_four_arguments(hook):
    """Gunicorn counts the arguments of this hook, and gives it so many."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    count = sum(parameter.kind in kinds for parameter in inspect.signature(hook).parameters.values())
    return lambda *given: hook(*given[: max(count, 2)])


class _Object:
    """An object of Gunicorn. A hook may set attributes of its own on it."""

    _what = ""
    _own = frozenset()

    def of_hooks(self):
        """Returns the attributes that hooks have set, as far as JSON has their values."""
        return {name: value for name, value in vars(self).items() if name not in self._own and _is_plain(value)}

    def __getattr__(self, name):
        raise AttributeError(f"{self._what} of oxicorn has no {name!r}, see docs/reference/gunicorn-hooks.md")


def _is_plain(value):
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


class _Setting:
    def __init__(self, name, value):
        self.name, self.value, self.default = name, value, OPTIONS[name].default

    def get(self):
        return self.value


class Cfg(_Object):
    """Every setting of Gunicorn by its name. `values` are those that were given, and Gunicorn's defaults."""

    _what = "cfg"

    def __init__(self, values):
        values = {name: _normal(OPTIONS[name], value) for name, value in values.items()}
        settings = {name: _Setting(name, value) for name, value in values.items()}
        kind, name = values["worker_class"], values["proc_name"]
        vars(self).update(
            values,
            settings=settings,
            address=[address_of(bind) for bind in values["bind"]],
            env=dict(entry.split("=", 1) for entry in values["raw_env"] if "=" in entry),
            env_orig=dict(os.environ),
            gid=values["group"],
            is_ssl=values["certfile"] or values["keyfile"],
            proc_name=values["default_proc_name"] if name is None else name,
            sendfile=values["sendfile"] is None,
            uid=values["user"],
            worker_class_str=kind if isinstance(kind, str) else kind.__name__,
        )

    def __setattr__(self, name, value):
        if name in OPTIONS:
            raise AttributeError(f"cfg.{name} cannot be set: a hook comes too late to change a setting")
        super().__setattr__(name, value)

    def __str__(self):
        width = max(map(len, self.settings))
        return "\n".join(f"{name:{width}} = {self.settings[name].value}" for name in sorted(self.settings))


def _nothing(*_):
    pass


def _normal(option, value):
    """Returns a value in Gunicorn's form, where oxicorn has another one."""
    if option.kind == "hook":
        return _nothing if value is None else value
    if option.kind == "user":
        return _number(value, pwd.getpwnam if option.name == "user" else grp.getgrnam)
    if option.name == "http_protocols":
        return by_commas(value)
    if option.name == "pythonpath":
        return ",".join(value) or None
    return value


def _number(value, find):
    """Returns the number of a user or a group."""
    if isinstance(value, int) or value.isdigit():
        return int(value)
    try:
        # The second and the third field are the password and the number.
        return find(value)[2]
    except KeyError:
        return value


def address_of(text):
    """Returns an address in Gunicorn's form: host and port, or the path of a unix socket."""
    if text.startswith(("unix:", "/")):
        return text.removeprefix("unix:").removeprefix("//")
    if text.startswith("fd://"):
        return int(text.removeprefix("fd://"))
    host, colon, port = text.removeprefix("tcp://").rpartition(":")
    if not colon or not port.isdigit():
        return text, 8000
    return host.strip("[]").lower() or "0.0.0.0", int(port)


class Log(_Object):
    """Gunicorn's logger: what is said to it goes to the loggers `gunicorn.error` and `gunicorn.access`."""

    _what = "log"
    LOG_LEVELS = LEVELS

    def __init__(self, cfg):
        self.cfg = cfg
        self.error_log = logging.getLogger("gunicorn.error")
        self.access_log = logging.getLogger("gunicorn.access")
        self.loglevel = self.error_log.getEffectiveLevel()
        for name in ("critical", "error", "warning", "info", "debug", "exception"):
            setattr(self, name, getattr(self.error_log, name))

    def log(self, level, message, *values, **more):
        if isinstance(level, str):
            level = LEVELS.get(level.lower(), logging.INFO)
        self.error_log.log(level, message, *values, **more)

    def reopen_files(self):
        """Opens the files of all handlers anew, after they were moved away."""
        for logger in [logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))]:
            for handler in logger.handlers:
                if isinstance(handler, logging.FileHandler):
                    with handler.lock:
                        if handler.stream is not None:
                            handler.stream.close()
                            handler.stream = handler._open()


def logger_of(cfg):
    """Returns the logger of the hooks. A class of the configuration is one of Gunicorn's, so it needs Gunicorn."""
    kind = cfg.logger_class
    if isinstance(kind, str):
        if kind in OWN_LOGGERS:
            return Log(cfg)
        module, _, name = kind.rpartition(".")
        kind = getattr(importlib.import_module(module), name)
    elif f"{kind.__module__}.{kind.__qualname__}" in OWN_LOGGERS:
        return Log(cfg)
    for logger in _logging.leave_gunicorn():
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
    if hasattr(kind, "install"):
        kind.install()
    return kind(cfg)


class Application(_Object):
    """Gunicorn's application: `server.app` and `worker.app`."""

    _what = "app"

    def __init__(self, cfg):
        self.cfg = cfg

    def wsgi(self):
        return self.callable


class Server(_Object):
    """The master, as far as a hook can see it."""

    _what = "server"
    master_name = "Master"
    master_pid = reexec_pid = 0

    def __init__(self, cfg, log, pid):
        self.cfg, self.log, self.pid = cfg, log, pid
        self.app = Application(cfg)
        self.address, self.num_workers = cfg.address, cfg.workers
        self.timeout, self.proc_name = cfg.timeout, cfg.proc_name
        self.WORKERS = {}
        self.worker_age = 0
        self._own = frozenset(vars(self)) | {"_own"}


class Worker(_Object):
    """A worker, as a hook sees it."""

    _what = "worker"
    booted = aborted = False
    reloader = None
    nr = 0

    def __init__(self, cfg, log, ppid, age=0, slot=None, generation=None):
        self.cfg, self.log, self.ppid, self.age = cfg, log, ppid, age
        self.slot, self.generation = slot, generation
        self.pid = "[booting]"
        self.app = Application(cfg)
        self.address = cfg.address
        self.timeout = cfg.timeout / 2
        self.max_requests = cfg.max_requests or sys.maxsize
        self._alive = True
        self._own = frozenset(vars(self)) | {"_own"}

    @property
    def alive(self):
        return self._alive

    @alive.setter
    def alive(self, value):
        """With Gunicorn a worker that is not alive ends after its present request. Here it drains."""
        if self._alive and not value and self.pid == os.getpid():
            signal.raise_signal(signal.SIGTERM)
        self._alive = value

    def __str__(self):
        return f"<Worker {self.pid}>"
