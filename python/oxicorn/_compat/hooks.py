"""The hooks of the master. They run in the helper process, because no code of the app runs in the master itself.

Each line of the socket is an event of the master, as JSON. One line answers it once its hooks have run:

    {"done": 3, "environ": {"set": {"NAME": "value"}, "unset": ["NAME"]}, "error": null}

`done` counts the events. `environ` is what the hooks have changed in `os.environ`. If a hook raises, `error` says so in
one sentence, and `traceback` has the rest; if it asks for the end of the process, `exit` has the exit code.

    starting         pid, workers                           nworkers_changed, on_starting
    listening        addresses                              when_ready
    forking          slot, age, generation                  pre_fork
    forked           slot, age, generation, pid
    exited           slot, age, generation, pid             child_exit
    reloading        pid, addresses, workers, before, alive nworkers_changed, on_reload
    workers_changed  workers, before                        nworkers_changed
    executing                                               pre_exec
    stopped                                                 on_exit

`workers` is how many workers there should be, and `before` how many there should have been. `alive` are the workers of
now, each with the keys of `forked`: after a reload the helper process is a new one.

Owns: the order of the hooks, and their arguments. Refuses: to start the process and to translate the configuration
(`process`).
"""

import ast
import json
import os
import select
import signal
import sys
import threading
import time

from .. import _logging, _worker
from . import logconfig
from .configuration import shown_path
from .gunicorn import MASTER_HOOKS
from .objects import Cfg, Server, Worker, address_of, hooks_of, logger_of

#: The methods that change an object in place, and those that change a logger.
_CHANGES = frozenset("add append clear discard extend insert pop popitem remove reverse setdefault sort update".split())
_OF_LOGGERS = frozenset(("addFilter", "addHandler", "removeFilter", "removeHandler", "setLevel"))

#: How long a hook may run on once the master is done with this process, in seconds.
HANG_TIME = 5


