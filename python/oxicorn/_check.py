"""`oxicorn check` for Python: imports the app in a child process.

Owns: the child, and what it tells its parent. Refuses: to import anything of the app in the process of the command,
where an app could start threads or end the process.
"""

import json
import os
import select
import sys
import time

from . import _worker


def check(name, interface, preparation, timeout):
    """Imports the app `name` in a child process, after `_worker.prepare(*preparation)`. `interface` is
    `python.interface`. Returns the line that tells of the app, and None; or None, and the sentence that says why it
    cannot be imported. `timeout` is in seconds, or None.
    """
    reader, writer = os.pipe()
    # This process has one thread and no event loop, so a fork is safe.
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _import_and_end(name, interface, preparation, writer)
    os.close(writer)
    told, in_time = _read(reader, timeout)
    if not in_time:
        os.kill(pid, 9)
    _, status = os.waitpid(pid, 0)
    if not in_time:
        return None, f"{name}: the import did not end within workers.boot_timeout ({timeout:g} s)"
    if not told.endswith(b"\n"):
        return None, f"{name}: the process {_in_words(status)} while it imported the app"
    return tuple(json.loads(told))


def _import_and_end(name, interface, preparation, writer):
    """Imports the app and ends this process."""
    try:
        # What the app prints must not mix with the output of the command, which may be JSON.
        os.dup2(2, 1)
        _worker.prepare(*preparation)
        app, interface = _worker.load(name, interface)
        told = f"the app {name} was imported ({_kind(app)}, {interface.upper()})", None
    except BaseException as error:
        told = None, _worker.explain(error, name)[0]
    with os.fdopen(writer, "w") as file:
        file.write(json.dumps(told) + "\n")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(0)


def _kind(app):
    kind = type(app)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _read(reader, timeout):
    """Returns the line that the child has written, or less if it has ended before, and whether it did so in time. A
    process that the app has started may keep the child's end open, so its close is not awaited."""
    deadline = None if timeout is None else time.monotonic() + timeout
    told = b""
    with os.fdopen(reader, "rb", buffering=0) as file:
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([file], [], [], left)
            if not ready:
                return told, False
            piece = file.read(65536)
            told += piece
            if not piece or told.endswith(b"\n"):
                return told, True


def _in_words(status):
    code = os.waitstatus_to_exitcode(status)
    return f"ended with code {code}" if code >= 0 else f"was killed by signal {-code}"
