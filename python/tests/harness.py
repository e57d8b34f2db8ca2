"""The server under test as a child process: its settings, its log, its signals and its end.

Owns: the start of a server as a user starts it, the waits with a deadline, and the end of every process it started.
Refuses: to know what an app should answer, and to look into the code of the server.

The environment chooses the server:

OXICORN_PYTHON_COMMAND  the command, words divided by blanks; without it, the `oxicorn` beside this Python
PATIENCE                the seconds that a test waits for what should happen soon; 20 without it
SERVER=uvicorn          Uvicorn instead, to prove that a test says what ASGI says, and not what oxicorn does
"""

from __future__ import annotations

import atexit
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

TESTS = Path(__file__).resolve().parent
APPS = TESTS / "apps"
PATIENCE = float(os.environ.get("PATIENCE", "20"))
"""Seconds that a test waits for what should happen soon."""

UVICORN = os.environ.get("SERVER", "oxicorn") == "uvicorn"


def command() -> list[str]:
    """Returns the words that start the server, without the app and its options."""
    if UVICORN:
        return [sys.executable, "-m", "uvicorn"]
    if given := os.environ.get("OXICORN_PYTHON_COMMAND"):
        return shlex.split(given)
    # Not `resolve()`: the python of a virtual environment is a link to one outside of it.
    beside = Path(sys.executable).parent / "oxicorn"
    if not beside.exists():
        raise RuntimeError(f"{beside} does not exist: install the package, or set OXICORN_PYTHON_COMMAND")
    return [str(beside)]


def eventually(what: str, probe: Callable[[], T], within: float = PATIENCE) -> T:
    """Calls `probe` again and again until it returns something true, and returns that."""
    deadline = time.monotonic() + within
    while True:
        if found := probe():
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: {what}")
        time.sleep(0.005)


def is_alive(pid: int) -> bool:
    """Returns true if the process lives. A zombie does not live: it only waits for its parent."""
    return _stat(pid)[:1] not in ([], ["Z"], ["X"])


