"""Promise: a command line or a configuration of Gunicorn or Uvicorn runs here with `oxicorn` in the place of its first
word, and the file that `oxicorn import` makes of it serves the same."""

import json
import os
import shlex
import socket
import subprocess
import sys

import pytest

from clients import get
from harness import APPS, PATIENCE, Server, command, eventually

pytestmark = pytest.mark.needs_oxicorn

APP = """
import os

from toolkit import record


class Asgi:
    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            record("started", environment=dict(os.environ), cwd=os.getcwd())
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        body = f"{scope['root_path']} {scope['client'] and scope['client'][0]} {os.getpid()}".encode()
        head = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
        await send(head)
        await send({"type": "http.response.body", "body": body})


app = Asgi()


def create_app():
    return app


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"wsgi {environ['PATH_INFO']} {os.getpid()}".encode()]
"""


class Moved(Server):
    """A server that is started with the words of another one. What the tests need comes from the environment."""

    def __init__(self, words, workers=1, files=None, environment=None):
        super().__init__(None, workers=workers, files={"shop/__init__.py": "", "shop/main.py": APP, **(files or {})})
        self.words = [self.fill(word) for word in shlex.split(words)]
        self.environment |= {
            "PYTHONPATH": str(APPS),
            "OXICORN_LOG__FORMAT": "json",
            "OXICORN_LOG__FILE": self.fill("{dir}/log.json"),
            "OXICORN_CONTROL__SOCKET": self.fill("{dir}/control.sock"),
            **{name: self.fill(value) for name, value in (environment or {}).items()},
        }

    def write_settings(self):
        """The words are the settings."""

    def text_of(self, name):
        """The log is on stderr if the words say so."""
        text = super().text_of(name)
        return text or super().text_of("stderr.log") if name == "log.json" else text

    def command_line(self):
        return [*command(), *self.words]

    def ctl(self, *words, within=20):
        return subprocess.run(
            [*command(), *words], cwd=self.cwd, env=self.environment, capture_output=True, text=True, timeout=within
        )

    def config(self):
        done = self.ctl("config", "--json", *(word for word in self.words if word != "run"))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def assert_told(self, origins):
        """Asserts that the start has said of these settings, and of no others, that they do not mean the same."""
        said = [entry["message"] for entry in self.events("compat")]
        assert len(said) == len(origins), said
        for origin in origins:
            assert any(line.startswith(f"{origin}: ") for line in said), (origin, said)


@pytest.fixture
def move():
    mine = []

    def move(words, **options):
        server = Moved(words, **options)
        mine.append(server)
        return server

    yield move
    for server in mine:
        server.close()


