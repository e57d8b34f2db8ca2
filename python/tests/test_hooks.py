"""Promise: Gunicorn's server hooks get what they get under Gunicorn, and so does its logging configuration.

These tests drive the hooks directly. Those of `test_hooks_live.py` have a whole service, beside Gunicorn's.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest

import oxicorn
from harness import APPS

pytestmark = pytest.mark.needs_oxicorn

EVERY_HOOK = (APPS / "every_hook.py").read_text()


class Helper:
    """The helper process, with its end of the socket in the test."""

    def __init__(self, tmp_path, text, cfg=None, with_door=False):
        self.order, cfg = tmp_path / "order", cfg or {}
        file = tmp_path / "gunicorn.conf.py"
        file.write_text(text)
        self.socket, theirs = socket.socketpair()
        program = (
            "import json, socket, sys\n"
            "from oxicorn._compat import configuration, early, hooks\n"
            "from oxicorn._compat.collected import Collected\n"
            f"given = configuration.given_in(configuration.load('gunicorn.conf.py', {str(tmp_path)!r}), Collected())\n"
            f"given.update(configuration.given_outside({cfg!r}))\n"
            f"door = early.Door() if {with_door} else None\n"
            "print(door and door.name, flush=True)\n"
            f"hooks.serve(socket.socket(fileno={theirs.fileno()}), configuration.values(given), door)\n"
        )
        package = os.path.dirname(os.path.dirname(oxicorn.__file__))
        environment = {**os.environ, "ORDER": str(self.order), "PYTHONPATH": package, "GONE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        self.door = self.process.stdout.readline().strip()
        self.lines = self.socket.makefile("r")

    def tell(self, event, **more):
        self.socket.sendall(json.dumps({"event": event, **more}).encode() + b"\n")
        return json.loads(self.lines.readline())

    def end(self):
        self.lines.close()
        self.socket.close()
        out, err = self.process.communicate(timeout=10)
        assert self.process.returncode == 0, err
        return out, err

    def said(self):
        return self.order.read_text().splitlines()


@pytest.fixture
def helper(tmp_path):
    started = []

    def start(text, **more):
        started.append(Helper(tmp_path, textwrap.dedent(text), **more))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


def worker(age, pid=None, slot=0):
    entry = {"slot": slot, "age": age, "generation": 1}
    return entry if pid is None else {**entry, "pid": pid}


def test_each_event_calls_its_hooks_with_gunicorns_arguments(helper):
    one = helper(EVERY_HOOK)
    assert one.tell("starting", pid=77, workers=2)["done"] == 1
    one.tell("listening", addresses=["127.0.0.1:8000"])
    one.tell("forking", **worker(1))
    one.tell("forked", **worker(1, 101))
    one.tell("workers_changed", workers=3, before=2)
    one.tell("exited", **worker(1, 101))
    one.tell("executing")
    answer = one.tell("stopped")
    assert answer == {"done": 8, "environ": {"set": {}, "unset": []}, "error": None}
    one.end()
    assert one.said() == [
        "nworkers_changed 2 None",
        "on_starting 2",
        "when_ready",
        "pre_fork 1 [booting]",
        "nworkers_changed 3 2",
        "child_exit 1 False",
        "pre_exec",
        "on_exit",
    ]


def test_the_helper_of_a_reload_knows_the_workers_that_it_has_not_seen(helper):
    one = helper(
        """
        def nworkers_changed(server, new, old): print("nworkers_changed", new, old)
        def on_reload(server): print(sorted(server.WORKERS), server.pid, server.address, server.num_workers)
        def child_exit(server, worker): print(worker, worker.age, worker.slot)
        """
    )
    alive = [worker(4, 104), worker(5, 105, slot=1)]
    one.tell("reloading", pid=77, addresses=["127.0.0.1:8000", "/run/a.sock"], workers=2, before=2, alive=alive)
    # The number that the reload has told is not told again.
    one.tell("workers_changed", workers=2, before=2)
    one.tell("exited", **worker(5, 105, slot=1))
    assert one.end()[0].splitlines() == [
        "nworkers_changed 2 2",
        "[104, 105] 77 [('127.0.0.1', 8000), '/run/a.sock'] 2",
        "<Worker 105> 5 1",
    ]


def test_a_worker_is_the_same_object_from_pre_fork_to_child_exit(helper):
    one = helper(
        """
        def on_starting(server): server.known = []
        def pre_fork(server, worker):
            worker.number = len(server.known)
            server.known.append(worker)
        def child_exit(server, worker): print(worker.number, worker in server.known, [*server.WORKERS])
        """
    )
    one.tell("starting", pid=77, workers=2)
    one.tell("forking", **worker(1))
    one.tell("forked", **worker(1, 101))
    one.tell("forking", **worker(2, slot=1))
    one.tell("exited", **worker(2, 102, slot=1))
    one.tell("exited", **worker(1, 101))
    assert one.end()[0].splitlines() == ["1 True [101]", "0 True []"]


def test_what_a_hook_changes_in_the_environment_is_answered(helper):
    one = helper(
        """
        import os
        def on_starting(server):
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = "/tmp/x"
            del os.environ["GONE"]
        def when_ready(server):
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = "/tmp/x"
        """
    )
    answer = one.tell("starting", pid=77, workers=1)
    assert answer["environ"] == {"set": {"PROMETHEUS_MULTIPROC_DIR": "/tmp/x"}, "unset": ["GONE"]}
    assert one.tell("listening", addresses=[])["environ"] == {"set": {}, "unset": []}


def test_a_hook_that_raises_is_answered_and_the_next_one_runs(helper):
    one = helper(
        """
        import sys
        def on_starting(server):
            print("begun")
            raise ValueError("no database")
        def when_ready(server): sys.exit(4)
        def pre_fork(server, worker): sys.exit("bad")
        def on_exit(server): print("ended")
        """
    )
    answer = one.tell("starting", pid=77, workers=1)
    assert answer["error"].startswith("on_starting: ") and "gunicorn.conf.py, line 5" in answer["error"]
    assert answer["error"].endswith("ValueError: no database")
    assert answer["traceback"].startswith("Traceback (most recent call last):\n")
    assert "hooks.py" not in answer["traceback"], "the file's own frames only"
    answer = one.tell("listening", addresses=[])
    assert (answer["error"], answer["exit"]) == ("when_ready called sys.exit(4)", 4)
    assert one.tell("forking", **worker(1))["exit"] == 1
    one.tell("stopped")
    assert one.end()[0] == "begun\nended\n"


def test_the_log_of_a_hook_has_gunicorns_form(helper):
    one = helper(
        """
        def on_starting(server):
            server.log.info("%s workers at %s", server.cfg.workers, server.cfg.bind)
            server.log.debug("not at this level")
            server.log.log("warning", "by name")
        """,
        cfg={"bind": ["0.0.0.0:80"]},
    )
    one.tell("starting", pid=77, workers=1)
    lines = one.end()[1].splitlines()
    assert [line.partition(f"[{one.process.pid}] ")[2] for line in lines] == [
        "[INFO] 1 workers at ['0.0.0.0:80']",
        "[WARNING] by name",
    ]


def test_signals_for_the_whole_service_do_not_end_the_helper_before_on_exit(helper):
    one = helper("def on_exit(server): print('ended')")
    one.tell("starting", pid=77, workers=1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        one.process.send_signal(number)
    one.tell("stopped")
    assert one.end()[0] == "ended\n"


GIST = """
    import json, os
    def on_starting(server):
        server.free, server.kept = set(), [1]
    def pre_fork(server, worker):
        worker.number = worker.age + 10
        worker.thing = object()
        os.environ["LAST"] = str(worker.age)
        os.environ.pop("GONE", None)
    def post_fork(server, worker):
        print(worker.number, hasattr(worker, "thing"), server.kept, os.environ["LAST"], os.environ.get("GONE"))
