"""Has the parts of each cell of the matrix: an oxicorn, events that replace its workers, and a client program.

A client program is called with `URL METHOD SIZE VERSION THREADS SECONDS PAUSE [SOCKET]` and prints one line of JSON:
`{"tried": n, "lost": n, "errors": {"text": n}, "longest_ms": x}`. First each thread waits for
a random part of PAUSE. Then it asks again and again until SECONDS are over. It never retries. A request is lost unless
its answer is 200 with the body that was sent.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = ROOT / "target"
OXICORN = os.environ.get("OXICORN_TEST_BINARY", str(TARGET / "release/oxicorn"))
GET, POST = "/health", "/debug/echo"


class Broken(Exception):
    """Says why a cell cannot be tried: a tool is missing, or a program did not start. It never means a lost request."""


@dataclasses.dataclass
class Result:
    tried: int = 0
    lost: int = 0
    errors: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    longest_ms: float = 0

    def __add__(self, other):
        longest = max(self.longest_ms, other.longest_ms)
        return Result(self.tried + other.tried, self.lost + other.lost, self.errors + other.errors, longest)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(ask, seconds, what):
    end = time.monotonic() + seconds
    while not (answer := ask()):
        if time.monotonic() > end:
            raise Broken(f"{what}: not within {seconds} s")
        time.sleep(0.02)
    return answer


def accepts(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def sh(*command, seconds=60, **options):
    """Runs a command, which must end in time and with code 0, and returns its stdout."""
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, **options)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Broken(f"{' '.join(command)}: {error}") from None
    if done.returncode:
        raise Broken(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def certificate():
    """Returns the folder of an authority (ca.pem) and its certificate for localhost, 127.0.0.1 (cert.pem, key.pem)."""
    folder = TARGET / "clients-tls"
    if not (folder / "cert.pem").exists():
        made = pathlib.Path(tempfile.mkdtemp(dir=TARGET))
        ca, key, cert = made / "ca.pem", made / "key.pem", made / "cert.pem"
        new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650"]
        sh(
            *new,
            "-subj",
            "/CN=oxicorn's clients",
            "-keyout",
            made / "ca.key",
            "-out",
            ca,
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        )
        names = [
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ]
        sh(*new, "-subj", "/CN=localhost", *names, "-CA", ca, "-CAkey", made / "ca.key", "-keyout", key, "-out", cert)
        made.rename(folder)
    return folder


class Guard:
    """Ends the programs that this program has started when this program ends, even if it ends by SIGKILL.

    Proxies have a session of their own, so a signal to this program's group does not reach them. Therefore a second
    process reads its standard input until that ends, which happens when this program is gone, and then ends them.
    """

    SCRIPT = """
import os, signal, sys, time
groups = set()
for line in sys.stdin:
    (groups.discard if line[0] == "-" else groups.add)(int(line[1:]))
for way in (signal.SIGTERM, signal.SIGKILL) if groups else ():
    for group in groups:
        try:
            os.killpg(group, way)
        except ProcessLookupError:
            pass
    time.sleep(5)
