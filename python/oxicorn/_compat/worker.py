"""What a worker takes of Gunicorn's configuration: its hooks and its logging.

Owns: the order of the hooks of a worker. Refuses: the hooks of the master (`hooks`), and the settings, which the master
has applied already.
"""

import faulthandler
import json
import os
import signal
import sys

from .. import _oxicorn, _worker
from . import configuration, early, logconfig, requests
from .collected import Collected
from .objects import Cfg, Log, Server, Worker, hooks_of, logger_of

#: The hooks and the objects of this worker, once it has begun.
_this = None


def begin(text):
    """Executes the configuration again and runs `post_fork`, before the app is imported. `text` is what the master was
    told to hand to its workers."""
    global _this
    about = json.loads(text)
    _this = _Worker(about, _values(about))
    if about.get("door"):
        _this.take_early(about["door"])
    _this.call("post_fork", _this.server, _this.worker)


def loaded():
    """Runs `post_worker_init`, after the import of the app."""
    if _this is not None:
        _this.worker.booted = True
        _this.call("post_worker_init", _this.worker)


def wrap(app, interface):
    """Returns the app with the hooks of its requests. `interface` is "asgi" or "wsgi"."""
    if _this is None:
        return app
    for owner in (_this.worker, _this.server):
        owner.app.callable = app
    _this.worker.wsgi = app
    access = None if isinstance(_this.worker.log, Log) else _this.worker.log.access
    if access is None and not {"pre_request", "post_request"} & _this.hooks.keys():
        return app
    make = requests.wrap_wsgi if interface == "wsgi" else requests.wrap_asgi
    return make(app, _this.worker, _this.hooks, access)


def end():
    """Runs `worker_exit`, once."""
    if _this is not None and _this.worker.pid == os.getpid():
        _this.exit()


def _values(about):
    """Returns the settings. Executes the configuration again for it, in the folder of the start."""
    # The helper process has told what is wrong with a setting.
    given = configuration.given_in(_execute(about), Collected()) if about.get("configuration") else {}
    return configuration.values({**given, **configuration.given_outside(about.get("cfg") or {})})


def _execute(about):
    here, path = os.getcwd(), list(sys.path)
    try:
        return configuration.load(about["configuration"], about["folder"], about.get("text"))
    except configuration.Failed as failed:
        raise failed.__cause__ or _worker.AppError(f"{failed.origin}: {failed.text}") from None
    finally:
        os.chdir(here)
        # The folder of the app comes first, and then that of the start.
        sys.path[:] = [*path[:1], *(entry for entry in sys.path if entry not in path), *path[1:]]


class _Worker:
    def __init__(self, about, values):
        self.hooks = hooks_of(values)
        cfg = Cfg(values)
        logconfig.apply(about, values)
        log = logger_of(cfg)
        self.server = Server(cfg, log, os.getppid())
        self.worker = Worker(cfg, log, os.getppid(), _worker.age, _worker.slot, _worker.generation)
        self.worker.pid = os.getpid()
        self.server.WORKERS[self.worker.pid] = self.worker
        self.server.worker_age = self.worker.age
        self._has_left = self._is_interrupted = False
        if "worker_int" in self.hooks:
            signal.signal(signal.SIGINT, self._interrupted)
            signal.signal(signal.SIGQUIT, self._interrupted)
        if "worker_abort" in self.hooks:
            self._take_abort(self._aborted)

    def take_early(self, door):
        """Takes what pre_fork gives to this worker."""
        try:
            early.ask(door, self.server, self.worker)
        except (OSError, ValueError) as error:
            _oxicorn.pre_fork_missed(_worker.slot, str(error))

    def call(self, name, *arguments):
        if name in self.hooks:
            self.hooks[name](*arguments)

    def _safely(self, name, *arguments):
        """Calls a hook of the end. What it raises is told, and the end goes on."""
        try:
            self.call(name, *arguments)
        except BaseException as error:
            sentence, details = _worker.explain(error, name)
            _oxicorn.hook_failed(_worker.slot, f"{name}: {sentence}", details)

    def exit(self):
        if not self._has_left:
            self._has_left = True
            self._safely("worker_exit", self.server, self.worker)

    def _interrupted(self, number, frame):
        if not self._is_interrupted:
            self._is_interrupted = True
            self._safely("worker_int", self.worker)

    def _take_abort(self, handler):
        """Sets a handler of the SIGABRT that a hung worker gets. The handler of faulthandler, which writes the stacks,
        calls the one that was there before it. So a crash, which never comes back to Python, has its stacks too."""
        faulthandler.disable()
        signal.signal(signal.SIGABRT, handler)
        if _worker.stacks is not None:
            faulthandler.enable(_worker.stacks, all_threads=True)

    def _aborted(self, number, frame):
        self.worker.aborted = True
        self._safely("worker_abort", self.worker)
        # Gunicorn's worker leaves by sys.exit() here, which runs this hook.
        self.exit()
        os.abort()