"""


def test_what_pre_fork_sets_reaches_its_own_worker(helper, tmp_path):
    """Many files give each worker a number in `pre_fork`, and read it in `post_fork`."""
    one = helper(GIST, with_door=True)
    one.tell("starting", pid=os.getpid(), workers=1)
    one.tell("forking", **worker(1))
    one.tell("forking", **worker(2))
    begun = "_worker.age = {}\nworker.begin(json.dumps({{**json.loads(about), 'door': " + repr(one.door) + "}}))"
    done = in_a_worker(tmp_path, GIST, begun.format(1))
    assert done.stdout == "11 False [1] 2 None\n", done.stderr
    # This worker asks before its pre_fork has run.
    with ThreadPoolExecutor() as pool:
        done = pool.submit(in_a_worker, tmp_path, GIST, begun.format(3))
        one.tell("forking", **worker(3))
        assert done.result().stdout == "13 False [1] 3 None\n", done.result().stderr


def test_a_worker_goes_on_if_the_process_of_the_hooks_is_gone(tmp_path):
    text = "def post_fork(server, worker): print('forked')\n"
    done = in_a_worker(tmp_path, text, "worker.begin(about)\n", door="nobody-is-there")
    assert done.stdout == "forked\n"
    assert "pre_fork_missed (0, '[Errno 111] Connection refused')" in done.stderr


def test_a_wsgi_app_has_records_with_the_variables_of_its_environ(tmp_path):
    done = in_a_worker(
        tmp_path,
        """
        logconfig_dict = {"formatters": {"generic": {"format": "%(message)s"}}}
        access_log_format = '%(r)s %(s)s %(B)s %({RAW_URI}e)s %({x-a}i)s %({x-b}o)s %(h)s'
        """,
        """
        worker.begin(about)
        def app(environ, start_response):
            start_response("404 Not Found", [("X-B", "2")])
            return [b"abc"]
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/a", "RAW_URI": "/a?b", "QUERY_STRING": "b", "HTTP_X_A": "1",
                   "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.url_scheme": "http", "REMOTE_ADDR": "10.0.0.1"}
        items = _logging.with_wsgi_records(app)(environ, lambda status, headers: None)
        assert list(items) == [b"abc"]
        items.close()
        """,
    )
    assert done.stdout.splitlines()[0] == "GET /a?b HTTP/1.1 404 3 /a?b 1 2 10.0.0.1", done.stderr


LOGGER = """
    import logging
    from gunicorn.glogging import Logger
    accesslog = "-"
    access_log_format = "%(r)s %(s)s %(B)s"
    class NoHealth(logging.Filter):
        def filter(self, record): return "/health" not in record.getMessage()
    class logger_class(Logger):
        def setup(self, cfg):
            super().setup(cfg)
            logging.getLogger("gunicorn.access").addFilter(NoHealth())
        def access(self, resp, req, environ, request_time):
            if req.path != "/quiet":
                super().access(resp, req, environ, request_time)
    def post_fork(server, worker): worker.log.info("forked")