LINES = [
    # words, workers, settings that are not the defaults, what is told
    (
        "shop.main:app --workers 2 --worker-class uvicorn.workers.UvicornWorker --bind 127.0.0.1:0 --timeout 120", 2,
        {"workers.timeout": "2m", "python.interface": "asgi"},
        {"--timeout 120"},
    ),
    (
        "-w 1 -k uvicorn_worker.UvicornWorker -b 127.0.0.1:0 --max-requests 1000 --max-requests-jitter 50"
        " shop.main:app",
        1,
        {"workers.max_requests": 1000, "workers.max_requests_jitter": 50},
        set(),
    ),
    (
        "--worker-tmp-dir /dev/shm --workers=2 --threads=4 --worker-class=gthread --log-file=- --bind=127.0.0.1:0"
        " shop.main", 2,
        {"python.threads": 4, "python.interface": "wsgi"},
        {"--worker-tmp-dir /dev/shm"},
    ),
    (
        "shop.main:application -b 127.0.0.1:0 -w 1 -k gevent --worker-connections 200 --preload", 1,
        {"python.threads": 32, "http.worker_connections": 200},
        {"-k gevent", "--worker-connections 200", "--preload"},
    ),
    (
        "shop.main:app -k asgi --bind 127.0.0.1:0 -e STAGE=live --chdir {dir}/shop/.. --pid {dir}/shop.pid -n shop"
        " --forwarded-allow-ips=* --access-logfile - --keep-alive 5 --graceful-timeout 20", 1,
        {"process.name": "shop", "http.keep_alive": "5s", "http.forwarded_allow_ips": ["*"], "log.access": "-"},
        set(),
    ),
    (
        "shop.main:app --host 127.0.0.1 --port 0", 1,
        {"workers.count": 1, "log.access": "-"},
        set(),
    ),
    (
        "shop.main:create_app --factory --host 127.0.0.1 --port 0 --workers 2 --proxy-headers --no-access-log", 2,
        {"log.access": "off"},
        set(),
    ),
    (
        "shop/main.py:app --port 0 --loop uvloop --http httptools --root-path /api --limit-max-requests 100"
        " --timeout-keep-alive 7 --timeout-graceful-shutdown 9 --log-level info", 1,
        {"python.root_path": "/api", "workers.max_requests": 100, "workers.graceful_timeout": "9s"},
        {"--loop uvloop", "--http httptools"},
    ),
    (
        "run shop.main:app --host 127.0.0.1 --port 0 --header x:y --no-date-header --reload", 1,
        {},
        {"--header x:y", "--no-date-header", "--reload"},
    ),
    (
        "shop.main:app --bind=127.0.0.1:0 -k uvicorn.workers.UvicornH11Worker --backlog 512 --reuse-port"
        " --limit-request-line 4094 --limit-request-field_size 4096 --limit-request-fields 50 --root-path /v1", 1,
        {"server.backlog": 512, "http.limit_request_line": 4094, "python.root_path": "/v1", "workers.count": 1},
        set(),
    ),
    (
        "shop.main:application --host 127.0.0.1 --port 0 --interface wsgi --timeout-keep-alive 0 --use-colors", 1,
        {"python.threads": 10, "http.keep_alive": "1ms"},
        {"--use-colors"},
    ),
    (
        "shop.main:app -b 127.0.0.1:0 --worker-class asgi --capture-output -R --statsd-host 127.0.0.1:8125"
        " --asgi-lifespan on --threads 2", 1,
        {"python.lifespan": "on", "python.threads": 2},
        {"--capture-output", "-R", "--statsd-host 127.0.0.1:8125"},
    ),
]  # fmt: skip


@pytest.mark.parametrize("words, workers, settings, told", LINES)
def test_a_command_line_runs_unchanged(move, words, workers, settings, told):
    server = move(words, workers=workers)
    config = server.config()
    # What comes as text is shown as text in a table of the app.
    assert {key: str(config[key]["value"]) for key in settings} == {key: str(settings[key]) for key in settings}
    server.serving()
    answer = get(server, "/x")
    assert answer.status == 200 and int(answer.text.split()[-1]) in server.serving_pids()
    server.assert_told(told)
    server.stop()


def test_the_folder_the_variables_and_the_pidfile_are_those_of_the_line(move):
    server = move(
        "shop.main:app -k asgi --bind 127.0.0.1:0 -e STAGE=live --chdir site --pid shop.pid",
        files={"site/shop/__init__.py": "", "site/shop/main.py": APP, "shop/main.py": "undefined"},
    ).serving()
    [started] = server.wait_record("started")
    assert started["environment"]["STAGE"] == "live" and started["cwd"] == f"{server.dir}/site"
    assert server.path("site/shop.pid").read_text().strip() == str(server.pid)


def test_a_unix_socket_is_open_as_the_other_server_opens_it(move):
    for words, mode in (("--uds {dir}/x.sock", 0o666), ("-b unix:{dir}/x.sock -k asgi", 0o666),
                        ("-b unix:{dir}/x.sock -m 007 -k asgi", 0o660)):  # fmt: skip
        server = move(f"shop.main:app {words}").serving()
        assert os.stat(server.path("x.sock")).st_mode & 0o777 == mode
        server.stop()