def serve(sock, values, door=None):
    """Runs the hooks until the master closes the socket. `values` are the settings, as `configuration.values` has
    them. `door` is where workers ask for what pre_fork gives them; None if there is no such hook."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1):
        # Some senders mean the whole service. This process ends after the master, so that on_exit runs. Unlike an
        # ignored signal, a handler is not inherited by the programs that a hook starts.
        signal.signal(number, lambda *_: None)
    _logging.install({"critical": "error", "warning": "warn", "debug": "debug"}.get(values["loglevel"].lower(), "info"))
    threading.Thread(target=_end_with, args=(sock.dup(),), daemon=True).start()
    master = Master(values, door)
    unread = b""
    while True:
        ready, _, _ = select.select([sock] if door is None else [sock, door], [], [])
        if door in ready:
            door.accept(master.server)
        if sock not in ready:
            continue
        try:
            part = sock.recv(65536)
            if not part:
                return
            *lines, unread = (unread + part).split(b"\n")
            for line in lines:
                sock.sendall(json.dumps(master.answer(json.loads(line))).encode() + b"\n")
        except ConnectionError:
            # An upgrade has executed another program in place of the master, before it read the last answer.
            return


def _end_with(sock):
    """Ends the process some time after the master has closed the socket. A hook that hangs would keep it for ever."""
    poll = select.poll()
    # The socket has data as long as a hook runs, so only its end is waited for.
    poll.register(sock, select.POLLRDHUP)
    poll.poll()
    time.sleep(HANG_TIME)
    print(f"oxicorn: a hook has not ended {HANG_TIME} s after the master was done with it; it is cut", file=sys.stderr)
    os._exit(1)


class Master:
    """What the hooks see of the master, and the hooks of each event."""

    def __init__(self, values, door):
        self._hooks = {name: hook for name, hook in hooks_of(values).items() if name in MASTER_HOOKS}
        cfg = Cfg(values)
        logconfig.apply({}, values)
        self.server = Server(cfg, logger_of(cfg), os.getppid())
        self._door = door
        #: The workers that are forked now, by their age.
        self._forking = {}
        self._done = 0

    def answer(self, event):
        """Calls the hooks of an event, one after the other, and returns the answer."""
        before, answer = dict(os.environ), {"error": None}
        for name, *arguments in self._calls(event):
            self._call(name, arguments, answer)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if self._door is not None and event["event"] == "forking":
            self._door.answer(self.server, self._forking[event["age"]])
        self._done += 1
        changed = {name: value for name, value in os.environ.items() if before.get(name) != value}
        unset = [name for name in before if name not in os.environ]
        return {"done": self._done, "environ": {"set": changed, "unset": unset}, **answer}

    def _call(self, name, arguments, answer):
        if name not in self._hooks:
            return
        try:
            self._hooks[name](*arguments)
        except BaseException as error:
            sentence, details = _worker.explain(error, name)
            answer.update(error=f"{name}: {sentence}", traceback=details)
            if isinstance(error, SystemExit):
                answer["exit"] = error.code if isinstance(error.code, int) else int(error.code is not None)
                answer["error"] = f"{name} called sys.exit({'' if error.code is None else repr(error.code)})"
            elif name == "on_starting":
                # As Gunicorn does not start then.
                answer["exit"] = 1

    def _calls(self, event):
        """Brings `server` up to date, and returns the hooks of the event, each with its arguments."""
        server, kind = self.server, event["event"]
        server.pid = event.get("pid", server.pid) if kind in ("starting", "reloading") else server.pid
        if "addresses" in event:
            server.address = [address_of(address) for address in event["addresses"]]
        for worker in event.get("alive", ()):
            self._forked(worker)
        match kind:
            case "starting":
                return [*self._changed(event), ("on_starting", server)]
            case "listening":
                return [("when_ready", server)]
            case "forking":
                worker = self._forking[event["age"]] = self._worker(event)
                server.worker_age = worker.age
                return [("pre_fork", server, worker)]
            case "forked":
                self._forked(event)
            case "exited":
                worker = server.WORKERS.pop(event["pid"], None) or self._named(event)
                if self._door is not None:
                    self._door.forget(worker)
                return [("child_exit", server, worker)]
            case "reloading":
                return [*self._changed(event), ("on_reload", server)]
            case "workers_changed" if event["workers"] != server.num_workers:
                return self._changed(event)
            case "executing":
                return [("pre_exec", server)]
            case "stopped":
                return [("on_exit", server)]
        return []

    def _changed(self, event):
        """Takes a new number of workers over. Gunicorn tells it at each reload, even if it is the same."""
        self.server.num_workers = event["workers"]
        return [("nworkers_changed", self.server, event["workers"], event.get("before"))]

    def _worker(self, event):
        server = self.server
        return Worker(server.cfg, server.log, server.pid, event["age"], event["slot"], event["generation"])

    def _named(self, event):
        """Returns the worker of an event that has a pid. From pre_fork to child_exit it is the same object."""
        worker = self._forking.pop(event["age"], None) or self._worker(event)
        worker.pid = event["pid"]
        return worker

    def _forked(self, event):
        self.server.WORKERS[event["pid"]] = self._named(event)


def notes(path):
    """Returns the notes about hooks of the master that change objects of the configuration. Workers do not see this,
    because they are not forked from the process of these hooks."""
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return []
    plain = [node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    known = {name.id for node in plain for name in ast.walk(node) if _is_stored(name)}
    known |= {node.name for node in tree.body if node not in plain}
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in MASTER_HOOKS:
            found += _notes_of(node, known, path)
    return found


def _is_stored(node):
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _notes_of(hook, known, path):
    local = {argument.arg for argument in (*hook.args.posonlyargs, *hook.args.args, *hook.args.kwonlyargs)}
    shared = {name for node in ast.walk(hook) if isinstance(node, ast.Global) for name in node.names}
    local |= {node.id for node in ast.walk(hook) if _is_stored(node)} - shared
    changed = {}
    for node in ast.walk(hook):
        for name in _changed_by(node):
            if name in shared or (name in known and name not in local):
                changed.setdefault(name, node.lineno)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _OF_LOGGERS:
            changed.setdefault("a logger", node.lineno)
    return [
        {
            "origin": f"{shown_path(path)}:{line}",
            "level": "warn",
            "text": f"{hook.name} changes {name}, and workers do not see it; what a hook puts into os.environ reaches "
            f"the workers that are forked later",
        }
        for name, line in changed.items()
    ]


def _changed_by(node):
    """Returns the names of the objects that a statement changes."""
    if _is_stored(node):
        return [node.id]
    if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del)):
        return [_root(node.value)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CHANGES:
        return [_root(node.func.value)]
    return []


def _root(node):
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None