"""


def test_a_logger_class_writes_the_access_log(tmp_path):
    done = in_a_worker(
        tmp_path,
        LOGGER,
        """
        import asyncio
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"abc"})
        async def send(message):
            pass
        worker.begin(about)
        app = _logging.with_records(worker.wrap(app, "asgi"))
        for path in ("/a", "/health", "/quiet", "/b"):
            asyncio.run(app({**scope, "path": path, "scheme": "http"}, None, send))
        """,
    )
    assert done.stdout.splitlines() == ["GET /a HTTP/1.1 200 3", "GET /b HTTP/1.1 200 3"], done.stderr
    assert done.stderr.count("forked") == 1


def conf(text, **given):
    """Returns the settings of a configuration, and its names."""
    from oxicorn._compat import configuration
    from oxicorn._compat.collected import Collected

    namespace, collected = {}, Collected()
    exec(textwrap.dedent(text), namespace)
    found = configuration.given_in(namespace, collected)
    assert not collected.problems
    return configuration.values({**found, **configuration.given_outside(given)}), namespace


def test_cfg_has_every_setting_of_gunicorn_with_gunicorns_values():
    from gunicorn import config

    from oxicorn._compat.objects import Cfg

    text = "workers = '3'\nbind = ['a:1', '[::1]:2']\nraw_env = 'A=1=2'\nproxy_allow_ips = '::1, *'\npythonpath = 'a,b'"
    values, namespace = conf(text, timeout=7)
    ours, theirs = Cfg(values), config.Config()
    for name in ("workers", "bind", "raw_env", "proxy_allow_ips", "pythonpath"):
        theirs.set(name, namespace[name])
    theirs.set("timeout", 7)
    # The first two are classes with Gunicorn, and the next one is a number of Python's module ssl. Its `chdir` is the
    # folder in which the module was imported, perhaps by another test.
    other = {"worker_class", "logger_class", "ssl_version", "chdir", "control_socket", "config"}
    assert ours.settings.keys() | {"config"} == theirs.settings.keys() | {"config"}
    for name in theirs.settings.keys() - other:
        if not callable(getattr(theirs, name)):
            assert getattr(ours, name) == getattr(theirs, name), name
            assert ours.settings[name].get() == theirs.settings[name].get(), name
    for name in ("address", "env", "is_ssl", "uid", "gid", "worker_class_str"):
        assert getattr(ours, name) == getattr(theirs, name), name
    ours.post_fork(1, 2)
    with pytest.raises(AttributeError, match="cannot be set"):
        ours.workers = 4
    with pytest.raises(AttributeError, match="cfg of oxicorn has no 'wsgi'"):
        ours.wsgi  # noqa: B018


@pytest.mark.parametrize("count", [2, 3, 4])
def test_post_request_may_leave_its_last_arguments_out(count):
    from oxicorn._compat.objects import hooks_of

    values, namespace = conf(
        f"got = []\ndef post_request({', '.join('abcd'[:count])}): got.append(({', '.join('abcd'[:count])}))"
    )
    hooks_of(values)["post_request"](1, 2, 3, 4)
    assert namespace["got"] == [(1, 2, 3, 4)[:count]]


def test_the_note_names_what_a_hook_of_the_master_cannot_do(tmp_path):
    from oxicorn._compat import hooks

    file = tmp_path / "gunicorn.conf.py"
    file.write_text(
        textwrap.dedent(
            """
            import logging, os
            cache, count, names = {}, 0, []

            def on_starting(server):
                global count
                count += 1
                names.append(3)
                os.environ["A"] = "1"
                server.mine = 3

            def when_ready(server):
                cache["a"] = 1
                names = []
                names.append(4)
                logging.getLogger("gunicorn.access").addFilter(str)

            def pre_fork(server, worker):
                worker.number = 3

            def post_fork(server, worker):
                cache["b"] = 2
            """
        )
    )
    notes = hooks.notes(str(file))
    assert [(note["origin"].rpartition(":")[2], note["text"].partition(",")[0]) for note in notes] == [
        ("7", "on_starting changes count"),
        ("8", "on_starting changes names"),
        ("13", "when_ready changes cache"),
        ("16", "when_ready changes a logger"),
    ]
    assert all(note["level"] == "warn" and "os.environ" in note["text"] for note in notes)


SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/a b",
    "raw_path": b"/a%20b",
    "query_string": b"c=d",
    "http_version": "1.1",
    "scheme": "http",
    "client": ("10.0.0.1", 4711),
    "server": ("127.0.0.1", 8000),
    "headers": [(b"host", b"x"), (b"x-a", b"1"), (b"x-a", b"2")],
}


async def asgi_app(scope, receive, send):
    if scope["path"] == "/fail":
        raise LookupError("nothing there")
    headers = [(b"x-scheme", scope["scheme"].encode()), (b"x-count", b"%d" % len(scope["headers"]))]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": b"abc"})


def wrapped(text, app, interface):
    from oxicorn._compat import objects, requests

    values, namespace = conf(text)
    cfg = objects.Cfg(values)
    one = objects.Worker(cfg, objects.Log(cfg), 1)
    make = requests.wrap_wsgi if interface == "wsgi" else requests.wrap_asgi
    return make(app, one, objects.hooks_of(values)), namespace, one


SEES = """
    seen = []
    def pre_request(worker, req):
        req.mine = 5
        seen.append((worker.nr, req.method, req.uri, req.path, req.query, req.version, req.scheme, req.remote_addr))
        seen.append(req.headers[:])
        if req.path == "/change":
            req.scheme = "https"
            req.headers.append(("X-NEW", "3"))
    def post_request(worker, req, environ, resp):
        seen.append((req.mine, resp.status, resp.status_code, resp.headers, resp.sent, resp.headers_sent))
        seen.append({name: environ[name] for name in (
            "REQUEST_METHOD", "PATH_INFO", "RAW_URI", "QUERY_STRING", "REMOTE_ADDR", "HTTP_X_A", "wsgi.url_scheme")})