def test_what_cannot_be_is_refused_all_at_once(move):
    server = move("shop.main:app -k gevnt -D --threads many --bind 127.0.0.1:0:0").start()
    assert server.wait_exit() == 2
    said = server.text_of("stderr.log")
    for origin in ("-k gevnt", "-D", "--threads many", "--bind"):
        assert f"oxicorn: error: {origin}: " in said
    checked = server.ctl("check", *server.words)
    assert checked.returncode == 2 and checked.stderr.splitlines() == said.splitlines()


def test_a_mistyped_flag_gets_oxicorns_own_answer(move):
    server = move("shop.main:app -k asgi --worker 2").start()
    assert server.wait_exit() == 2 and "unexpected argument '--worker' found" in server.text_of("stderr.log")


CONFIGURATION = """
import multiprocessing
import os

bind = os.environ.get("BIND", "127.0.0.1:0")
workers = int(os.environ.get("COUNT", multiprocessing.cpu_count() * 2 + 1))
worker_class = "uvicorn.workers.UvicornWorker"
wsgi_app = "shop.main:app"
raw_env = ["STAGE=" + open("stage").read().strip()]
accesslog = "-"
access_log_format = '%(h)s "%(r)s" %(s)s'
forwarded_allow_ips = "*"
secure_scheme_headers = {"X-FORWARDED-PROTO": "https"}
preload_app = True
worker_tmp_dir = "/dev/shm"
"""


def test_a_configuration_is_found_and_run_at_the_start_and_at_each_reload(move):
    server = move("", workers=2, files={"gunicorn.conf.py": CONFIGURATION, "stage": "one"}, environment={"COUNT": "2"})
    config = server.config()
    assert config["workers.count"]["origin"] == "gunicorn.conf.py:6"
    server.serving()
    server.assert_told({"gunicorn.conf.py:14: preload_app", "gunicorn.conf.py:15: worker_tmp_dir"})
    assert {entry["environment"]["STAGE"] for entry in server.wait_record("started", 2)} == {"one"}
    get(server, "/seen")
    line = '127.0.0.1 "GET /seen HTTP/1.1" 200'
    eventually("the access log has the line", lambda: line in server.text_of("stdout.log"))
    server.write("stage", "two")
    done = server.ctl("reload")
    assert done.returncode == 0, done.stderr
    assert {entry["environment"]["STAGE"] for entry in server.wait_record("started", 4)[2:]} == {"two"}
    server.write("gunicorn.conf.py", CONFIGURATION + "bind = undefined\n")
    done = server.ctl("reload")
    assert done.returncode != 0 and "gunicorn.conf.py:16: NameError: name 'undefined' is not defined" in done.stderr
    assert get(server, "/").status == 200


