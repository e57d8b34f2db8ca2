"""Promise: Gunicorn's server hooks run when and where Gunicorn runs them.

The same files are given to both servers in the same test.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from harness import APPS, PATIENCE, command, eventually, is_alive

pytestmark = pytest.mark.needs_oxicorn

EVERY_HOOK = (APPS / "every_hook.py").read_text()

APP = textwrap.dedent(
    """
    import os, time

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        if scope["path"] == "/block":
            time.sleep(60)
        body = str(os.getpid()).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
    """
)


WSGI = textwrap.dedent(
    """
    import os, time

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/block":
            time.sleep(60)
        body = str(os.getpid()).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
    """
)


class Service:
    """A service of either server with the same files: `gunicorn.conf.py`, and the app in `main.py`."""

    def __init__(self, folder, words, text, arguments, app=APP, **variables):
        folder.mkdir()
        self.folder, self.order = folder, folder / "order"
        self.write("gunicorn.conf.py", text)
        self.write("main.py", app)
        variables = {name: value.replace("{dir}", str(folder)) for name, value in variables.items()}
        environment = {**os.environ, "ORDER": str(self.order), "PYTHONDONTWRITEBYTECODE": "1", **variables}
        environment |= {"OXICORN_CONTROL__SOCKET": str(folder / "control"), "HOME": str(folder)}
        # Each is the leader of a group, so that nothing outlives the test.
        with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
            self.process = subprocess.Popen(
                [*words, *arguments], cwd=folder, env=environment, stdout=out, stderr=err, process_group=0
            )

    def write(self, name, text):
        """Replaces a file at once: a worker that starts now sees no half of it."""
        fresh = self.folder / f"{name}.new"
        fresh.write_text(textwrap.dedent(text).replace("{dir}", str(self.folder)))
        fresh.rename(self.folder / name)

    def said(self):
        return self.order.read_text().splitlines() if self.order.exists() else []

    def wait_said(self, text, times=1):
        eventually(
            f"{times} times {text!r} in {self.said()}\n{self.text('out')}{self.text('err')}",
            lambda: sum(line.startswith(text) for line in self.said()) >= times,
        )

    def wait_listening(self):
        eventually("a connection", lambda: _unless_refused(self.connect)).close()

    def text(self, name):
        return (self.folder / name).read_text()

    def signal(self, number):
        os.kill(self.process.pid, number)

    def connect(self):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        connection.connect(str(self.folder / "sock"))
        return connection

    def ask(self, path="/"):
        """Sends a request, and returns the connection."""
        connection = self.connect()
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return connection

    def get(self, path="/"):
        connection = self.ask(path)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        connection.close()
        assert answer.startswith(b"HTTP/1.1 200"), answer
        return answer.partition(b"\r\n\r\n")[2].decode()

    def wait_exit(self):
        self.process.wait(PATIENCE)
        return self.process.returncode

    def close(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


def _unless_refused(act):
    try:
        return act()
    except OSError:
        return None


GUNICORN = [sys.executable, "-m", "gunicorn"]


@pytest.fixture
def service(tmp_path):
    started = []

    def start(words, text, *arguments, **more):
        folder = tmp_path / f"service{len(started)}"
        started.append(Service(folder, words, text, arguments or ("main:app", "-k", "asgi"), **more))
        return started[-1]

    yield start
    for one in started:
        one.close()


BOUND = "bind = 'unix:{dir}/sock'\ntimeout = 2\ngraceful_timeout = 5\n" + EVERY_HOOK


def of_the_master(said):
    names = ("on_", "when_ready", "pre_fork", "child_exit", "nworkers_changed", "pre_exec")
    return [line for line in said if line.startswith(names)]


def of_the_workers(said):
    """Returns the hooks of each worker, in their order."""
    workers = {}
    for line in said:
        name, *values = line.split()
        if name in ("post_fork", "post_worker_init", "worker_int", "worker_abort", "worker_exit"):
            workers.setdefault(values[0], []).append(line)
    return workers


def both(service, text, story):
    """Lets both servers live through the same story, and returns what their hooks have said."""
    said = []
    for words in (GUNICORN, command()):
        one = service(words, text)
        one.wait_said("post_worker_init", 2)
        story(one)
        said.append(one.said())
        one.close()
    return said


def assert_same(theirs, ours):
    assert of_the_master(ours) == of_the_master(theirs)
    assert of_the_workers(ours) == of_the_workers(theirs)


def pids(one):
    """Returns the pids of the workers, the oldest first. They are children whose command has no other program in it."""
    found = {int(one.get()) for _ in range(40)}
    return sorted(found)


def test_a_start_a_change_of_the_number_and_a_stop_call_the_hooks_in_gunicorns_order(service):
    def story(one):
        one.signal(signal.SIGTTIN)
        one.wait_said("post_worker_init 3")
        one.signal(signal.SIGTTOU)
        one.wait_said("child_exit", 1)
        one.signal(signal.SIGTERM)
        assert one.wait_exit() == 0
        eventually("the last hook", lambda: "on_exit" in one.said())

    theirs, ours = both(service, BOUND, story)
    # Gunicorn ends the oldest worker at a TTOU, and oxicorn the one in the highest slot.
    ages = lambda said: sorted(line for line in said if line.startswith("child_exit"))
    assert ages(ours) == ages(theirs) == ["child_exit 1 False", "child_exit 2 False", "child_exit 3 False"]
    plain = lambda said: [line for line in of_the_master(said) if not line.startswith("child_exit")]
    assert plain(ours) == plain(theirs)
    assert of_the_workers(ours) == of_the_workers(theirs)


def test_a_worker_that_is_killed_has_the_hooks_of_gunicorn(service):
    def story(one):
        os.kill(pids(one)[0], signal.SIGKILL)
        one.wait_said("post_worker_init 3")
        one.wait_said("child_exit")

    theirs, ours = both(service, BOUND, story)
    # Which of the two was killed is not the same.
    exits = lambda said: [line.split()[0] for line in of_the_master(said)]
    assert sorted(exits(ours)) == sorted(exits(theirs))
    assert of_the_workers(ours).keys() == of_the_workers(theirs).keys() == {"1", "2", "3"}
    assert not any("worker_exit" in line for line in [*ours, *theirs])


def test_a_reload_calls_the_hooks_of_the_new_file_in_gunicorns_order(service):
    def story(one):
        one.write("gunicorn.conf.py", BOUND.replace('say("on_reload"', 'say("on_reload", "new"'))
        one.signal(signal.SIGHUP)
        one.wait_said("child_exit", 2)

    theirs, ours = both(service, BOUND, story)
    assert "on_reload new 2" in ours
    assert sorted(of_the_master(ours)) == sorted(of_the_master(theirs))
    heads = [[line for line in of_the_master(said) if "child_exit" not in line] for said in (ours, theirs)]
    assert heads[0] == heads[1]
    assert of_the_workers(ours) == of_the_workers(theirs)


@pytest.mark.parametrize("kind, app, line", [("asgi", APP, "line 12 in app"), ("sync", WSGI, "line 6 in app")])
def test_a_worker_that_hangs_runs_worker_abort_and_the_log_has_its_stack(service, kind, app, line):
    one = service(command(), BOUND, "main:app", "-k", kind, app=app, OXICORN_LOG__FILE="{dir}/log")
    one.wait_said("post_worker_init", 2)
    one.ask("/block")
    one.wait_said("worker_abort")
    one.wait_said("child_exit")
    said = one.said()
    (age,) = [line.split()[1] for line in said if line.startswith("worker_abort")]
    assert of_the_workers(said)[age][-2:] == [f"worker_abort {age}", f"worker_exit {age}"]
    log = one.text("log")
    assert f'main.py", {line}' in log and "sent by the master: hung" in log, log


def test_a_quick_stop_calls_worker_int_as_gunicorn_does(service):
    def story(one):
        one.signal(signal.SIGINT)
        assert one.wait_exit() == 0
        eventually("the last hook", lambda: "on_exit" in one.said())

    theirs, ours = both(service, BOUND, story)
    assert of_the_workers(ours) == of_the_workers(theirs)
    assert of_the_master(ours)[-1] == of_the_master(theirs)[-1] == "on_exit"


def test_an_upgrade_calls_pre_exec_and_then_the_hooks_of_a_start(service):
    one = service(command(), BOUND)
    one.wait_said("post_worker_init", 2)
    before = len(one.said())
    one.signal(signal.SIGUSR2)
    one.wait_said("post_worker_init", 4)
    one.wait_said("child_exit", 2)
    said = of_the_master(one.said()[before:])
    assert said[:4] == ["pre_exec", "nworkers_changed 2 None", "on_starting 2", "when_ready"], said


def test_what_on_starting_puts_into_the_environment_reaches_the_workers(service):
    text = """
    import os
    bind = "unix:{dir}/sock"
    os.environ.setdefault("NUMBER", "0")
    def on_starting(server):
        os.environ["NUMBER"] = "7"
        del os.environ["GONE"]
    def pre_fork(server, worker): os.environ["LAST"] = str(worker.age)
    def post_fork(server, worker):
        with open(os.environ["ORDER"], "a") as file:
            print("post_fork", os.environ["NUMBER"], os.environ.get("GONE"), os.environ.get("LAST", "0"), file=file)
    """
    one = service(command(), text, GONE="1")
    one.wait_said("post_fork 7 None")
    one.signal(signal.SIGTTIN)
    one.wait_said("post_fork 7 None", 2)
    assert one.said()[1] >= "post_fork 7 None 1"


def test_what_the_hooks_print_goes_where_it_goes_under_gunicorn(service):
    text = """
    import sys
    bind = "unix:{dir}/sock"
    def on_starting(server): print("begun")
    def when_ready(server): print("ready", file=sys.stderr)
    def post_fork(server, worker): print("forked")
    """
    for words in (GUNICORN, command()):
        one = service(words, text, PYTHONUNBUFFERED="1")
        eventually("all lines", lambda one=one: one.text("out").split() == ["begun", "forked"])
        assert "ready\n" in one.text("err")


@pytest.mark.parametrize("failure", ["sys.exit('no database')", "raise ValueError('no database')"])
def test_a_start_whose_on_starting_fails_is_refused(service, failure):
    text = f"import sys\nbind = 'unix:{{dir}}/sock'\ndef on_starting(server):\n    {failure}\n"
    # oxicorn has one exit code for a service that could not start.
    for words, code in ((GUNICORN, 1), (command(), 3)):
        one = service(words, text)
        assert one.wait_exit() == code
        assert "no database" in one.text("err")


HANGS = """
    import os, time
    bind = "unix:{dir}/sock"
    def when_ready(server):
        open("{dir}/hangs", "w").write(str(os.getpid()))
        time.sleep(3600)
    def child_exit(server, worker): pass
    """


def hanging(service):
    """Returns a service with a hook that hangs, and the pid of the process of the hook."""
    one = service(command(), HANGS)
    one.wait_listening()
    assert int(one.get()) > 0
    return one, int(eventually("the hook hangs", lambda: one.folder.joinpath("hangs").exists() and one.text("hangs")))


def test_a_hook_that_hangs_is_told(service):
    one, _ = hanging(service)

    # The line comes with an event, ten seconds later.
    def told():
        os.kill(int(one.get()), signal.SIGKILL)
        time.sleep(0.5)
        return "event=hooks_late" in one.text("err")

    eventually("the line", told, within=PATIENCE + 10)


def test_a_hook_that_hangs_outlives_neither_a_reload_nor_the_service(service):
    one, beside = hanging(service)
    one.signal(signal.SIGHUP)
    eventually("the reload", lambda: "event=reloaded" in one.text("err"))
    eventually("the process of the hook ends", lambda: not is_alive(beside), within=PATIENCE + 5)
    one.signal(signal.SIGTERM)
    assert one.wait_exit() == 0


def test_a_worker_whose_post_fork_fails_cannot_boot(service):
    text = "bind = 'unix:{dir}/sock'\ndef post_fork(server, worker):\n    raise ValueError('no database')\n"
    one = service(command(), text)
    assert one.wait_exit() == 3
    assert "gunicorn.conf.py, line 3: ValueError: no database" in one.text("err")


REQUESTS = """
    import os
    bind = "unix:{dir}/sock"
    def pre_request(worker, req):
        worker.log.info("%s %s", req.method, req.path)
    def post_request(worker, req, environ, resp):
        with open(os.environ["ORDER"], "a") as file:
            status, host = str(resp.status)[:3], dict(req.headers)["HOST"]
            print("request", req.uri, req.version, environ["QUERY_STRING"], status, resp.sent, host, file=file)