"""


def run_asgi(app, **changes):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(app({**SCOPE, **changes}, None, send))
    return sent


def test_the_hooks_of_a_request_see_an_asgi_request():
    app, namespace, one = wrapped(SEES, asgi_app, "asgi")
    run_asgi(app)
    assert namespace["seen"] == [
        (1, "POST", "/a%20b?c=d", "/a b", "c=d", (1, 1), "http", ("10.0.0.1", 4711)),
        [("HOST", "x"), ("X-A", "1"), ("X-A", "2")],
        (5, 201, 201, [("x-scheme", "http"), ("x-count", "3")], 3, True),
        {
            "REQUEST_METHOD": "POST", "PATH_INFO": "/a b", "RAW_URI": "/a%20b?c=d", "QUERY_STRING": "c=d",
            "REMOTE_ADDR": "10.0.0.1", "HTTP_X_A": "1,2", "wsgi.url_scheme": "http",
        },
    ]  # fmt: skip
    sent = run_asgi(app, path="/change", raw_path=b"/change", http_version="2")
    assert sent[0]["headers"] == [(b"x-scheme", b"https"), (b"x-count", b"4")]
    assert one.nr == 2


def test_post_request_runs_after_an_app_that_fails_and_its_own_failure_is_told(caplog):
    app, namespace, _ = wrapped("def post_request(worker, req): raise KeyError(req.path)", asgi_app, "asgi")
    with pytest.raises(LookupError):
        run_asgi(app, path="/fail", raw_path=b"/fail")
    import logging

    logging.getLogger("gunicorn.error").propagate = True
    run_asgi(app)
    record = caplog.records[-1]
    assert record.getMessage() == "Exception in post_request hook" and record.exc_info[0] is KeyError


def wsgi_app(environ, start_response):
    if environ["PATH_INFO"] == "/fail":
        raise LookupError("nothing there")
    headers = [("X-Scheme", environ["wsgi.url_scheme"]), ("X-New", environ.get("HTTP_X_NEW", ""))]
    write = start_response("201 Created", headers)
    write(b"ab")
    return [b"cde"]


def run_wsgi(app, **changes):
    environ = {
        "REQUEST_METHOD": "POST", "RAW_URI": "/a%20b?c=d", "PATH_INFO": "/a b", "QUERY_STRING": "c=d",
        "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.url_scheme": "http", "REMOTE_ADDR": "10.0.0.1", "REMOTE_PORT": "4711",
        "HTTP_HOST": "x", "HTTP_X_A": "1,2", "CONTENT_TYPE": "text/plain", "CONTENT_LENGTH": "", **changes,
    }  # fmt: skip
    answered, body = [], []

    def start_response(status, headers, exc_info=None):
        answered.append((status, headers))
        return body.append

    items = app(environ, start_response)
    body += items
    items.close()
    return *answered[0], b"".join(body)


def test_the_hooks_of_a_request_see_a_wsgi_request():
    app, namespace, one = wrapped(SEES, wsgi_app, "wsgi")
    assert run_wsgi(app)[2] == b"abcde"
    assert namespace["seen"] == [
        (1, "POST", "/a%20b?c=d", "/a%20b", "c=d", (1, 1), "http", ("10.0.0.1", 4711)),
        [("HOST", "x"), ("X-A", "1,2"), ("CONTENT-TYPE", "text/plain")],
        (5, "201 Created", 201, [("X-Scheme", "http"), ("X-New", "")], 5, True),
        {
            "REQUEST_METHOD": "POST", "PATH_INFO": "/a b", "RAW_URI": "/a%20b?c=d", "QUERY_STRING": "c=d",
            "REMOTE_ADDR": "10.0.0.1", "HTTP_X_A": "1,2", "wsgi.url_scheme": "http",
        },
    ]  # fmt: skip
    _, headers, _ = run_wsgi(app, RAW_URI="/change")
    assert headers == [("X-Scheme", "https"), ("X-New", "3")]
    with pytest.raises(LookupError):
        run_wsgi(app, PATH_INFO="/fail")
    assert namespace["seen"][-2][1] is None, "post_request knows of no response"


A_SCOPE = {
    "type": "http",
    "method": "GET",
    "path": "/a",
    "query_string": b"",
    "http_version": "1.1",
    "headers": [],
    "client": ("10.0.0.1", 80),
}


def answer_of(app, environ=None):
    """Calls a WSGI app as a server does, and returns what it got, in order."""
    got = []

    def start_response(status, headers, exc_info=None):
        got.append((status, dict(headers), exc_info and exc_info[0]))
        return lambda data: got.append(data)

    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "SERVER_PROTOCOL": "HTTP/1.1", **(environ or {})}
    items = app({"wsgi.url_scheme": "http", **environ}, start_response)
    got += items
    items.close()
    return got


def test_a_wsgi_response_is_the_same_behind_the_hooks():
    def listed(environ, start_response):
        start_response("200 OK", [])
        return [b"ab", b"c"]

    def generated(environ, start_response):
        start_response("200 OK", [])
        yield b"ab"
        yield b"c"

    def corrected(environ, start_response):
        start_response("200 OK", [])
        try:
            raise KeyError
        except KeyError:
            start_response("500 Sorry", [], sys.exc_info())
        return []

    def twice(environ, start_response):
        start_response("200 OK", [])
        start_response("200 OK", [])

    def wrap(app):
        return wrapped("def post_request(worker, req): pass", app, "wsgi")[0]

    assert answer_of(wrap(listed)) == [("200 OK", {"Content-Length": "3"}, None), b"ab", b"c"]
    assert answer_of(wrap(listed), {"REQUEST_METHOD": "HEAD"})[0] == ("200 OK", {}, None)
    assert answer_of(wrap(generated)) == [("200 OK", {}, None), b"ab", b"c"]
    assert answer_of(wrap(corrected)) == [("500 Sorry", {"Content-Length": "0"}, KeyError)]
    with pytest.raises(AssertionError):
        answer_of(wrap(twice))


def test_the_file_of_a_wsgi_app_stays_one_for_the_server():
    class FileWrapper:
        def close(self):
            namespace["seen"].append("closed")

    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "7")])
        return FileWrapper()

    text = "seen = []\ndef post_request(worker, req, environ, resp): seen.append((resp.status, resp.sent))\n"
    app, namespace, _ = wrapped(text, app, "wsgi")
    environ = {"wsgi.file_wrapper": FileWrapper, "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.url_scheme": "http"}
    environ |= {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
    file = app(environ, lambda status, headers: None)
    assert type(file) is FileWrapper
    file.close()
    assert namespace["seen"] == ["closed", ("200 OK", 7)]


def in_a_worker(tmp_path, text, program, **about):
    """Runs a program in the place of a worker, with this configuration, and returns what it has done."""
    file = tmp_path / "gunicorn.conf.py"
    file.write_text(textwrap.dedent(text))
    about = {"configuration": "gunicorn.conf.py", "folder": str(tmp_path), **about}
    begun = (
        "import json, os, signal, sys, threading, time\n"
        "from oxicorn import _logging, _oxicorn, _worker\n"
        "from oxicorn._compat import worker\n"
        # Only the master and its workers have a log.
        "_oxicorn.pre_fork_missed = lambda *told: print('pre_fork_missed', told, file=sys.stderr)\n"
        "_oxicorn.hook_failed = lambda *told: print('hook_failed', told, file=sys.stderr)\n"
        "_logging.install('info')\n"
        f"about = {json.dumps(about)!r}\n"
        f"scope = {A_SCOPE!r}\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(oxicorn.__file__))}
    environment |= {"ORDER": str(tmp_path / "order"), "GONE": "1"}
    return subprocess.run(
        [sys.executable, "-c", begun + textwrap.dedent(program)],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=20,
    )


def test_a_worker_runs_its_hooks_in_gunicorns_order(tmp_path):
    done = in_a_worker(
        tmp_path,
        EVERY_HOOK,
        """
        _worker.age = 3
        worker.begin(about)
        assert os.getcwd() == "/"
        worker.loaded()
        app = worker.wrap(len, "asgi")
        assert app is len, "nothing is paid for hooks that are not there"
        signal.raise_signal(signal.SIGINT)
        worker.end()
        worker.end()
        """,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "order").read_text().splitlines() == [
        "post_fork 3 True", "post_worker_init 3", "worker_int 3", "worker_exit 3",
    ]  # fmt: skip


@pytest.mark.parametrize("interface", ["asgi", "wsgi"])
def test_a_worker_that_is_aborted_runs_worker_abort_and_leaves_its_stacks(tmp_path, interface):
    done = in_a_worker(
        tmp_path,
        EVERY_HOOK,
        f"""
        import faulthandler
        faulthandler.enable(2)
        _worker.stacks = 2
        worker.begin(about)
        worker.wrap(len, {interface!r})
        os.kill(os.getpid(), signal.SIGABRT)
        for _ in range(200):
            time.sleep(0.1)
        """,
    )
    assert done.returncode == -signal.SIGABRT, done.stderr
    assert (tmp_path / "order").read_text().splitlines()[1:] == ["worker_abort 0", "worker_exit 0"]
    assert done.stderr.startswith("Fatal Python error: Aborted") and "<module>" in done.stderr


def test_a_crash_of_a_worker_with_worker_abort_leaves_its_stacks(tmp_path):
    done = in_a_worker(
        tmp_path,
        EVERY_HOOK,
        """
        import ctypes, faulthandler
        faulthandler.enable(2)
        _worker.stacks = 2
        worker.begin(about)
        ctypes.CDLL(None).abort()
        """,
    )
    assert done.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in done.stderr and "<module>" in done.stderr
    assert (tmp_path / "order").read_text().splitlines() == ["post_fork 0 True"]


def test_a_worker_that_is_not_alive_any_more_drains(tmp_path):
    done = in_a_worker(
        tmp_path,
        "def post_fork(server, worker):\n    worker.alive = False\n    worker.alive = False\n",
        """
        _worker.take_sigterm()
        worker.begin(about)
        sys.exit(0 if _worker._term_seen else 1)
        """,
    )
    assert done.returncode == 0, done.stderr


def test_hooks_that_raise_in_a_worker_fail_its_boot_or_let_its_end_go_on(tmp_path):
    done = in_a_worker(
        tmp_path,
        """
        def worker_exit(server, worker): raise OSError("too late")
        def post_worker_init(worker): raise KeyError("early")
        """,
        """
        worker.begin(about)
        try:
            worker.loaded()
        except KeyError as error:
            print(_worker.explain(error, "app")[0])
        worker.end()
        print("ended")
        """,
    )
    assert done.stdout.splitlines() == [f"{tmp_path}/gunicorn.conf.py, line 3: KeyError: 'early'", "ended"]
    assert "hook_failed (0, 'worker_exit: " in done.stderr and "OSError: too late" in done.stderr


def test_a_logging_configuration_is_applied_as_gunicorn_applies_it(tmp_path):
    text = """
    logconfig_dict = {
        "formatters": {"generic": {"format": "%(name)s|%(levelname)s|%(message)s"}},
        "loggers": {
            "gunicorn.access": {"level": "INFO", "handlers": ["console"], "propagate": False, "qualname": "x"},
            "shop": {"level": "DEBUG"},
        },
    }
    access_log_format = "%(r)s %(u)s"
    """
    done = in_a_worker(
        tmp_path,
        text,
        """
        import logging
        worker.begin(about)
        logging.getLogger("shop").debug("to the root's handler, which is Gunicorn's")
        logging.getLogger("gunicorn.error").info("to the handler that was there")
        _logging._record({**scope, "headers": [(b"authorization", b"Basic YW5uOmE=")]}, 200, [], 5, 0.1)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "shop|DEBUG|to the root's handler, which is Gunicorn's",
        "gunicorn.access|INFO|GET /a HTTP/1.1 ann",
    ]
    assert done.stderr.endswith("[INFO] to the handler that was there\n")