"""

    def __init__(self):
        self.lock, self.process = threading.Lock(), None

    def tell(self, sign, process):
        with self.lock:
            if not self.process:
                command = [sys.executable, "-c", self.SCRIPT]
                self.process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
            print(f"{sign}{process.pid}", file=self.process.stdin, flush=True)

    def start(self, command, **options):
        """Starts a program as the leader of a new session. Call `forget` once the program was waited for."""
        process = subprocess.Popen(command, start_new_session=True, **options)
        self.tell("+", process)
        return process

    def forget(self, process):
        self.tell("-", process)


GUARD = Guard()


class Service:
    """A running oxicorn with its reference service, in a new folder, on a TCP port and a unix socket.

    The folder is removed at the end, unless there was an error.
    """

    def __init__(self, tls=False, binary=OXICORN, **settings):
        """`settings` are written as section__key=value, with the value as TOML: `workers__max_requests=200`."""
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="oxicorn-clients-"))
        self.folder.chmod(0o755)  # a proxy that runs as another user connects to the socket
        self.port, self.socket, self.binary = free_port(), self.folder / "http.sock", binary
        self.origin = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"
        self.access = self.folder / "access.log"
        tables = {
            "server__bind": f'["127.0.0.1:{self.port}", "unix:{self.socket}"]', "server__unix_mode": '"0666"',
            "workers__count": 2,
            "control__socket": f'"{self.folder}/control.sock"', "service__debug": "true", "service__store": '"sqlite"',
        }  # fmt: skip
        if tls:
            tables |= {"tls__certfile": f'"{certificate()}/cert.pem"', "tls__keyfile": f'"{certificate()}/key.pem"'}
        self.settings = self.folder / "supervisor.toml"
        lines = (f"{key.replace('__', '.')} = {value}\n" for key, value in (tables | settings).items())
        self.settings.write_text("".join(lines))

    def __enter__(self):
        self.log = (self.folder / "log").open("w")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OXICORN_")}
        run, how = (
            [self.binary, "run", "-c", self.settings],
            {"env": environment, "stdout": self.log, "stderr": self.log},
        )
        try:
            self.master = GUARD.start(run, cwd=self.folder, **how)
        except OSError as error:
            raise Broken(f"{self.binary}: {error}") from None
        try:
            eventually(lambda: self.status()["state"] == "running", 20, f"oxicorn serves (see {self.folder}/log)")
        except BaseException:
            self.master.kill()
            self.master.wait()
            GUARD.forget(self.master)
            raise
        return self

    def __exit__(self, error, *_):
        try:
            self.master.terminate()
            self.master.wait(40)
        except subprocess.TimeoutExpired:
            self.master.kill()
            self.master.wait()
            raise Broken(f"oxicorn does not stop (see {self.folder}/log)") from None
        finally:
            GUARD.forget(self.master)
        self.log.close()
        if error is None:
            shutil.rmtree(self.folder)

    def ctl(self, *words):
        return sh(self.binary, *words, "-c", self.settings, seconds=120)

    def status(self):
        try:
            return json.loads(self.ctl("status", "--json"))
        except Broken:
            if self.master.poll() is not None:
                raise Broken(f"oxicorn has ended (see {self.folder}/log)") from None
            return {"state": "starting"}

    def counted(self):
        totals = self.status()["totals"]
        return collections.Counter(
            {name: totals[name] for name in ("requests", "reloads", "upgrades", "recycled", "crashed", "hung")}
        )


class Event:
    """An event in the service's life while clients ask. `fire` causes it once a second, or the `settings` cause it."""

    def __init__(self, name, fire=None, pause=0.0, **settings):
        self.name, self.fire, self.pause, self.settings = name, fire, pause, settings

    def happens(self, service, over):
        """Calls `fire` once a second until `over` is set."""
        turn = 0
        while self.fire and not over.wait(1):
            self.fire(service, turn)
            turn += 1


def scales(service, turn):
    service.ctl("scale", (1, 3)[turn % 2])


EVENTS = {
    event.name: event
    for event in [
        Event("reload", lambda service, _: service.ctl("reload")),
        Event("recycle", workers__max_requests=200),
        Event("upgrade", lambda service, _: service.ctl("upgrade")),
        Event("scale", scales, workers__count=3),
        Event("stop", log__access='"access.log"', log__access_format="""'"%(r)s" %(s)s'"""),  # `stopped` reads this log
        # The pause is clearly longer than keep_alive: a request at the moment of the close would be lost on the wire,
        # which is not oxicorn's fault.
        Event("expiry", pause=1.5, http__keep_alive='"1s"'),
    ]
}


