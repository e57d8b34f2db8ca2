"""Promise: a worker is an interpreter as any other: its environment, `site`, flags, threads and processes are those
that a start of Python gives, and tools that work through them work. The master stays one small thread."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from clients import Raw, get
from harness import APPS, PATIENCE, command, eventually

pytestmark = pytest.mark.needs_oxicorn


def interpreter() -> str:
    """Returns the interpreter that the command runs in."""
    first = Path(command()[0])
    with open(first, "rb") as file:
        line = file.readline()
    return line[2:].decode().strip() if line.startswith(b"#!") else str(first)


def python(code: str) -> str:
    return subprocess.run([interpreter(), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def package() -> str:
    """Returns the folder in which the package lies."""
    return python("import os, oxicorn; print(os.path.dirname(os.path.dirname(os.path.abspath(oxicorn.__file__))))")


def facts(server):
    return get(server, "/facts").json()


def threads_of(pid):
    return len(os.listdir(f"/proc/{pid}/task"))


# --- the environment ---


def test_the_worker_has_its_environment_and_nothing_that_is_meant_for_the_master(launch):
    server = launch.prepare(
        "process:app",
        settings={
            "process.env_file": "{dir}/app.env",
            "python.raw_env": ["FROM_RAW=raw=value", "FROM_FILE_AND_RAW=raw"],
        },
        environment={"NOTIFY_SOCKET": "{dir}/notify.sock", "GIVEN": "yes"},
    )
    server.write("app.env", "FROM_FILE=file\nFROM_FILE_AND_RAW=file\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(server.path("notify.sock")))
        notify.settimeout(PATIENCE)
        seen = facts(server.serving())
        # The master itself has the variable.
        while b"READY=1" not in notify.recv(4096):
            pass
    expected = {"FROM_FILE": "file", "FROM_RAW": "raw=value", "FROM_FILE_AND_RAW": "raw", "GIVEN": "yes"}
    assert {name: seen["environment"].get(name) for name in expected} == expected
    assert "NOTIFY_SOCKET" not in seen["environment"]
    # Libraries in C and the app's children read the environment of the process, and not `os.environ`.
    real = dict(variable.partition("=")[::2] for variable in seen["real"] if variable)
    assert {name: real.get(name) for name in expected} == expected and "NOTIFY_SOCKET" not in real


def test_each_worker_has_random_numbers_of_its_own(launch):
    server = launch("process:app", workers=2)
    assert len({entry["number"] for entry in server.records("imported")}) == 2


MASTER = """
import os
import random
import sys

sys.path.insert(0, PACKAGE)