INI = """
[loggers]
keys = root, access
[handlers]
keys = out
[formatters]
keys = line
[logger_root]
level = INFO
handlers = out
[logger_access]
level = INFO
handlers = out
propagate = 0
qualname = {logger}
[handler_out]
class = StreamHandler
formatter = line
args = (sys.stdout,)
[formatter_line]
format = %(name)s|%(message)s
"""
DICT = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(name)s|%(message)s"}},
    "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stdout"}},
    "root": {"level": "INFO", "handlers": ["out"]},
    "loggers": {"uvicorn.access": {"handlers": ["out"], "propagate": False}},
}
YAML = """
version: 1
disable_existing_loggers: false
formatters:
  line: {format: "%(name)s|%(message)s"}
handlers:
  out: {class: logging.StreamHandler, formatter: line, stream: ext://sys.stdout}
root: {level: INFO, handlers: [out]}
loggers:
  uvicorn.access: {handlers: [out], propagate: false}
"""


@pytest.mark.parametrize(
    "key, name, text",
    [
        ("logconfig", "log.ini", INI.format(logger="gunicorn.access")),
        ("logconfig_json", "log.json", json.dumps(DICT).replace("uvicorn.access", "gunicorn.access")),
        ("log_config", "log.ini", INI.format(logger="uvicorn.access")),
        ("log_config", "log.json", json.dumps(DICT)),
        ("log_config", "log.yaml", YAML),
    ],
)
def test_each_form_of_a_logging_configuration_is_applied(tmp_path, key, name, text):
    (tmp_path / name).write_text(text)
    about = {key: str(tmp_path / name)} if key == "log_config" else {"cfg": {key: str(tmp_path / name)}}
    done = in_a_worker(
        tmp_path,
        "",
        """
        import logging
        worker.begin(about)
        logging.getLogger("shop").info("sold")
        _logging._record(scope, 200, [], 5, 0.1)
        """,
        configuration=None,
        **about,
    )
    assert done.returncode == 0, done.stderr
    sold, access = done.stdout.splitlines()
    assert sold == "shop|sold"
    if key == "log_config":
        assert access == 'uvicorn.access|10.0.0.1:80 - "GET /a HTTP/1.1" 200'
    else:
        assert access.startswith("gunicorn.access|10.0.0.1 - - [")
        assert access.endswith('"GET /a HTTP/1.1" 200 5 "-" "-"')