"""


@pytest.mark.parametrize("kind, app", [("asgi", APP), ("sync", WSGI)])
def test_the_hooks_of_a_request_run_as_gunicorns(service, kind, app):
    said = []
    for words in (GUNICORN, command()):
        # Gunicorn's ASGI worker has an environ for the hook only if it writes an access log.
        one = service(words, REQUESTS, "main:app", "-k", kind, "--access-logfile", "access", app=app)
        one.wait_listening()
        one.get("/a%20b?b=c")
        one.get("/d")
        one.wait_said("request", 2)
        said.append([line.replace(f" {len(one.get())} ", " length ") for line in one.said()[:2]])
        path = "/a b" if kind == "asgi" else "/a%20b"
        assert f"[INFO] GET {path}\n" in one.text("err")
    assert said[0] == said[1] == ["request /a%20b?b=c (1, 1) b=c 200 length x", "request /d (1, 1)  200 length x"]


PROMETHEUS = """
    import os
    from prometheus_client import multiprocess
    bind = "unix:{dir}/sock"
    workers = 2
    raw_env = ["PROMETHEUS_MULTIPROC_DIR={dir}/metrics"]
    def on_starting(server):
        os.makedirs("{dir}/metrics", exist_ok=True)
    def child_exit(server, worker):
        multiprocess.mark_process_dead(worker.pid)
