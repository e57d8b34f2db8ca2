"""A server that is started by its own words, as people start it: Gunicorn, Uvicorn, or oxicorn in the place of both.

Owns: the same words, files and environment for each of them, and what can be seen of each from outside.
Refuses: `supervisor.toml` and every setting that the words do not say; `harness.Server` is for those.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clients import Ended, Raw, Response
from harness import APPS, PATIENCE, Server, command, eventually, is_alive


def free_port() -> int:
    """Returns a port that no one listens on. Those above 32767 are taken by clients, so it is not one of them."""
    while True:
        port = random.randrange(18000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


class Run:
    """One start of a program with the words of a user. `{dir}` and `{port}` stand for its folder and its port."""

    def __init__(
        self,
        program: str,
        words: str,
        *,
        files: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        uds: str | None = None,
        pass_fds: Iterable[int] = (),
        own: Mapping[str, str] | None = None,
    ) -> None:
        """`own` is for the environment of oxicorn alone: what a test needs to look at it."""
        self.program = program
        self.dir = Path(tempfile.mkdtemp(prefix=f"moving-{program}-"))
        self.dir.chmod(0o755)
        self.port = free_port()
        self.words = self.fill(words)
        self.app = f"{program} {self.words}"
        self.uds = self.fill(uds) if uds else None
        self.pass_fds = tuple(pass_fds)
        for name, text in (files or {}).items():
            self.write(name, text)
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.dir),
            "XDG_RUNTIME_DIR": str(self.dir),
            "PYTHONDONTWRITEBYTECODE": "1",
            "RECORD": str(self.dir / "record.jsonl"),
            **{name: self.fill(value) for name, value in (environment or {}).items()},
        }
        if program == "oxicorn":
            self.environment |= {"OXICORN_LOG__FORMAT": "json"}
            self.environment |= {name: self.fill(value) for name, value in (own or {}).items()}
        for name in ("LANG", "LD_LIBRARY_PATH"):
            if name in os.environ:
                self.environment.setdefault(name, os.environ[name])
        self.process: subprocess.Popen[bytes] | None = None

    def fill(self, text: str) -> str:
        return text.replace("{dir}", str(self.dir)).replace("{port}", str(self.port))

    def path(self, name: str) -> Path:
        return self.dir / name

    def write(self, name: str, text: str) -> Path:
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.fill(text))
        return path

    def first_words(self) -> list[str]:
        return command() if self.program == "oxicorn" else [sys.executable, "-m", self.program]

    # --- start and end ---

    def start(self) -> Run:
        with open(self.path("stdout.log"), "ab") as stdout, open(self.path("stderr.log"), "ab") as stderr:
            self.process = subprocess.Popen(
                [*self.first_words(), *shlex.split(self.words)],
                cwd=self.dir,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=self.pass_fds,
                process_group=0,
            )
        Server.started.append(self)
        return self

    def serving(self) -> Run:
        """Starts it and waits until it answers a request."""
        self.start()
        self.wait_serving()
        return self

    def wait_serving(self) -> None:
        def probe() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}")
            try:
                self.get("/started")
            except (OSError, Ended):
                return False
            return True

        eventually("the server answers", probe)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def wait_exit(self, within: float = PATIENCE) -> int:
        assert self.process is not None
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not within {within} s: the server ends") from None

    def stop(self, within: float = PATIENCE) -> int:
        """Stops it gracefully, and returns its exit code. Asserts that no process is left."""
        os.kill(self.pid, signal.SIGTERM)
        code = self.wait_exit(within)
        eventually("no process outlives a stop", lambda: not Server.leftovers(self), 5)
        return code

    def close(self) -> None:
        if self in Server.started:
            Server.started.remove(self)
        if self.process is not None:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def report(self) -> str:
        parts = [f"{self.program} {self.words}\n  in {self.dir}"]
        if self.process is not None and self.process.poll() is not None:
            parts.append(f"it ended with {self.process.returncode}")
        for name in ("stderr.log", "stdout.log", "record.jsonl"):
            if text := self.text_of(name):
                parts.append(f"--- {name}, its end ---\n" + "\n".join(line[:1000] for line in text.splitlines()[-40:]))
        return "\n".join(parts)

    # --- requests ---

    def connect(self, timeout: float = PATIENCE) -> socket.socket:
        if self.uds:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(timeout)
            connection.connect(self.uds)
            return connection
        connection = socket.create_connection(("127.0.0.1", self.port), timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def get(self, target: str, *fields: str) -> Response:
        """Sends one request on a connection of its own, that ends after it."""
        with Raw(self) as wire:
            return wire.get(target, *fields, "Connection: close")

    def workers(self, count: int) -> set[int]:
        """Waits until so many workers have answered, asks on, and returns the pids of all that did."""
        seen: set[int] = set()

        def probe() -> bool:
            with ThreadPoolExecutor(4 * count) as pool:
                seen.update(pool.map(lambda _: int(self.get("/pid").body), range(8 * count)))
            return len(seen) >= count

        eventually(f"{count} workers answer, not only {seen}", probe)
        probe()
        return seen

    # --- what it wrote ---

    def text_of(self, name: str) -> str:
        try:
            return self.path(name).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def log(self) -> str:
        return self.text_of("stderr.log") + self.text_of("stdout.log") + self.text_of("error.log")

    def records(self, what: str | None = None) -> list[dict]:
        entries = [json.loads(line) for line in self.text_of("record.jsonl").splitlines() if line.endswith("}")]
        return [entry for entry in entries if what is None or entry["what"] == what]

    def events(self, event: str) -> list[dict]:
        found = []
        for line in self.log().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and entry.get("event") == event:
                found.append(entry)
        return found

    def told(self, flag: str) -> list[dict]:
        """Returns what the start said of a flag: the lines of event `compat` that name it."""
        word = re.compile(rf"(?<![A-Za-z0-9_]){re.escape(flag)}(?![\w-])")
        return [entry for entry in self.events("compat") if word.search(json.dumps(entry))]


def app_file(name: str) -> str:
    """Returns the text of a test app, for a program that is started in a folder of its own."""
    return (APPS / name).read_text()


def until_gone(pid: int) -> None:
    eventually(f"process {pid} ends", lambda: not is_alive(pid))


def settled(probe, quiet: float = 0.3, within: float = PATIENCE):
    """Returns what `probe` returns once it has not changed for `quiet` seconds."""
    deadline, last, since = time.monotonic() + within, probe(), time.monotonic()
    while time.monotonic() - since < quiet and time.monotonic() < deadline:
        time.sleep(0.02)
        if (fresh := probe()) != last:
            last, since = fresh, time.monotonic()
    return last
