"""The command lines and configuration files that people start their servers with, and what is seen of such a start.

Owns: the words, their files and environment, what of them oxicorn has to tell, and the look at both servers. Each shape
is one that tutorials, Dockerfiles and unit files have; the words are our own. Refuses: to know one server from another.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field

from clients import Ended, Raw
from harness import eventually
from peers import Run, app_file

TOOLKIT = {"toolkit.py": app_file("toolkit.py")}
SHOP = {"shop.py": app_file("moving_wsgi.py"), **TOOLKIT}
MAIN = {"main.py": app_file("moving_asgi.py"), **TOOLKIT}


@dataclass
class Line:
    name: str
    program: str
    words: str
    files: dict[str, str]
    workers: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    uds: str | None = None
    told: tuple[str, ...] = ()
    """Words that cannot mean the same here: the start must tell each of them."""
    same: tuple[str, ...] = ()
    """Words that mean the same: the start must not speak of them."""
    from_hooks: tuple[str, ...] = ()
    """Variables that the hooks of the configuration set. A file of settings has no hooks, and says so."""

    def run(self, program: str, **more) -> Run:
        environment = {**self.environment, **more.pop("environment", {})}
        return Run(program, self.words, files=self.files, environment=environment, uds=self.uds, **more)

    def __str__(self) -> str:
        return self.name


LINES = [
    Line(
        "gunicorn_flask",
        "gunicorn",
        "-w 3 -b 127.0.0.1:{port} --access-logfile - --error-logfile - shop:app",
        SHOP,
        workers=3,
        same=("-w", "-b", "--access-logfile"),
    ),
    Line(
        "gunicorn_fastapi",
        "gunicorn",
        "main:app -k uvicorn.workers.UvicornWorker --workers 2 --bind=127.0.0.1:{port} --timeout 120"
        ' --graceful-timeout 20 --keep-alive 5 --forwarded-allow-ips="*"',
        MAIN,
        workers=2,
        same=("--workers", "--bind", "--graceful-timeout", "--keep-alive"),
    ),
    Line(
        "gunicorn_django_behind_nginx",
        "gunicorn",
        "--workers 2 --bind unix:{dir}/site.sock --umask 007 --pid {dir}/site.pid --name mysite mysite.wsgi",
        {"mysite/__init__.py": "", "mysite/wsgi.py": app_file("moving_wsgi.py"), **TOOLKIT},
        workers=2,
        uds="{dir}/site.sock",
        same=("--workers", "--bind", "--pid"),
    ),
    Line(
        "gunicorn_factory_in_docker",
        "gunicorn",
        "-k gthread --threads 4 --worker-tmp-dir /dev/shm --max-requests 1000 --max-requests-jitter 50 --log-file=-"
        """ -b 127.0.0.1:{port} 'shop:create_app("blue")'""",
        SHOP,
        told=("worker-tmp-dir",),
        same=("--threads", "--max-requests", "--max-requests-jitter"),
    ),
    Line(
        "gunicorn_environment",
        "gunicorn",
        "--chdir src --pythonpath {dir}/lib -e 'GREETING=hello world' --env MODE=live --log-level warning --preload"
        " shop_site",
        {
            "src/shop_site.py": "import mine_library\n" + app_file("moving_wsgi.py"),
            "src/toolkit.py": app_file("toolkit.py"),
            "lib/mine_library.py": "",
        },
        workers=2,
        environment={"GUNICORN_CMD_ARGS": "--bind=127.0.0.1:{port} --backlog 100", "WEB_CONCURRENCY": "2"},
        told=("--preload",),
        same=("--chdir", "--bind"),
    ),
    Line(
        "gunicorn_asgi",
        "gunicorn",
        "main:app --worker-class asgi --root-path /api -b 127.0.0.1:{port} --backlog 512 --limit-request-line 2000",
        MAIN,
        same=("--backlog", "-b"),
    ),
    Line(
        "uvicorn_plain",
        "uvicorn",
        "main:app --host 127.0.0.1 --port {port}",
        MAIN,
        same=("--host", "--port"),
    ),
    Line(
        "uvicorn_behind_a_proxy",
        "uvicorn",
        "main:app --host=127.0.0.1 --port={port} --workers 2 --proxy-headers --forwarded-allow-ips '*'"
        " --root-path /api/v1 --log-level warning",
        MAIN,
        workers=2,
        same=("--host", "--port", "--workers"),
    ),
    Line(
        "uvicorn_factory_on_a_socket",
        "uvicorn",
        "main:create_app --factory --uds {dir}/app.sock --no-access-log",
        MAIN,
        uds="{dir}/app.sock",
        same=("--factory", "--uds"),
    ),
    Line(
        "uvicorn_limits",
        "uvicorn",
        "--app-dir src main:app --port {port} --env-file app.env --timeout-keep-alive 1 --limit-concurrency 90"
        " --timeout-graceful-shutdown 3 --no-server-header --header X-Shop:books --header 'Cache-Control: no-store'",
        {
            "src/main.py": app_file("moving_asgi.py"),
            "src/toolkit.py": app_file("toolkit.py"),
            "app.env": "MODE=live\nGREETING='hello world'\n",
        },
        same=("--port", "--env-file", "--timeout-keep-alive"),
    ),
    Line(
        "uvicorn_implementations",
        "uvicorn",
        "main:app --port {port} --loop uvloop --http httptools --ws websockets-sansio --lifespan on --interface asgi3"
        " --no-use-colors",
        MAIN,
        told=("--loop", "--http", "--ws"),
        same=("--lifespan", "--interface"),
    ),
    Line(
        "uvicorn_environment",
        "uvicorn",
        "--log-config log.json --limit-max-requests 1000 main:app",
        {
            **MAIN,
            "log.json": """{
                "version": 1, "disable_existing_loggers": false,
                "formatters": {"plain": {"format": "%(levelname)s %(name)s %(message)s"}},
                "handlers": {
                    "file": {"class": "logging.FileHandler", "filename": "{dir}/app.log", "formatter": "plain"}
                },
                "loggers": {"shop": {"handlers": ["file"], "level": "INFO"}}
            }""",
        },
        workers=2,
        environment={
            "UVICORN_HOST": "127.0.0.1",
            "UVICORN_PORT": "{port}",
            "UVICORN_ROOT_PATH": "/env",
            "WEB_CONCURRENCY": "2",
        },
        same=("--limit-max-requests",),
    ),
]

FORMULA = """
import multiprocessing
import os