def test_uvicorns_formatters_need_no_uvicorn(tmp_path):
    line = "%(levelprefix)s %(request_line)s %(status_code)s"
    config = {**DICT, "formatters": {"line": {"()": "uvicorn.logging.AccessFormatter", "fmt": line}}}
    (tmp_path / "log.json").write_text(json.dumps(config))
    done = in_a_worker(
        tmp_path,
        "",
        """
        class NoUvicorn:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "uvicorn":
                    raise ModuleNotFoundError(name)
        from oxicorn._compat import logconfig
        import importlib.util
        real = importlib.util.find_spec
        logconfig.importlib.util.find_spec = lambda name: None if name == "uvicorn" else real(name)
        sys.meta_path.insert(0, NoUvicorn())
        worker.begin(about)
        _logging._record(scope, 404, [], 5, 0.1)
        """,
        configuration=None,
        log_config=str(tmp_path / "log.json"),
    )
    assert done.stdout == "INFO:     GET /a HTTP/1.1 404 Not Found\n", done.stderr


@pytest.mark.parametrize(
    "about, said",
    [
        ({"log_config": "gone.json"}, "--log-config gone.json: FileNotFoundError: "),
        ({"cfg": {"logconfig_dict": {"handlers": 3}}}, "logconfig_dict: "),
        ({"cfg": {"logconfig": "gone.ini"}}, "logconfig gone.ini: FileNotFoundError: "),
    ],
)
def test_a_wrong_logging_configuration_is_told_in_one_sentence(tmp_path, about, said):
    done = in_a_worker(
        tmp_path,
        "",
        """
        try:
            worker.begin(about)
        except Exception as error:
            print(_worker.explain(error, "main:app")[0])
        """,
        configuration=None,
        **about,
    )
    assert said in done.stdout and done.stdout.count("\n") == 1, done.stdout + done.stderr


def test_a_logging_configuration_with_access_handlers_switches_the_access_log_off(tmp_path):
    from oxicorn._compat import logconfig
    from oxicorn._compat.collected import Collected

    (tmp_path / "log.yaml").write_text(YAML)
    (tmp_path / "log.ini").write_text(INI.format(logger="gunicorn.access"))

    def settled(about, **values):
        collected = Collected()
        logconfig.settle_access(about, values, collected)
        assert not collected.problems
        return [entry["value"] for entry in collected.settings if entry["key"] == "log.access"]

    assert settled({"log_config": str(tmp_path / "log.yaml")}) == ["off"]
    assert settled({}, logconfig=str(tmp_path / "log.ini")) == ["off"]
    assert settled({}, logconfig_dict={"loggers": {"shop": {}}}) == []
    # Without a table of loggers Gunicorn's own one counts, and that has the access log.
    assert settled({}, logconfig_dict={"root": {"level": "INFO", "handlers": []}}) == ["off"]
