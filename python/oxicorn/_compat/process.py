"""The helper process: `python -m oxicorn._compat.process FD OUT`. The master starts it at its start and at each reload.

Owns: the run of Gunicorn's configuration outside of the master, the answer, and then the hooks of the master, if the
file has any. Refuses: to end by itself when the file hangs; the master ends it.

FD is one end of a socket pair. The first line that comes is COMPAT, the JSON object of the command line, and the answer
is one line of JSON too. OUT is the standard output of the master, to which the hooks print.
"""

import atexit
import json
import os
import socket
import sys

from . import configuration, gunicorn
from .collected import Collected, as_json


def main(fd, out):
    sock = socket.socket(fileno=fd)
    compat = json.loads(_line(sock))
    # The programs that the file starts do not get it.
    os.set_inheritable(out, False)
    answer, cfg = answered(compat)
    door = None
    if "pre_fork" in answer["hooks"]:
        from .early import Door

        door = Door()
        answer["worker"] = {**answer["worker"], "door": door.name}
    sock.sendall(as_json(answer).encode() + b"\n")
    if not answer["problems"] and gunicorn.MASTER_HOOKS & set(answer["hooks"]):
        from . import hooks

        sys.stdout.flush()
        os.dup2(out, 1)
        os.close(out)
        os.environ.update(configuration.environment(cfg))
        _enter(cfg["chdir"])
        hooks.serve(sock, cfg, door)
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread that the file has started must not keep the process.
    os._exit(0)


def answered(compat):
    """Runs the configuration. Returns the answer, and every setting with its value."""
    worker = compat["worker"]
    text = configuration.text_of(compat["configuration"], worker["folder"])
    if text is not None:
        # A worker that is forked later runs this text, whatever the file has then.
        worker = {**worker, "text": text}
    collected = Collected(derived=None)
    answer = {"hooks": [], "worker": worker}
    # A file may look at the words of the command.
    sys.argv = ["oxicorn", *compat["argv"]]
    try:
        namespace = configuration.load(compat["configuration"], worker["folder"], text)
    except configuration.Failed as failed:
        collected.problem(failed.origin, failed.text)
        return {**collected.as_dict(), **answer}, {}
    given = configuration.given_in(namespace, collected)
    everything = {**given, **configuration.given_outside(worker["cfg"])}
    configuration.settings(given, everything, collected)
    answer["hooks"] = [name for name, entry in given.items() if entry.option.kind == "hook"]
    if gunicorn.MASTER_HOOKS & given.keys():
        from . import hooks

        collected.notes += hooks.notes(namespace.get("__file__", ""))
    cfg = configuration.values(everything)
    if gunicorn.LOG_CONFIGS & everything.keys():
        from . import logconfig

        logconfig.settle_access({}, cfg, collected)
    return {**collected.as_dict(), **answer}, cfg


def _line(sock):
    line = b""
    while not line.endswith(b"\n"):
        part = sock.recv(65536)
        if not part:
            break
        line += part
    return line


def _enter(folder):
    """Enters a folder, and makes it the first of `sys.path`, as Gunicorn does before it calls a hook."""
    os.chdir(folder)
    if folder not in sys.path:
        sys.path.insert(0, folder)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