def children(pid: int) -> list[int]:
    """Returns the living children of a process."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            stat = _stat(int(entry))
            if stat and stat[1] == str(pid) and stat[0] not in ("Z", "X"):
                found.append(int(entry))
    return sorted(found)


def _stat(pid: int) -> list[str]:
    """Returns the fields of /proc/PID/stat from the state on; the name before it may contain blanks and brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def rss(pid: int) -> int:
    """Returns the resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def toml(value: Any) -> str:
    """Writes a value of Python as one of TOML. JSON's strings, numbers, booleans and lists are TOML's too."""
    return json.dumps(value, ensure_ascii=False)


class Server:
    """A running server. `close()` ends every process that it started."""

    started: list[Server] = []
    """All servers that were not closed yet, for the report of a failed test."""

    def __init__(
        self,
        app: str | None,
        *,
        workers: int = 1,
        settings: Mapping[str, Any] | None = None,
        files: Mapping[str, str] | None = None,
        arguments: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
        bind: Iterable[str] = ("127.0.0.1:0",),
        cwd: Path | None = None,
        pass_fds: Iterable[int] = (),
    ) -> None:
        """Prepares a server, and does not start it.

        `settings` are keys of supervisor.toml, written `section.key`. `files` are written to the server's own folder,
        which is then also the folder in which the command is given; else that is the folder of the test apps.
        In the values of both, and in `bind` and `environment`, `{dir}` stands for the server's own folder.
        """
        self.dir = Path(tempfile.mkdtemp(prefix="oxicorn-python-"))
        self.dir.chmod(0o755)
        self.app = app
        self.workers = workers
        self.bind = [self.fill(address) for address in bind]
        self.settings = {
            "server.bind": self.bind,
            "workers.count": workers,
            "workers.graceful_timeout": "10s",
            "log.format": "json",
            "log.file": "{dir}/log.json",
            "control.socket": "{dir}/control.sock",
            **(settings or {}),
        }
        self.arguments = [self.fill(argument) for argument in arguments]
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.dir),
            "RUNTIME_DIRECTORY": str(self.dir),
            "PYTHONDONTWRITEBYTECODE": "1",
            "RECORD": str(self.dir / "record.jsonl"),
            **{name: self.fill(value) for name, value in (environment or {}).items()},
        }
        for name in ("LANG", "LD_LIBRARY_PATH"):
            if name in os.environ:
                self.environment.setdefault(name, os.environ[name])
        for name, text in (files or {}).items():
            self.write(name, text)
        self.cwd = cwd or (self.dir if files else APPS)
        self.pass_fds = tuple(pass_fds)
        self.process: subprocess.Popen[bytes] | None = None
        self.addresses: list[str] = []

    # --- before the start ---

    def fill(self, value: Any) -> Any:
        """Puts the path of the server's folder in the place of `{dir}`, in texts and in lists of texts."""
        if isinstance(value, str):
            return value.replace("{dir}", str(self.dir))
        if isinstance(value, (list, tuple)):
            return [self.fill(item) for item in value]
        return value

    def path(self, name: str) -> Path:
        return self.dir / name

    def write(self, name: str, text: str) -> Path:
        """Writes a file of the server's folder at once: no reader ever sees a half of it."""
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(text)
        fresh.rename(path)
        return path

    def set(self, key: str, value: Any) -> None:
        """Changes one key of the settings file. A running server sees it at its next reload."""
        self.settings[key] = value
        self.write_settings()

    def write_settings(self) -> None:
        sections: dict[str, list[str]] = {}
        for name, value in self.settings.items():
            section, key = name.split(".", 1)
            sections.setdefault(section, []).append(f"{key} = {toml(self.fill(value))}\n")
        text = "".join(f"[{section}]\n{''.join(keys)}\n" for section, keys in sections.items())
        self.write("supervisor.toml", text)

    def command_line(self) -> list[str]:
        if UVICORN:
            return [*command(), *self._uvicorn_options()]
        app = [self.app] if self.app else []
        return [*command(), *app, "-c", str(self.path("supervisor.toml")), *self.arguments]

    def _uvicorn_options(self) -> list[str]:
        """Translates the settings that a test of both servers uses. Other keys mean nothing to Uvicorn."""
        options = [self.app or self.settings["python.app"], "--workers", str(self.workers)]
        address = self.bind[0]
        if address.startswith("unix:"):
            options += ["--uds", address.removeprefix("unix:")]
        elif address.startswith("fd://"):
            options += ["--fd", address.removeprefix("fd://")]
        else:
            host, _, port = address.rpartition(":")
            options += ["--host", host, "--port", port]
        words = {
            "http.forwarded_allow_ips": "--forwarded-allow-ips",
            "http.keep_alive": "--timeout-keep-alive",
            "python.lifespan": "--lifespan",
            "python.root_path": "--root-path",
            "python.ws_max_size": "--ws-max-size",
            "python.ws_ping_interval": "--ws-ping-interval",
            "python.ws_ping_timeout": "--ws-ping-timeout",
            "tls.certfile": "--ssl-certfile",
            "tls.keyfile": "--ssl-keyfile",
            "workers.graceful_timeout": "--timeout-graceful-shutdown",
            "workers.max_requests": "--limit-max-requests",
        }
        for key, option in words.items():
            if key in self.settings:
                value = self.fill(self.settings[key])
                value = ",".join(value) if isinstance(value, list) else str(value)
                seconds = value.endswith("s") and value[:-1].isdigit()
                options += [option, value[:-1] if seconds else value]
        return options

    # --- start and end ---

    def start(self) -> Server:
        """Starts the server and returns at once, before it listens."""
        self.write_settings()
        with open(self.path("stdout.log"), "ab") as stdout, open(self.path("stderr.log"), "ab") as stderr:
            self.process = subprocess.Popen(
                self.command_line(),
                cwd=self.cwd,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=self.pass_fds,
                process_group=0,
            )
        Server.started.append(self)
        return self

    def serving(self) -> Server:
        """Starts the server and waits until all its workers serve."""
        self.start()
        self.wait_serving(self.workers)
        return self

    @property
    def pid(self) -> int:
        """The pid of the master."""
        assert self.process is not None, "the server was not started"
        return self.process.pid

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the master."""
        os.kill(self.pid, number)

    def wait_exit(self, within: float = PATIENCE) -> int:
        """Waits until the master has ended, and returns its exit code; of a signal, the negative number."""
        assert self.process is not None
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not within {within} s: the server ends") from None

    def stop(self, within: float = PATIENCE) -> None:
        """Stops the service gracefully. Asserts exit code 0 and that no process is left."""
        self.signal(signal.SIGTERM)
        code = self.wait_exit(within)
        assert code == (-signal.SIGTERM if UVICORN and self.workers == 1 else 0), f"exit code {code} after SIGTERM"
        assert self.leftovers() == [], "no process outlives a stop"

    def leftovers(self) -> list[int]:
        """Returns the living processes of the group that the master leads."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                stat = _stat(int(entry))
                if stat and stat[2] == str(self.pid) and stat[0] not in ("Z", "X"):
                    found.append(int(entry))
        return found

    def close(self) -> None:
        """Ends every process that was started here, and removes the folder."""
        if self in Server.started:
            Server.started.remove(self)
        if self.process is not None:
            # At once: a graceful stop takes a second or more, and a test that is about the stop has made its own.
            # The group is our own: it began with this process. It also reaches the orphans of a killed master.
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    # --- where it listens ---

    @property
    def address(self) -> tuple[str, int]:
        """The first TCP address that was bound."""
        for address in self.addresses:
            host, _, port = address.rpartition(":")
            if port.isdigit() and not address.startswith(("unix:", "/")):
                return host.strip("[]"), int(port)
        raise AssertionError(f"no TCP address among {self.addresses}")

    @property
    def port(self) -> int:
        return self.address[1]

    @property
    def url(self) -> str:
        scheme = "https" if "tls.certfile" in self.settings else "http"
        return f"{scheme}://127.0.0.1:{self.port}"

    def connect(self, timeout: float = PATIENCE) -> socket.socket:
        """Opens a connection to the first address."""
        if self.bind[0].startswith("unix:"):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(timeout)
            connection.connect(self.bind[0].removeprefix("unix:"))
            return connection
        connection = socket.create_connection(self.address, timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    # --- its log ---

    def text_of(self, name: str) -> str:
        try:
            return self.path(name).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def events(self, event: str | None = None, **fields: Any) -> list[dict[str, Any]]:
        """Returns the lines of oxicorn's log with this event and these fields, the oldest first."""
        found = []
        for line in self.text_of("log.json").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the last line may be half written
            if event is None or entry.get("event") == event:
                if all(entry.get(name) == value for name, value in fields.items()):
                    found.append(entry)
        return found

    def wait_event(self, event: str, times: int = 1, within: float = PATIENCE, **fields: Any) -> list[dict[str, Any]]:
        """Waits until the log has at least `times` lines with this event and these fields."""

        def probe() -> list[dict[str, Any]] | None:
            found = self.events(event, **fields)
            return found if len(found) >= times else None

        return eventually(f"{times} log lines of {event} {fields or ''}", probe, within)

    def logged(self, fragment: str) -> bool:
        """Returns true if the log, stdout or stderr has this text somewhere."""
        return any(fragment in self.text_of(name) for name in ("log.json", "stderr.log", "stdout.log"))

    def report(self) -> str:
        """Returns the end of everything the server wrote, for the report of a failed test."""
        parts = [f"{' '.join(self.command_line())}\n  in {self.cwd}, settings and logs in {self.dir}"]
        if self.process is not None and self.process.poll() is not None:
            parts.append(f"it ended with {self.process.returncode}")
        for name in ("log.json", "stderr.log", "stdout.log", "record.jsonl"):
            if text := self.text_of(name):
                end = [line if len(line) < 2000 else f"{line[:2000]}…" for line in text.splitlines()[-60:]]
                parts.append(f"--- {name}, its end ---\n" + "\n".join(end))
        return "\n".join(parts)

    # --- its workers ---

    def wait_listening(self, within: float = PATIENCE) -> None:
        """Waits until the log names the addresses that are listened on."""

        def probe() -> bool:
            if not self.is_running():
                raise AssertionError(f"the server ended with {self.process.returncode} before it listened")
            if UVICORN:
                return self._uvicorn_listens()
            # All addresses are in the log before the first fork, so the first fork shows that the list is complete.
            if not self.events("worker_forked"):
                return False
            self.addresses = [str(entry["address"]) for entry in self.events("listening")]
            return bool(self.addresses)

        eventually("the log names the address that is listened on", probe, within)

    def _uvicorn_listens(self) -> bool:
        log = self.text_of("stderr.log")
        if "running on " not in log:
            return False
        said = log.split("running on ", 1)[1].split(" (Press", 1)[0]
        self.addresses = [said.split("://", 1)[1]] if "://" in said else [f"unix:{said}"]
        return True

    def wait_serving(self, workers: int, within: float = PATIENCE) -> list[int]:
        """Waits until so many workers serve, and returns their pids."""
        if not self.addresses:
            self.wait_listening(within)

        def probe() -> list[int] | None:
            if not self.is_running():
                raise AssertionError(f"the server ended with {self.process.returncode}")
            serving = self.serving_pids()
            return serving if len(serving) == workers else None

        return eventually(f"{workers} workers serve", probe, within)

    def serving_pids(self) -> list[int]:
        """Returns the pids of the workers that live, serve, and were not asked to drain."""
        if UVICORN:
            began = self.text_of("stderr.log").count("Application startup complete")
            # With `--lifespan off`, and for an app without a lifespan, Uvicorn says nothing of a start-up.
            began = began or self.text_of("stderr.log").count("Started server process")
            living = children(self.pid) if self.workers > 1 else [self.pid]
            # Uvicorn's master has one more child, the resource tracker of multiprocessing.
            return living[-self.workers :] if began >= self.workers else []
        serving = {entry["pid"] for entry in self.events("worker_serving")}
        draining = {entry["pid"] for entry in self.events("worker_draining")}
        return [pid for pid in self.worker_pids() if pid in serving and pid not in draining]

    def worker_pids(self) -> list[int]:
        """Returns the pids of the living workers, including those that drain."""
        return children(self.pid)

    # --- its commands ---

    def ctl(self, *words: str, within: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Runs a command of oxicorn, such as `reload`, with the settings file of this server."""
        return subprocess.run(
            [*command(), *words, "-c", str(self.path("supervisor.toml"))],
            cwd=self.cwd,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within,
        )

    def status(self) -> dict[str, Any]:
        """Returns `oxicorn status --json`. Exit code 1 only means that not all workers serve."""
        done = self.ctl("status", "--json")
        assert done.returncode in (0, 1), done.stderr
        return json.loads(done.stdout)

    # --- what the app saw ---

    def records(self, what: str | None = None) -> list[dict[str, Any]]:
        """Returns what the app wrote by `toolkit.record`, the oldest first."""
        lines = self.text_of("record.jsonl").splitlines()
        entries = [json.loads(line) for line in lines if line.endswith("}")]
        return [entry for entry in entries if what is None or entry["what"] == what]

    def wait_record(self, what: str, times: int = 1, within: float = PATIENCE) -> list[dict[str, Any]]:
        """Waits until the app has written at least `times` records of this name."""

        def probe() -> list[dict[str, Any]] | None:
            found = self.records(what)
            return found if len(found) >= times else None

        return eventually(f"{times} records of {what} by the app", probe, within)

    def clear_records(self) -> None:
        """Forgets what the app has written. Tests that share a server begin with it."""
        self.path("record.jsonl").write_text("")


@atexit.register
def _close_all() -> None:
    for server in list(Server.started):
        server.close()