def note(what):
    line = '{"what": "%s", "pid": %d}\\n' % (what, os.getpid())
    descriptor = os.open(os.environ["RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)


os.register_at_fork(
    before=lambda: note("before fork"),
    after_in_parent=lambda: note("after fork in master"),
    after_in_child=lambda: note("after fork in worker"),
)
random.random()
from oxicorn import _master

_master.main()
"""


def test_pythons_hooks_run_around_each_fork(launch, monkeypatch, tmp_path):
    program = tmp_path / "master.py"
    program.write_text(MASTER.replace("PACKAGE", repr(package())))
    monkeypatch.setenv("OXICORN_PYTHON_COMMAND", f"{interpreter()} -S {program} script {program} ''")
    server = launch("process:app", workers=2)
    pids = server.serving_pids()
    forks = ["before fork", "after fork in master"]
    noted = [(entry["what"], entry["pid"]) for entry in server.records() if "fork" in entry["what"]]
    assert [what for what, pid in noted if pid == server.pid] == forks * 2
    assert {pid for what, pid in noted if what == "after fork in worker"} == set(pids)
    # `random` was imported before the fork. One of its hooks gives each child a seed of its own.
    assert len({entry["number"] for entry in server.records("imported")}) == 2


# --- the interpreter ---


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A virtual environment with the package, and with a .pth file that records its run."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([interpreter(), "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    [site] = (folder / "lib").glob("python3.*/site-packages")
    (site / "package.pth").write_text(f"{package()}\nimport noted\n")
    noted = "import os, sys\nif 'RECORD' in os.environ:\n    sys.path.append(TESTS)\n    import toolkit\n"
    noted += "    toolkit.record('pth', argv=sys.argv)\n"
    (site / "noted.py").write_text(noted.replace("TESTS", repr(str(APPS))))
    return folder


def test_a_virtual_environment_is_that_of_the_worker(launch, monkeypatch, environment):
    monkeypatch.setenv("OXICORN_PYTHON_COMMAND", f"{environment}/bin/python -m oxicorn")
    server = launch("process:app")
    seen = facts(server)
    assert (seen["prefix"], seen["executable"]) == (str(environment), f"{environment}/bin/python")
    assert any(path.startswith(f"{environment}/lib") for path in seen["path"])
    assert seen["argv"][1:] == ["process:app", "-c", str(server.path("supervisor.toml"))]
    assert Path(seen["argv"][0]).parts[-2:] == ("oxicorn", "__main__.py"), "as `python -m` names it"
    # The first process runs the .pth file once, before it becomes the master. After that only workers do.
    assert [entry["pid"] for entry in server.records("pth")] == [server.pid, *server.serving_pids()]


def test_site_runs_in_the_worker_and_not_in_the_master(launch):
    code = "import threading, toolkit\ntoolkit.record('customized')\n"
    code += "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    server = launch(
        "process:app",
        workers=2,
        files={"lib/sitecustomize.py": code},
        cwd=APPS,
        environment={"PYTHONPATH": f"{{dir}}/lib:{APPS}"},
    )
    pids = [entry["pid"] for entry in server.records("customized")]
    assert sorted(pids) == sorted([server.pid, *server.serving_pids()])
    assert threads_of(server.pid) == 1, "the thread was that of the first process, which executed the master"


def test_the_first_entries_of_sys_path_are_the_folder_and_the_setting(launch):
    server = launch(
        "process:app",
        settings={"python.pythonpath": [str(APPS), "{dir}/more"], "python.chdir": "{dir}/app"},
        files={"app/empty.txt": "", "lib/empty.txt": ""},
        environment={"PYTHONPATH": "{dir}/lib"},
    )
    seen = facts(server)
    place = str(server.dir)
    assert seen["path"][:4] == [f"{place}/app", str(APPS), f"{place}/more", f"{place}/lib"]
    assert seen["cwd"] == f"{place}/app"


@pytest.mark.parametrize("options, found", [
    ("-X dev", {"dev_mode": True}),
    ("-O -W error::UserWarning", {"optimize": 1, "warnings": ["error::UserWarning"]}),
    ("-Om oxicorn", {"optimize": 1}),
])
def test_the_options_of_the_interpreter_reach_the_worker(launch, monkeypatch, options, found):
    module = "" if "oxicorn" in options else " -m oxicorn"
    monkeypatch.setenv("OXICORN_PYTHON_COMMAND", f"{interpreter()} {options}{module}")
    server = launch("process:app")
    seen = facts(server)
    assert {name: seen[name] for name in found} == found
    assert seen["no_site"] == 0, "a child that is made from the flags has `site`"
    assert threads_of(server.pid) == 1


def test_a_shim_may_stand_before_the_command(launch, monkeypatch, tmp_path):
    shim = tmp_path / "oxicorn"
    shim.write_text('#!/usr/bin/env bash\nset -e\nexec ' + " ".join(command()) + ' "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("OXICORN_PYTHON_COMMAND", str(shim))
    server = launch("process:app")
    assert facts(server)["pid"] in server.serving_pids()
    server.stop()


def test_output_is_whole_lines_even_if_python_is_unbuffered(launch):
    code = "import sys\nfrom process import app\nprint('a', 'b', 'c')\nprint('d', file=sys.stderr)\n"
    code += "assert sys.stdout.line_buffering and not sys.stdout.write_through\n"
    settings = {"python.pythonpath": [str(APPS)]}
    server = launch("main:app", files={"main.py": code}, settings=settings, environment={"PYTHONUNBUFFERED": "1"})
    assert server.text_of("stdout.log") == "a b c\n" and server.text_of("stderr.log") == "d\n"


# --- processes and threads of the app ---


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_the_app_may_use_a_pool_of_processes(launch, method):
    server = launch("process:app", workers=1)
    pid, doubled, no_site, has_extension = get(server, f"/pool?{method}").json()
    assert doubled == 42 and no_site == 0 and pid not in (server.pid, *server.serving_pids())
    assert has_extension == (method == "fork"), "the child does not run the command again"
    assert get(server, "/facts").status == 200
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    # multiprocessing's own helper ends when its pipe to the worker is closed.
    eventually("all processes have ended", lambda: server.leftovers() == [])


def test_a_process_that_the_app_has_forked_dies_of_sigterm(launch):
    """Else the end of a pool of multiprocessing's would wait for it for ever."""
    server = launch("process:app", workers=1)
    assert get(server, "/terminated-child").json() == -signal.SIGTERM
    assert get(server, "/facts").status == 200


def test_the_app_may_start_and_fork_processes(launch):
    server = launch("process:app")
    prefix, code, blocking = get(server, "/subprocess").json()
    assert (prefix, code, blocking) == (facts(server)["prefix"], 3, 4)
    assert get(server, "/fork").json() == 5
    assert get(server, "/facts").status == 200
    server.stop()


def test_a_thread_of_the_app_is_waited_for_at_the_end(launch):
    server = launch("process:app", environment={"THREAD": "until told"})
    server.stop()
    assert len(server.records("thread ended")) == 1
    assert server.events("threads_left") == []


def test_a_thread_that_never_ends_holds_the_end_no_longer_than_its_grace(launch):
    server = launch("process:app", environment={"THREAD": "for ever"}, settings={"python.shutdown_grace": "1s"})
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 5
    [left] = server.events("threads_left")
    assert left["threads"] == "for ever" and left["slot"] == 0


def test_an_interrupt_of_the_terminal_stops_the_service(launch):
    server = launch("process:app", workers=2)
    # A terminal sends SIGINT to the whole group.
    os.killpg(server.pid, signal.SIGINT)
    assert server.wait_exit() == 0
    assert "Traceback" not in server.text_of("stderr.log")


SIGNALS = """
import asyncio
import os
import signal
import sys

from toolkit import quiet_lifespan, record, text

HOW = os.environ["HOW"]


def handler(*_):
    record("handler")
    if HOW == "exits":
        sys.exit(0)


if HOW != "of the loop":
    before = signal.signal(signal.SIGTERM, handler)
    record("before", callable=callable(before))


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        if HOW == "of the loop":
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, handler)
        await quiet_lifespan(scope, receive, send)
    else:
        record("began")
        await asyncio.sleep(0.5)
        await text(send, "done")
"""


@pytest.mark.parametrize("how", ["of the module signal", "of the loop", "exits"])
def test_a_sigterm_drains_the_worker_and_calls_the_handler_of_the_app(launch, how):
    server = launch(
        "main:app",
        files={"main.py": SIGNALS},
        settings={"python.pythonpath": [str(APPS)]},
        environment={"HOW": how},
    )
    [worker] = server.serving_pids()
    with Raw(server) as connection:
        connection.request("GET", "/")
        server.wait_record("began")
        os.kill(worker, signal.SIGTERM)
        assert connection.response().text == "done"
    [exited] = server.wait_event("worker_exited", pid=worker)
    assert exited["reason"] == "drained and ended"
    assert len(server.records("handler")) == 1
    assert all(entry["callable"] for entry in server.records("before")), "a library can chain to it"


# --- an app that does not let the worker boot ---


@pytest.mark.parametrize("code, said", [
    ("import sys\n\nsys.exit(3)\n", "main.py, line 3: the app called sys.exit(3)"),
    ("raise SystemExit\n", "main.py, line 1: the app called sys.exit()"),
    ("import os\nos._exit(7)\n", "exited with code 7"),
    ("import json\njson.loads('{')\n", "main.py, line 2: json.decoder.JSONDecodeError: Expecting property name"),
    ("raise ExceptionGroup('two', [KeyError('a'), ValueError('b')])\n", "KeyError: 'a'"),
    ("class E(Exception):\n    def __str__(self): return 1 / 0\nraise E\n", "main.py, line 3: main.E"),
    ("raise ValueError('one\\n  two\\n\\nthree')\n", "main.py, line 1: ValueError: one; two; three"),
    ("async def make(): ...\napp = make\n", "main:app takes no arguments, so it is no app; if it is a factory, write"),
    ("from gone.deeper import thing\n", "main.py, line 1: ModuleNotFoundError: No module named 'gone'"),
])
def test_the_reason_of_a_failed_boot_names_the_python_cause(launch, code, said):
    server = launch.prepare("main:app", files={"main.py": code}).start()
    assert server.wait_exit() == 3
    [failed] = server.events("boot_failed")
    assert said in failed["reason"], failed


def test_a_reload_with_such_an_app_is_refused_with_that_reason(launch):
    good = "from process import app\n"
    server = launch("main:app", files={"main.py": good}, settings={"python.pythonpath": [str(APPS)]})
    before = server.serving_pids()
    server.write("main.py", "import sys\nsys.exit('no')\n")
    done = server.ctl("reload")
    assert done.returncode == 1
    assert "main.py, line 2: the app called sys.exit('no')" in done.stdout + done.stderr
    assert server.serving_pids() == before and get(server, "/facts").status == 200


# --- tools that stand before the command ---

FASTAPI = """
import sys
import fastapi
from toolkit import record

app = fastapi.FastAPI()
record("kind", kind=f"{fastapi.FastAPI.__module__}.{fastapi.FastAPI.__qualname__}")


@app.get("/hello")
async def hello():
    return {"hello": "world"}


@app.get("/modules")
async def modules():
    return list(sys.modules)
"""


@pytest.mark.parametrize("tool, module, environment", [
    ("opentelemetry-instrument", "opentelemetry.instrumentation.auto_instrumentation", {
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_SERVICE_NAME": "the-shop",
    }),
    ("ddtrace-run", "ddtrace.contrib.internal.fastapi.patch", {
        "DD_TRACE_ENABLED": "true",
        "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
        "DD_REMOTE_CONFIGURATION_ENABLED": "false",
    }),
    ("newrelic-admin run-program", "newrelic.hooks.framework_fastapi", {
        "NEW_RELIC_DEVELOPER_MODE": "true",
        "NEW_RELIC_LICENSE_KEY": "0" * 40,
        "NEW_RELIC_APP_NAME": "the shop",
    }),
])
def test_a_tool_of_tracing_may_stand_before_the_command(launch, monkeypatch, tool, module, environment):
    program, *words = tool.split()
    program = Path(interpreter()).parent / program
    assert program.exists(), "see requirements.txt"
    monkeypatch.setenv("OXICORN_PYTHON_COMMAND", " ".join([str(program), *words, *command()]))
    server = launch(
        "main:app",
        workers=2,
        files={"main.py": FASTAPI},
        settings={"python.pythonpath": [str(APPS)]},
        environment=environment,
    )
    assert get(server, "/hello").json() == {"hello": "world"}
    assert module in get(server, "/modules").json()
    assert threads_of(server.pid) == 1, "the tool has started nothing in the master"
    if program.name == "opentelemetry-instrument":
        [kind] = {entry["kind"] for entry in server.records("kind")}
        assert kind == "opentelemetry.instrumentation.fastapi._InstrumentedFastAPI"
        server.stop()
        assert '"name": "GET /hello"' in server.text_of("stdout.log"), "the span was exported at the end"
        return
    assert server.ctl("reload").returncode == 0
    assert get(server, "/hello").json() == {"hello": "world"}
    server.stop()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (404, 0), (500, 1)])
def test_health_takes_any_answer_of_an_app_without_a_path_for_it(launch, status, code):
    app = f"""
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({{"type": "http.response.start", "status": {status}, "headers": []}})
    await send({{"type": "http.response.body"}})
"""
    server = launch("main:app", files={"main.py": app})
    assert server.ctl("health").returncode == code