workers = multiprocessing.cpu_count() * 2 + 1
threads = int(os.getenv("THREADS", "2"))
worker_class = "gthread"
bind = f"{os.getenv('ADDRESS', '0.0.0.0')}:{os.environ['APP_PORT']}"
timeout = 60
keepalive = 5
accesslog = "access.log"
access_log_format = '%(h)s "%(r)s" %(s)s %(b)s "%(a)s" %({x-request-id}i)s'
errorlog = "error.log"
loglevel = os.getenv("LEVEL", "info")
wsgi_app = "shop:app"
"""

HOOKS = '''
"""Every hook writes its name, its process and what it was given."""

import json
import os

bind = "127.0.0.1:" + os.environ["APP_PORT"]
workers = 1
threads = 2
preload_app = True
worker_tmp_dir = "/dev/shm"
max_requests = 0
proc_name = "hooked"


def note(hook, **seen):
    line = json.dumps({"what": "hook", "hook": hook, "pid": os.getpid(), **seen}) + "\\n"
    with open(os.environ["RECORD"], "a") as file:
        file.write(line)


def on_starting(server):
    os.environ["FROM_ON_STARTING"] = "yes"
    server.log.info("hook on_starting logs")
    note("on_starting", workers=server.cfg.workers, bind=server.cfg.bind, name=server.cfg.proc_name, server=server.pid)


def when_ready(server):
    note("when_ready", address=str(server.address), preload=server.cfg.preload_app)


def nworkers_changed(server, new_value, old_value):
    note("nworkers_changed", new=new_value, old=old_value)


def pre_fork(server, worker):
    os.environ["FROM_PRE_FORK"] = str(worker.age)
    note("pre_fork", age=worker.age)


def post_fork(server, worker):
    worker.log.info("hook post_fork logs")
    note("post_fork", age=worker.age, worker=worker.pid, own=worker.pid == os.getpid(), server=server.pid)


def post_worker_init(worker):
    note("post_worker_init", age=worker.age, threads=worker.cfg.threads, alive=worker.alive)


def pre_request(worker, req):
    worker.log.debug("%s %s", req.method, req.path)
    note("pre_request", method=req.method, path=req.path, query=req.query, uri=req.uri)


def post_request(worker, req, environ, resp):
    note("post_request", path=environ["PATH_INFO"], status=str(resp.status), method=req.method)


def worker_int(worker):
    note("worker_int")


def worker_exit(server, worker):
    note("worker_exit", worker=worker.pid, own=worker.pid == os.getpid())


def child_exit(server, worker):
    note("child_exit", worker=worker.pid, age=worker.age)


def on_reload(server):
    note("on_reload")


def on_exit(server):
    note("on_exit")
'''

PROXIED = """
import os