@dataclasses.dataclass(frozen=True)
class Load:
    """A client program and how it asks. Its command line is `command` and the arguments that all programs get."""

    command: tuple
    version: str = "1.1"
    threads: int = 4
    size: int = 1024
    environment: tuple = ()

    def ask(self, origin, method, seconds, pause=0.0, unix=None, path=None):
        """Runs the client program until it ends, and returns its Result."""
        url = origin + (path or (GET if method == "GET" else POST))
        words = [
            *self.command,
            url,
            method,
            self.size,
            self.version,
            self.threads,
            seconds,
            pause,
            *([unix] if unix else []),
        ]
        environment = os.environ | {"CA_FILE": str(certificate() / "ca.pem")} | dict(self.environment)
        said = sh(*words, seconds=seconds + pause + 120, env=environment)
        try:
            told = json.loads(said.splitlines()[-1])
            errors = collections.Counter()
            for text, times in told["errors"].items():
                errors[re.sub(r"\b\d{4,5}\b", "…", text)] += times  # without port numbers, equal errors count together
            return Result(told["tried"], told["lost"], errors, told["longest_ms"])
        except (ValueError, KeyError, IndexError):
            raise Broken(f"{words} says {said!r}") from None


def methods(ask, names):
    """Calls `ask(method)` for all methods at the same time, and returns {method: Result}."""
    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(ask, names)))


def happening(service, event, ask, names):
    """Causes the event while clients ask by each method, and returns {method: Result}."""
    over = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        firing = pool.submit(event.happens, service, over)
        try:
            results = methods(ask, names)
        finally:
            over.set()
        firing.result()
    return results


def stopped(service, ask, names):
    """Stops the service once all clients have asked for a second.

    Connections that come later are refused, which is right. So `tried` is the number of answers with 200 in oxicorn's
    access log, and `lost` is how many of these answers the clients have not seen.
    """

    def answered(method):
        return sum(f'"{method} ' in line and line.endswith('" 200') for line in service.access.read_text().splitlines())

    def stops():
        eventually(lambda: all(answered(method) for method in names), 60, "each client asks")
        time.sleep(1)
        service.master.terminate()
        service.master.wait(40)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(stops)
        seen = methods(ask, names)
        stopping.result()
    results = {}
    for method, result in seen.items():
        tried = answered(method)
        lost = max(0, tried - (result.tried - result.lost))
        results[method] = Result(tried, lost, result.errors if lost else collections.Counter(), result.longest_ms)
    return results


@dataclasses.dataclass(frozen=True)
class Known:
    """Losses that are the client's or the proxy's own fault: the reason, and the largest share of lost requests."""

    why: str
    share: float = 1.0


@contextlib.contextmanager
def direct(service, unix):
    yield service.origin, (service.socket if unix else None)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the matrix: a client, over a transport, perhaps through a proxy.

    `front(service, unix)` is a context manager. It gives the origin that the client asks, and a unix socket or None.
    """

    name: str
    transport: str
    load: Load
    tls: bool = False
    unix: bool = False
    methods: tuple = ("GET", "POST")
    events: tuple = tuple(EVENTS)
    settings: dict = dataclasses.field(default_factory=dict)
    front: object = direct
    known: dict = dataclasses.field(default_factory=dict)  # "event", "event METHOD" or "*": Known
    short: bool = False  # part of `make clients`

    @property
    def title(self):
        return f"{self.name}, {self.transport}"

    def explains(self, event, method):
        return self.known.get(f"{event} {method}") or self.known.get(event) or self.known.get("*")

    def run(self, event, seconds):
        """Tries this row with one event. Returns {method: Result}, and what oxicorn itself has counted."""
        with Service(self.tls, **(self.settings | event.settings)) as service:
            with self.front(service, self.unix) as (origin, unix):

                def ask(method):
                    return self.load.ask(origin, method, seconds, event.pause, unix)

                if event.name == "stop":
                    return stopped(service, ask, self.methods), collections.Counter(stops=1)
                before = service.counted()
                return happening(service, event, ask, self.methods), service.counted() - before
