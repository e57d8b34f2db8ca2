"""Promise: `oxicorn check` finds an app that cannot be imported, with file and line, and starts nothing in its own
process. With `--deep` it also runs the lifespan."""

import json

import pytest

from harness import APPS

pytestmark = pytest.mark.needs_oxicorn

FINE = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
"""


def checked(launch, code, *options, app="main:app", **settings):
    server = launch.prepare(app, files={"main.py": code}, settings=settings)
    server.write_settings()
    return server, server.ctl("check", *options, app)


def test_a_good_app_is_told_and_runs_in_a_process_of_its_own(launch):
    code = FINE + "import os, pathlib\npathlib.Path('pids').write_text(f'{os.getpid()} {os.getppid()}')\n"
    server, done = checked(launch, code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "settings are valid\nthe app main:app was imported (function, ASGI)\n"
    pid, parent = server.path("pids").read_text().split()
    assert pid != parent


@pytest.mark.parametrize("code, said", [
    ("\nundefined\n", "main.py, line 2: NameError: name 'undefined' is not defined"),
    ("def broken(:\n", "main.py, line 1: SyntaxError"),
    ("import sys\nsys.exit(4)\n", "main.py, line 2: the app called sys.exit(4)"),
    ("import os\nos._exit(4)\n", "main:app: the process ended with code 4 while it imported the app"),
    ("import os\nos.kill(os.getpid(), 9)\n", "main:app: the process was killed by signal 9"),
    ("application = None\n", "the module 'main' (main.py) has no attribute 'app'"),
])
def test_a_bad_app_is_told_with_file_and_line(launch, code, said):
    _, done = checked(launch, code)
    assert done.returncode == 2 and said in done.stderr, done
    # A real start fails too, and check says the code of it.
    _, deep = checked(launch, code, "--deep")
    assert deep.returncode == 3, deep
    if "os." not in code:
        assert deep.stderr.count(said) == 1, "it is told once, although both steps have found it"


def test_an_import_that_hangs_is_ended(launch):
    _, done = checked(launch, "import time\ntime.sleep(60)\n", **{"workers.boot_timeout": "1s"})
    assert done.returncode == 2 and "did not end within workers.boot_timeout (1 s)" in done.stderr


def test_what_the_app_prints_is_not_in_the_json(launch):
    _, done = checked(launch, "print('noise')\n" + FINE, "--json", "--deep")
    told = json.loads(done.stdout)
    assert told["ok"] and told["app"]["lines"] == ["the app main:app was imported (function, ASGI)"]
    assert told["start"]["ok"] and done.stderr.count("noise") == 2


def test_a_process_that_the_import_leaves_behind_does_not_hold_the_check(launch):
    code = FINE + "import os, time\nif os.fork() == 0:\n    time.sleep(5)\n    os._exit(0)\n"
    _, done = checked(launch, code)
    assert done.returncode == 0, done


def test_deep_runs_the_lifespan_to_its_end(launch):
    code = FINE.replace("import", "") + """
from toolkit import record
plain = app
async def app(scope, receive, send):
    while scope["type"] == "lifespan":
        message = await receive()
        record(message["type"])
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
"""
    server, done = checked(launch, code, "--deep", **{"python.pythonpath": [str(APPS)]})
    assert done.returncode == 0, done
    assert [entry["what"] for entry in server.records()] == ["lifespan.startup", "lifespan.shutdown"]


def test_deep_tells_why_the_lifespan_cannot_start(launch):
    code = "async def app(scope, receive, send):\n    await receive()\n    open('/nowhere')\n"
    _, done = checked(launch, code, "--deep")
    assert done.returncode == 3
    assert "lifespan.startup: main.py, line 3: FileNotFoundError" in done.stderr


def test_no_app_is_told_with_what_to_write(launch):
    server = launch.prepare(None, files={"main.py": FINE})
    server.write_settings()
    done = server.ctl("check")
    assert done.returncode == 2 and "oxicorn app.main:app" in done.stderr


def test_the_settings_as_json_are_whole(launch):
    server = launch.prepare("main:app", files={"main.py": FINE})
    server.write_settings()
    assert json.loads(server.ctl("config", "--json", "main:app").stdout)["server.bind"]["origin"] != "default"