bind = ["127.0.0.1:" + os.environ["APP_PORT"], "unix:" + os.path.join(os.environ["HOME"], "second.sock")]
workers = int(os.environ.get("WEB_CONCURRENCY", 2))
worker_class = "gthread"
threads = 2
forwarded_allow_ips = "*"
secure_scheme_headers = {"X-FORWARDED-PROTOCOL": "ssl", "X-FORWARDED-PROTO": "https", "X-FORWARDED-SSL": "on"}
raw_env = ["MODE=live", "DATABASE=postgres://u:p@db/shop?x=1"]
pidfile = "proxied.pid"
proc_name = "proxied"
umask = 0o027
limit_request_fields = 50
"""

LOGGING = """
import os

from prometheus_client import multiprocess

bind = "127.0.0.1:" + os.environ["APP_PORT"]
workers = 2
worker_class = "uvicorn_worker.UvicornWorker"
max_requests = 1000
max_requests_jitter = 100
graceful_timeout = 5
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(levelname)s %(name)s %(message)s"}},
    "handlers": {
        "file": {"class": "logging.FileHandler", "filename": os.environ["HOME"] + "/app.log", "formatter": "plain"},
    },
    "root": {"handlers": ["file"], "level": "INFO"},
    "loggers": {"shop": {"handlers": ["file"], "level": "INFO", "propagate": False}},
}


def child_exit(server, worker):
    multiprocess.mark_process_dead(worker.pid)