CONFIGURATIONS = {
    "django": (
        """
pythonpath = "site"
bind = ["127.0.0.1:0", "unix:web.sock"]
workers, threads = 2, 4
timeout = 90
keepalive = 5
max_requests = 1000
max_requests_jitter = 100
errorlog = "error.log"
loglevel = "info"
proc_name = "shop"
pidfile = "shop.pid"
user = group = None
""",
        "shop.main", 2, "wsgi",
    ),
    "container": (
        """
import json
import os

host = os.getenv("HOST", "127.0.0.1")
port = os.getenv("SHOP_PORT", "0")
cores = os.cpu_count() or 1
web_concurrency = max(int(float(os.getenv("WORKERS_PER_CORE", "1")) * cores), 2)
if os.getenv("MAX_WORKERS"):
    web_concurrency = min(web_concurrency, int(os.getenv("MAX_WORKERS")))

bind = os.getenv("BIND") or f"{host}:{port}"
workers = web_concurrency
worker_class = "uvicorn.workers.UvicornWorker"
worker_tmp_dir = "/dev/shm"
loglevel = os.getenv("SHOP_LOG_LEVEL", "info")
accesslog = os.getenv("ACCESS_LOG", "-") or None
errorlog = os.getenv("ERROR_LOG", "-") or None
graceful_timeout = int(os.getenv("GRACEFUL_TIMEOUT", "120"))
timeout = int(os.getenv("TIMEOUT", "120"))
keepalive = int(os.getenv("KEEP_ALIVE", "5"))
print(json.dumps({"workers": workers, "bind": bind}))
""",
        "shop.main:app", 1, "",
    ),
    "hooks": (
        """
import logging

bind = "127.0.0.1:0"
worker_class = "gthread"
threads = 2
preload_app = True
logconfig_dict = {
    "version": 1, "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "INFO"},
    "loggers": {"gunicorn.error": {"handlers": ["console"], "level": "INFO", "propagate": False}},
}


def on_starting(server):
    server.log.info("on_starting %s", server.cfg.threads)


def post_fork(server, worker):
    server.log.info("Worker spawned (pid: %s)", worker.pid)
    logging.getLogger("shop").info("a line of the root logger")


def child_exit(server, worker):
    server.log.info("child %s has gone", worker.pid)
""",
        "shop.main", 1, "wsgi",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_runs_unchanged(move, name):
    code, app, workers, begins = CONFIGURATIONS[name]
    server = move(
        f"-c conf/{name}.py {app}", workers=workers, files={f"conf/{name}.py": code, "site/empty": ""},
        environment={"MAX_WORKERS": "1"},
    ).serving()
    answer = get(server, "/x")
    assert answer.status == 200 and answer.text.startswith(begins)
    assert int(answer.text.split()[-1]) in server.serving_pids()
    server.stop()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_an_imported_configuration_is_clean_and_serves_the_same(move, name):
    code, app, workers, begins = CONFIGURATIONS[name]
    environment = {"MAX_WORKERS": "1"}
    files = {f"{name}.conf.py": code, "site/empty": ""}
    server = move(f"-c supervisor.toml {app}", workers=workers, files=files, environment=environment)
    done = server.ctl("import", "-o", "supervisor.toml", f"{name}.conf.py")
    assert done.returncode == 0, done.stderr
    checked = server.ctl("check", *server.words)
    assert (checked.returncode, checked.stderr) == (0, ""), checked
    server.serving()
    assert get(server, "/x").text.startswith(begins)


def test_a_worker_is_replaced_as_the_flags_say(move):
    server = move("shop.main -k gthread -w 1 -b 127.0.0.1:0 --max-requests 3").serving()
    first = get(server, "/x").text
    eventually("another worker answers", lambda: get(server, "/x").text != first)
    server.wait_event("recycle_requested")


def test_a_stuck_worker_is_ended_as_the_flags_say(move):
    files = {"stuck.py": "import time\ndef app(environ, start_response):\n    time.sleep(60)\n"}
    server = move("stuck:app -k sync -b 127.0.0.1:0 -t 1", files=files).serving()
    with server.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        server.wait_event("worker_hung")
        server.wait_event("worker_serving", 2)


def test_an_upgrade_repeats_the_words_of_the_other_server(move):
    words = "shop.main:app -k asgi --bind 127.0.0.1:0 -w 2 --root-path /api"
    server = move(words, workers=2, environment={"GUNICORN_CMD_ARGS": "-e STAGE=live"}).serving()
    done = server.ctl("upgrade")
    assert done.returncode == 0, done.stderr
    server.wait_event("upgraded")
    started = server.wait_record("started", 4)
    assert {entry["environment"]["STAGE"] for entry in started} == {"live"}
    assert get(server, "/").text.startswith("/api ")


@pytest.mark.parametrize("words, workers, settings, told", LINES)
def test_the_imported_file_is_clean_and_serves_the_same(move, words, workers, settings, told):
    server = move("-c supervisor.toml", workers=workers)
    whose = "uvicorn" if "--port" in words else "gunicorn"
    done = server.ctl("import", "-o", "supervisor.toml", whose, *shlex.split(server.fill(words).removeprefix("run ")))
    assert done.returncode == 0, done.stderr
    checked = server.ctl("check", *server.words)
    assert (checked.returncode, checked.stderr) == (0, ""), checked
    config = server.config()
    assert {key: config[key]["value"] for key in settings} == settings
    text = server.text_of("supervisor.toml")
    assert all(f"#   {origin}: " in text for origin in told)
    server.serving()
    assert get(server, "/x").status == 200

# ---- the access log ----

ATOMS = "h l u r m U q H s B b f a {x-one}i {x-none}i {content-type}o {x-none}o".split()
FORMAT = "|".join(f"%({atom})s" for atom in ATOMS)

REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: x\r\n",
    # Gunicorn decodes the path of U; oxicorn writes what was sent, so that no client can write a line of its own.
    b"GET /a/c?x=1&y=%C3%A9 HTTP/1.1\r\nHost: x\r\nReferer: http://r/?a=b\r\nUser-Agent: test \"quoted\" 1\r\n",
    b"HEAD /head HTTP/1.1\r\nHost: x\r\n",
    b"POST /post?q HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nX-One: 1\r\n\r\nabc",
    b"GET /user HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YWxhZGRpbjpvcGVu\r\n",
    b"GET /none/204 HTTP/1.1\r\nHost: x\r\n",
    b"DELETE /gone/404 HTTP/1.0\r\n",
]

LOGGED_APP = """
async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    status = int(scope["path"].rpartition("/")[2]) if scope["path"][-3:].isdigit() else 200
    body = b"" if status == 204 else b"hello"
    headers = [(b"content-type", b"text/plain")]
    if status != 204:
        headers.append((b"content-length", b"5"))
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ, start_response):
    status = int(environ["PATH_INFO"].rpartition("/")[2]) if environ["PATH_INFO"][-3:].isdigit() else 200
    body = b"" if status == 204 else b"hello"
    environ["wsgi.input"].read()
    headers = [("Content-Type", "text/plain")] + ([("Content-Length", "5")] if body else [])
    start_response(f"{status} Words", headers)
    return [body]
"""


def lines_for(address, log):
    """Sends the requests, each over a connection of its own, and returns the lines of the access log."""
    lines = lambda: [line for line in log.read_text().splitlines() if line.count("|") > 10]
    for number, request in enumerate(REQUESTS, 1):
        head, separator, body = request.partition(b"\r\n\r\n")
        head = head.rstrip(b"\r\n") + b"\r\nConnection: close\r\n\r\n"
        with socket.create_connection(address, PATIENCE) as connection:
            connection.sendall(head + body)
            while connection.recv(65536):
                pass
        eventually(f"{number} lines in {log}", lambda wanted=number: len(lines()) == wanted)
    return lines()


@pytest.mark.parametrize("kind", ["asgi", "gthread"])
def test_the_lines_of_the_access_log_are_gunicorns(move, kind):
    app = "logged:asgi" if kind == "asgi" else "logged:wsgi"
    words = f"-w 1 -e A=1 -k {kind} --access-logfile {{dir}}/access.log --access-logformat '{FORMAT}' {app}"
    server = move(f"-b 127.0.0.1:0 {words}", files={"logged.py": LOGGED_APP}).serving()
    ours = lines_for(server.address, server.path("access.log"))
    server.path("access.log").unlink()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    theirs = [sys.executable, "-m", "gunicorn", "-b", f"127.0.0.1:{address[1]}", *shlex.split(server.fill(words))]
    environment = {name: value for name, value in server.environment.items() if not name.startswith("OXICORN_")}
    gunicorn = subprocess.Popen(theirs, cwd=server.dir, env=environment, stderr=subprocess.DEVNULL)
    try:
        eventually("Gunicorn listens", lambda: gunicorn.poll() is None and connects(address))
        assert ours == lines_for(address, server.path("access.log"))
    finally:
        gunicorn.terminate()
        gunicorn.wait(PATIENCE)


def connects(address):
    try:
        socket.create_connection(address, 1).close()
    except OSError:
        return False
    return True
