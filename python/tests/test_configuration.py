"""Promise: a configuration of Gunicorn is run in a process of its own, its settings have the lines that set them, and a
file that fails is told in one sentence with file, line and exception."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness import PATIENCE
from oxicorn import _compat

PACKAGE = str(Path(_compat.__file__).parents[2])


class Answer:
    def __init__(self, folder, words, environ):
        reading = _compat.read(words, environ)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(PATIENCE)
            process = subprocess.Popen(
                # The second descriptor is what hooks print to.
                [sys.executable, "-m", "oxicorn._compat.process", str(theirs.fileno()), "2"],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **environ, "PYTHONPATH": PACKAGE},
            )
            theirs.close()
            ours.sendall(reading.compat.encode() + b"\n")
            self.line = ours.makefile().readline()
        self.code = process.wait(PATIENCE)
        answer = json.loads(self.line) if self.line else {"settings": [], "notes": [], "problems": [], "hooks": []}
        self.settings = {entry["key"]: (entry["value"], entry["origin"]) for entry in answer["settings"]}
        self.notes = {entry["origin"]: (entry["level"], entry["text"]) for entry in answer["notes"]}
        self.problems = {entry["origin"]: entry["text"] for entry in answer["problems"]}
        self.hooks = answer["hooks"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("WEB_CONCURRENCY", "PORT", "FORWARDED_ALLOW_IPS", "GUNICORN_CMD_ARGS"):
        monkeypatch.delenv(name, raising=False)

    def run(code, *words, environ=None, **files):
        (tmp_path / "gunicorn.conf.py").write_text(code)
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        return Answer(tmp_path, ["app:app", *words], environ or {})

    return run


def test_each_setting_has_its_line(run):
    got = run(
        """\
import os, multiprocessing
from base import *
bind = ["127.0.0.1:8001", "unix:x.sock"]
workers = 2 * 3
if os.environ.get("SLOW"):
    timeout = 300
else:
    timeout = 60
max_requests, max_requests_jitter = 1000, 50
umask: int = 0o27
try:
    import nothing
    keepalive = 1
except ImportError:
    keepalive = 5
accesslog = errorlog = "-"
worker = "no setting"
""",
        base="graceful_timeout = 9\n",
    )
    assert got.problems == {} and got.settings == {
        "server.bind": ("127.0.0.1:8001,unix:x.sock", "gunicorn.conf.py:3"),
        "server.unix_mode": ("0640", "gunicorn.conf.py:10"),
        "workers.count": ("6", "gunicorn.conf.py:4"),
        "workers.timeout": ("60", "gunicorn.conf.py:8"),
        "workers.max_requests": ("1000", "gunicorn.conf.py:9"),
        "workers.max_requests_jitter": ("50", "gunicorn.conf.py:9"),
        "workers.graceful_timeout": ("9", "base.py:1"),
        "http.keep_alive": ("5", "gunicorn.conf.py:15"),
        "log.access": ("-", "gunicorn.conf.py:16"),
        "log.file": ("-", "gunicorn.conf.py:16"),
    }


def test_a_file_has_what_gunicorn_gives_it(run, tmp_path):
    got = run(
        """\
import os, sys
assert __name__ == "__config__" and sys.modules["__config__"].__dict__ is globals()
assert os.path.isabs(__file__) and os.path.dirname(__file__) == os.getcwd()
assert os.getcwd() in sys.path
import beside
print("noise")
proc_name = beside.name
workers = os.environ["COUNT"]
""",
        environ={"COUNT": "3"},
        beside="name = 'shop'\n",
    )
    assert got.problems == {} and got.settings["process.name"][0] == "shop" and got.settings["workers.count"][0] == "3"


@pytest.mark.parametrize("code, origin, text", [
    ("\nbind = undefined\n", "gunicorn.conf.py:2", "NameError: name 'undefined' is not defined"),
    ("bind = (\n", "gunicorn.conf.py:1", "SyntaxError: '(' was never closed"),
    ("def f():\n    raise ValueError('a\\nb')\nf()\n", "gunicorn.conf.py:2", "ValueError: a; b"),
    ("import sys\nsys.exit(3)\n", "gunicorn.conf.py:2", "the file called sys.exit(3)"),
    ("import nothing\n", "gunicorn.conf.py:1", "ModuleNotFoundError: No module named 'nothing'"),
    ("import os\nos.environ['NO']\n", "gunicorn.conf.py:2", "KeyError: 'NO'"),
    ("\nimport beside\n", "gunicorn.conf.py:2", "ZeroDivisionError: division by zero (raised in beside.py, line 1)"),
    ("raise KeyboardInterrupt\n", "gunicorn.conf.py:1", "KeyboardInterrupt"),
])
def test_a_file_that_fails_is_told_with_its_line(run, code, origin, text):
    got = run(code, beside="1 / 0\n")
    [(place, said)] = got.problems.items()
    assert place == origin and said.startswith(text) and got.code == 0


def test_all_wrong_values_are_told_at_once(run):
    got = run(
        """\