"""

FILES = [
    Line(
        "formula",
        "gunicorn",
        "",
        {"gunicorn.conf.py": FORMULA, **SHOP},
        workers=2 * (os.cpu_count() or 1) + 1,
        # The file says the address, so the variable of the platform means nothing.
        environment={"APP_PORT": "{port}", "ADDRESS": "127.0.0.1", "PORT": "1"},
    ),
    Line(
        "hooks",
        "gunicorn",
        "-c deploy/hooks.py shop:app",
        {"deploy/hooks.py": HOOKS, **SHOP},
        environment={"APP_PORT": "{port}"},
        told=("preload_app", "worker_tmp_dir"),
        from_hooks=("FROM_ON_STARTING", "FROM_PRE_FORK"),
    ),
    Line(
        "proxied",
        "gunicorn",
        "--config python:settings.production shop:app",
        {"settings/__init__.py": "", "settings/production.py": PROXIED, **SHOP},
        workers=2,
        environment={"APP_PORT": "{port}"},
    ),
    Line(
        "logging",
        "gunicorn",
        "main:app -c file:logging.conf.py",
        {"logging.conf.py": LOGGING, **MAIN, "metrics/.keep": ""},
        workers=2,
        environment={"APP_PORT": "{port}", "PROMETHEUS_MULTIPROC_DIR": "{dir}/metrics"},
    ),
]

OF_THE_MASTER = {
    # What the servers themselves put into the environment of a worker.
    "GUNICORN_PID", "GUNICORN_FD", "SERVER_SOFTWARE", "OXICORN_SLOT", "OXICORN_GENERATION", "OXICORN_PROGRAM",
    # Ours alone, and the start of Python in a tree that is not installed.
    "OXICORN_LOG__FORMAT", "PYTHONPATH",
    # Their values have the folder or the port of the run.
    "HOME", "RECORD", "XDG_RUNTIME_DIR", "PORT", "UVICORN_PORT", "APP_PORT", "GUNICORN_CMD_ARGS",
    "PROMETHEUS_MULTIPROC_DIR",
}  # fmt: skip


def facts(server, *fields) -> dict:
    return server.get("/facts", *fields).json()


def without_place(server, value):
    """Returns the value without the folder and the port of this run."""
    return json.loads(json.dumps(value).replace(str(server.dir), "DIR").replace(str(server.port), "PORT"))


def answers_of(server, line) -> dict:
    """Returns what the server answers, and what the app sees: all of it must be equal under both servers."""
    # Uvicorn believes no one on a Unix socket; Gunicorn and oxicorn believe who may open it.
    believed = line.program == "gunicorn" or not line.uds
    seen = facts(server, *(["X-Forwarded-Proto: https"] if believed else []))
    environment = {name: value for name, value in seen.pop("environment").items() if name not in OF_THE_MASTER}
    for name in ("pid", "parent", "path", "client", "loop", "umask"):
        seen.pop(name, None)
    page = server.get("/page")
    stream = server.get("/stream")
    with Raw(server) as wire:
        echo = wire.request("POST", "/echo", body=b"echo " * 1000).response("POST")
    failed = server.get("/raise")
    return without_place(
        server,
        {
            "facts": seen,
            "environment": environment,
            "page": (page.status, page.reason, page.text, page.get("content-type")),
            "stream": (stream.status, stream.text),
            "echo": (echo.status, len(echo.body)),
            "raise": failed.status,
        },
    )


def differences(theirs: dict, ours: dict, at: str = "") -> list[str]:
    """Returns each value that differs, with the way to it, so that a failed test names it."""
    found = []
    for name in sorted({*theirs, *ours}):
        one, other = theirs.get(name, "nothing"), ours.get(name, "nothing")
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, f"{at}{name}.")
        elif one != other:
            found.append(f"{at}{name}: {one!r} became {other!r}")
    return found


def sockets_of(server) -> dict:
    """Returns who may open the sockets that the words name. Opening is writing; the bits of `x` say nothing."""
    modes = {}
    for name in ("site.sock", "app.sock", "second.sock"):
        if server.path(name).exists():
            modes[name] = f"{stat.S_IMODE(server.path(name).stat().st_mode) & 0o666:o}"
    return modes


def pidfiles_of(server) -> dict:
    return {path.name: path.read_text().strip() == str(server.pid) for path in server.dir.glob("*.pid")}


def line_of(name: str) -> Line:
    return next(line for line in LINES + FILES if line.name == name)


def answers(server) -> bool:
    assert server.process.poll() is None, f"the server ended with {server.process.returncode}"
    try:
        return server.get("/page").status == 200
    except (OSError, Ended):
        return False


def settled_end(server) -> int | None:
    """Returns the exit code of a server that ends by itself, and None once it serves."""

    def probe():
        if (code := server.process.poll()) is not None:
            return code or -1
        try:
            return "serves" if server.get("/page").status == 200 else None
        except (OSError, Ended):
            return None

    found = eventually("it serves or ends", probe)
    return None if found == "serves" else found