"""


COUNTING = """
    import os
    from prometheus_client import CollectorRegistry, Gauge, generate_latest, multiprocess

    alive = Gauge("alive", "x", multiprocess_mode="livesum")

    async def app(scope, receive, send):
        if scope["type"] != "http":
            raise NotImplementedError
        alive.set(1)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        body = b"%d " % os.getpid() + generate_latest(registry).splitlines()[-1]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})
"""


def test_prometheus_in_several_workers_forgets_a_worker_that_died(service):
    one = service(command(), PROMETHEUS, app=COUNTING)
    one.wait_listening()
    eventually("both workers count", lambda: one.get().endswith(" alive 2.0"))
    os.kill(int(one.get().split()[0]), signal.SIGKILL)
    # A connection that the worker had accepted is lost with it.
    eventually("one is forgotten", lambda: (_unless_refused(one.get) or "").endswith(" alive 1.0"))


@pytest.mark.parametrize("kind, app", [("asgi", APP), ("sync", WSGI)])
def test_a_logconfig_dict_writes_the_lines_of_requests_once(service, kind, app):
    text = """
    bind = "unix:{dir}/sock"
    accesslog = "-"
    logconfig_dict = {
        "version": 1,
        "formatters": {"line": {"format": "%(name)s|%(message)s"}},
        "handlers": {"out": {"class": "logging.FileHandler", "formatter": "line", "filename": "{dir}/lines"}},
        "root": {"level": "INFO", "handlers": ["out"]},
        "loggers": {"gunicorn.access": {"level": "INFO", "handlers": ["out"], "propagate": False}},
    }
    access_log_format = "%(m)s %(U)s %(s)s"
    def when_ready(server): server.log.info("ready")
    """
    lines = []
    for words in (GUNICORN, command()):
        one = service(words, text, "main:app", "-k", kind, app=app)
        one.wait_listening()
        one.get("/a")
        eventually("the line", lambda one=one: "gunicorn.access" in one.text("lines"))
        lines.append([line for line in one.text("lines").splitlines() if line.startswith("gunicorn.access")])
        assert "GET" not in one.text("out")
    assert lines[0] == lines[1] == ["gunicorn.access|GET /a 200"]
    assert "ready" in one.text("err"), "the logger gunicorn.error has kept its handler"
