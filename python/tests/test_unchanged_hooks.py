"""Promise: the hooks of a Gunicorn configuration run where they ran, in their order, and see what they saw.

Each test starts Gunicorn, then oxicorn with the same words, and compares.
"""

import os
import signal

import pytest

from harness import eventually, is_alive
from moving import differences, facts, line_of
from peers import settled

pytestmark = pytest.mark.needs_oxicorn


def hooks_of(server) -> list[dict]:
    return server.records("hook")


def names_of(entries, *kept) -> list[str]:
    return [entry["hook"] for entry in entries if entry["hook"] in kept]


MASTERS = ("nworkers_changed", "on_starting", "when_ready", "pre_fork", "child_exit", "on_exit")
WORKERS = ("post_fork", "post_worker_init", "pre_request", "post_request", "worker_exit")


def test_hooks_run_as_under_gunicorn(both):
    line = line_of("hooks")
    seen = {}
    for server in both(line):
        server.get("/page?x=1")
        environment = facts(server)["environment"]
        worker = facts(server)["pid"]
        server.stop()
        entries = hooks_of(server)
        requests = [entry for entry in entries if entry["hook"].endswith("_request") and entry.get("path") == "/page"]
        for entry in requests:
            entry.pop("pid")
            entry.pop("what")
        by_name = {entry["hook"]: entry for entry in entries}
        seen[server.program] = {
            "in the master": names_of(entries, *MASTERS),
            "in a worker": [name for name in names_of(entries, *WORKERS) if not name.endswith("_request")],
            "requests": requests,
            "from on_starting": environment.get("FROM_ON_STARTING"),
            "from pre_fork": environment.get("FROM_PRE_FORK"),
            "settings": {name: by_name["on_starting"][name] for name in ("workers", "name")},
            "preload": by_name["when_ready"]["preload"],
            "pid of the server": by_name["on_starting"]["server"] == server.pid == by_name["post_fork"]["server"],
            "address": str(server.port) in by_name["when_ready"]["address"],
            "pid in post_fork": by_name["post_fork"]["own"] and by_name["post_fork"]["pid"] == worker,
            "pid in child_exit": by_name["child_exit"]["worker"] == worker,
            "ages": [by_name[name]["age"] for name in ("pre_fork", "post_fork", "post_worker_init", "child_exit")],
            "threads": by_name["post_worker_init"]["threads"],
            "logs": [f"hook {hook} logs" in server.log() for hook in ("on_starting", "post_fork")],
        }
    assert differences(seen["gunicorn"], seen["oxicorn"]) == []


def test_hooks_of_a_reload(both):
    line = line_of("hooks")
    seen = []
    for server in both(line):
        first = facts(server)["pid"]
        before = len(hooks_of(server))
        os.kill(server.pid, signal.SIGHUP)
        eventually("the worker is replaced", lambda server=server, first=first: not is_alive(first))
        eventually("its end is told", lambda server=server: "child_exit" in names_of(hooks_of(server), "child_exit"))
        assert facts(server)["pid"] != first
        settled(lambda server=server: len(hooks_of(server)), 0.3)
        seen.append(sorted(names_of(hooks_of(server)[before:], "on_reload", "pre_fork", "post_fork", "child_exit")))
    assert seen[0] == seen[1] == ["child_exit", "on_reload", "post_fork", "pre_fork"]


def test_a_configuration_that_breaks_does_not_break_a_running_service(run):
    """Gunicorn's master ends here, so there is no peer."""
    ours = run(line_of("hooks"), "oxicorn")
    first = facts(ours)["pid"]
    ours.write("deploy/hooks.py", "workers = 2\nthreads = undefined\n")
    os.kill(ours.pid, signal.SIGHUP)
    eventually("the log names the line", lambda: "hooks.py" in ours.log() and "undefined" in ours.log())
    assert facts(ours)["pid"] == first
    ours.write("deploy/hooks.py", line_of("hooks").files["deploy/hooks.py"])
    os.kill(ours.pid, signal.SIGHUP)
    eventually("the next one is taken", lambda: facts(ours)["pid"] != first)


def test_a_killed_worker_is_told_to_prometheus(both):
    line = line_of("logging")
    for server in both(line):
        worker = facts(server)["pid"]
        dead, living = (server.write(f"metrics/gauge_livesum_{pid}.db", "") for pid in (worker, server.pid))
        os.kill(worker, signal.SIGKILL)
        eventually("the file of the dead worker goes", lambda dead=dead: not dead.exists())
        assert living.exists()