workers = "many"
timeout = -1
worker_class = "mine.Worker"
pre_fork = lambda server: None
bind = 8000
daemon = True
raw_env = {"A": "1"}
secure_scheme_headers = "X"
on_exit = "nothing.at_all"
limit_request_line = 100
"""
    )
    assert set(got.problems) == {
        "gunicorn.conf.py:1: workers", "gunicorn.conf.py:2: timeout", "gunicorn.conf.py:3: worker_class",
        "gunicorn.conf.py:4: pre_fork", "gunicorn.conf.py:5: bind", "gunicorn.conf.py:6: daemon",
        "gunicorn.conf.py:7: raw_env", "gunicorn.conf.py:8: secure_scheme_headers", "gunicorn.conf.py:9: on_exit",
    }  # fmt: skip
    assert got.problems["gunicorn.conf.py:4: pre_fork"] == "the hook must take 2 arguments"


def test_what_the_file_cannot_do_is_told(run):
    got = run("check_config = True\nforwarder_headers = 'REMOTE_USER'\nsecure_scheme_headers = {'X-SSL': '1'}\n")
    assert {origin: level for origin, (level, _) in got.notes.items()} == {
        "gunicorn.conf.py:1: check_config": "warn", "gunicorn.conf.py:2: forwarder_headers": "warn",
        "gunicorn.conf.py:3: secure_scheme_headers": "warn",
    }  # fmt: skip
    assert run("secure_scheme_headers = {'X-Forwarded-Proto': 'https'}\nprint_config = False\n").notes == {}


def test_a_process_that_ends_gives_no_answer(run):
    got = run("import os\nos._exit(7)\n")
    assert (got.line, got.code) == ("", 7)


def test_flags_override_the_file_and_count_together_with_it(run):
    code = "certfile = 'both.pem'\ntimeout = 3\npreload_app = True\nca_certs = 'ca.pem'\n"
    code += "chdir = 'app'\npidfile = 'x.pid'\n"
    got = run(code, "-t", "7", "--cert-reqs", "2")
    assert "workers.timeout" not in got.settings and not any("timeout" in origin for origin in got.notes)
    assert got.settings == {
        "tls.certfile": ("app/both.pem", "gunicorn.conf.py:1"), "tls.keyfile": ("app/both.pem", "gunicorn.conf.py:1"),
        "tls.client_ca": ("app/ca.pem", "gunicorn.conf.py:4"), "python.chdir": ("app", "gunicorn.conf.py:5"),
        "process.pidfile": ("app/x.pid", "gunicorn.conf.py:6"), "workers.count": ("1", "Gunicorn's default"),
    }  # fmt: skip
    assert [*got.notes] == ["gunicorn.conf.py:3: preload_app"]
    assert "workers.count" not in run("", "-w", "3").settings
    assert "workers.count" not in run("", environ={"WEB_CONCURRENCY": "3"}).settings


def test_a_class_of_workers_may_be_the_class_itself(run):
    code = "from uvicorn_worker import UvicornWorker\nclass Mine(UvicornWorker):\n    pass\nworker_class = "
    got = run(code + "UvicornWorker")
    assert got.settings["python.interface"] == ("asgi", "gunicorn.conf.py:4") and got.notes == {}
    got = run(code + "Mine")
    assert got.settings["python.interface"][0] == "asgi"
    assert "what Mine changes" in got.notes["gunicorn.conf.py:4: worker_class"][1]


def test_the_hooks_are_named_and_told(run):
    code = "def post_fork(server, worker): pass\ndef post_request(worker, req): pass\ndef ssl_context(c, f): pass\n"
    got = run(code)
    assert got.hooks == ["post_fork", "post_request", "ssl_context"]
    assert got.notes["gunicorn.conf.py:3: ssl_context"][0] == "warn" and len(got.notes) == 1


def test_a_module_and_a_file_of_any_name(run):
    assert run("", "-c", "python:conf", conf="workers = 5\n").settings["workers.count"] == ("5", "conf.py:1")
    assert run("workers = 6\n", "-c", "file:gunicorn.conf.py").settings["workers.count"][0] == "6"
    assert run("", "-c", "gone.py").problems == {"gone.py": "there is no such file"}
    Path("settings").write_text("workers = 7\n")
    assert run("", "-c", "settings", "-k", "sync").settings["workers.count"] == ("7", "settings:1")
