"""Promise: a configuration file of another server is executed beside the master, and never holds it up."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import textwrap
import urllib.request
from pathlib import Path

import pytest

from harness import PATIENCE, command, eventually

pytestmark = pytest.mark.needs_oxicorn

APP = """
import json, os, sys

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    modules = [name for name in sys.modules if name.startswith("oxicorn._compat")]
    facts = {"pid": os.getpid(), "argv": sys.argv[1:], "modules": modules, "environ": dict(os.environ)}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(facts).encode()})
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Service:
    """A service in a folder with a `gunicorn.conf.py`."""

    def __init__(self, folder: Path, conf: str | None, *words: str) -> None:
        self.folder, self.port = folder, free_port()
        (folder / "main.py").write_text(APP)
        if conf is not None:
            self.write(conf)
        self.environment = {**os.environ, "RUNTIME_DIRECTORY": str(folder)}
        self.log_file = folder / "log"
        with open(self.log_file, "wb") as log:
            self.process = subprocess.Popen(
                [*command(), "main:app", "--bind", f"127.0.0.1:{self.port}", *words],
                cwd=folder,
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    def write(self, conf: str) -> None:
        (self.folder / "gunicorn.conf.py").write_text(textwrap.dedent(conf))

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def logged(self, words: str, times: int = 1) -> None:
        eventually(f"{words!r} is in the log", lambda: self.log().count(words) >= times)

    def serving(self, workers: int = 1) -> Service:
        self.logged("event=worker_serving", workers)
        return self

    def facts(self) -> dict:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=PATIENCE) as answer:
            return json.load(answer)

    def begin(self, *words: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*command(), *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ctl(self, *words: str) -> tuple[int, str]:
        process = self.begin(*words)
        out, _ = process.communicate(timeout=PATIENCE * 3)
        return process.returncode, out

    def beside(self) -> list[int]:
        """Returns the processes beside the master that are no workers."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
                parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == self.process.pid and b"oxicorn._compat.process" in words:
                found.append(int(path.parent.name))
        return found

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0, self.log()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def service(tmp_path):
    started = []

    def start(conf, *words):
        started.append(Service(tmp_path, conf, *words))
        return started[-1]

    yield start
    for one in started:
        one.close()


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_service_without_foreign_words_has_no_process_beside_it(service):
    one = service(None).serving()
    assert one.facts()["modules"] == []
    assert one.beside() == []
    one.stop()


def test_the_settings_of_the_file_are_shown_with_their_lines(service):
    one = service("workers = 1\nkeepalive = 7\nproc_name = 'moved'\n").serving()
    _, shown = one.ctl("config")
    assert 'keep_alive = "7s"  # from gunicorn.conf.py:2' in shown, shown
    assert one.ctl("config", "--running")[1].count("gunicorn.conf.py:") >= 3
    code, told = one.ctl("reload")
    assert code == 0 and "moved" in told, told
    assert one.beside() == [], "the file has no hooks for the master, so its process has ended"
    one.stop()


def test_the_master_serves_while_the_file_is_executed_again(service):
    one = service("workers = 1\n").serving()
    gate = one.folder / "gate"
    gate.write_text("")
    one.write("import os, time\nwhile os.path.exists('gate'):\n    time.sleep(0.01)\nworkers = 2\n")
    # A command that finds the service by its file executes the file too.
    at = ("--socket", str(one.folder / "oxicorn.sock"))
    reload = one.begin("reload", *at)
    one.logged("command=Reload")
    assert one.facts()["pid"] > 0
    status, _ = one.begin("status", "--json", *at).communicate(timeout=PATIENCE)
    assert json.loads(status)["state"] == "reloading"
    gate.unlink()
    told, _ = reload.communicate(timeout=PATIENCE)
    assert reload.returncode == 0 and "workers.count" in told, told
    one.stop()


@pytest.mark.parametrize(
    ("conf", "reason"),
    [
        ("workers = 1\n1 / 0\n", "gunicorn.conf.py:3: ZeroDivisionError: division by zero"),
        ("workers = = 1\n", "gunicorn.conf.py:2: SyntaxError"),
        ("import os\nos._exit(7)\n", "ended before it answered"),
        ("workers = 'many'\n", "workers"),
    ],
)
def test_a_file_that_fails_refuses_the_reload_and_a_start(service, conf, reason):
    one = service("proc_name = 'moved'\n").serving()
    worker = one.facts()["pid"]
    # The command finds the service by its name, although the file cannot be executed.
    one.write("proc_name = 'moved'  # as before\n" + conf)
    code, told = one.ctl("reload")
    assert code == 1 and "nothing was changed" in told and reason in told, told
    assert one.facts()["pid"] == worker
    code, told = one.ctl("check", "main:app")
    assert code == 2 and reason in told, told
    one.stop()


def test_a_new_worker_runs_the_text_that_the_master_has_taken(service):
    one = service("workers = 1\nimport os\nos.environ['FROM_START'] = 'taken'\n").serving()
    for broken in ("workers = = 1\n", None):
        one.write(broken) if broken else (one.folder / "gunicorn.conf.py").unlink()
        assert one.ctl("reload", "--socket", str(next(one.folder.glob("**/*.sock"))))[0] == 1
        worker = one.facts()["pid"]
        serving = one.log().count("event=worker_serving")
        os.kill(worker, signal.SIGKILL)
        one.serving(serving + 1)
        facts = one.facts()
        assert facts["pid"] != worker and facts["environ"]["FROM_START"] == "taken"
    assert "event=worker_boot_failed" not in one.log(), one.log()
    one.stop()


@pytest.mark.parametrize(
    ("conf", "reason"),
    [
        ("import os\nos.closerange(3, 100)\n", "killed, or has closed the descriptor for its answer"),
        ("timeout = float('inf')\n", "gunicorn.conf.py:1: timeout: inf is not a whole number"),
        ("raise ValueError('caf\\udce9')\n", "gunicorn.conf.py:1: ValueError: caf?"),
    ],
)
def test_a_value_that_nobody_expects_is_told_in_one_sentence(service, conf, reason):
    one = service(conf)
    assert one.process.wait(PATIENCE) == 2
    assert reason in one.log() and one.log().count("\n") == 1, one.log()


@pytest.mark.parametrize("name", [b"GUNICORN_CMD_ARGS", b"UVICORN_LOG_LEVEL"])
def test_a_variable_that_is_no_text_is_told_with_its_name(tmp_path, name):
    (tmp_path / "main.py").write_text(APP)
    told = subprocess.run(
        [*command(), "check", "main:app"],
        cwd=tmp_path,
        env={**os.environb, name: b"--workers=caf\xe9"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert told.returncode == 2 and name.decode() in told.stderr and "caf?" in told.stderr, told.stderr


def test_a_module_of_settings_that_is_not_there_is_named(tmp_path):
    told = subprocess.run(
        [*command(), "check", "main:app", "-c", "python:not_there"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert told.stderr == "oxicorn: error: python:not_there: ModuleNotFoundError: No module named 'not_there'\n"


HOOKS = """
import os
workers = 1
def on_starting(server): os.environ["FROM_START"] = "yes"
def on_reload(server): os.environ["FROM_RELOAD"] = "yes"
def on_exit(server): open("exit", "w").close()
"""


def test_what_a_hook_puts_into_the_environment_outlives_a_reload(service):
    one = service(HOOKS).serving()
    assert one.facts()["environ"]["FROM_START"] == "yes"
    (helper,) = one.beside()
    assert one.ctl("reload")[0] == 0
    eventually("the process of the hooks before has ended", lambda: is_gone(helper))
    assert len(one.beside()) == 1
    # The second reload's worker is forked after the first one's hook.
    assert one.ctl("reload")[0] == 0
    environ = one.facts()["environ"]
    assert (environ["FROM_START"], environ["FROM_RELOAD"]) == ("yes", "yes")
    one.stop()
    assert (one.folder / "exit").exists()


def test_a_hook_that_hangs_does_not_stay_behind_the_service(service):
    one = service("import time\ndef on_exit(server): time.sleep(600)\n").serving()
    (beside,) = one.beside()
    one.stop()
    assert "on_exit did not end within 2 s" in one.log()
    eventually("the process of the hooks has ended", lambda: is_gone(beside))


def test_a_refused_reload_keeps_the_hooks_of_the_settings_in_effect(service):
    one = service(HOOKS).serving()
    before = one.beside()
    one.write(HOOKS + "timeout = 'soon'\n")
    assert one.ctl("reload")[0] == 1
    assert one.ctl("check", "main:app")[0] == 2
    assert one.beside() == before
    one.stop()


def test_the_end_of_the_hooks_is_told_once_and_the_service_goes_on(service):
    one = service(HOOKS).serving()
    os.kill(one.beside()[0], signal.SIGKILL)
    one.logged("event=hooks_lost")
    assert one.ctl("scale", "2")[0] == 0
    assert one.log().count("event=hooks_lost") == 1
    assert one.ctl("reload")[0] == 0
    assert len(one.beside()) == 1, "a reload has them again"
    one.stop()


def test_the_process_of_the_hooks_ends_with_a_master_that_is_killed(service):
    one = service(HOOKS).serving()
    (helper,) = one.beside()
    one.process.kill()
    one.process.wait()
    eventually("it is gone", lambda: is_gone(helper))


def test_an_on_starting_that_exits_ends_the_start(service):
    one = service("def on_starting(server):\n    raise SystemExit('no database')\n")
    assert one.process.wait(PATIENCE) == 3
    assert "on_starting" in one.log() and "no database" in one.log()


def test_an_upgrade_repeats_the_words_of_the_operator(service):
    words = ("--workers", "1", "--max-requests-jitter", "5", "--max-requests", "1000", "--preload")
    one = service(HOOKS, *words).serving()
    before = one.facts()
    assert before["argv"][3:] == list(words)
    code, told = one.ctl("upgrade")
    assert code == 0, told
    eventually("the new worker answers", lambda: one.facts()["pid"] != before["pid"])
    assert one.facts()["argv"] == before["argv"]
    assert len(one.beside()) == 1
    one.stop()
