#!/usr/bin/env python3
"""Counts the requests that are lost while a Python app is reloaded, recycled, upgraded and scaled.

oxicorn must lose none. Its peers go through the same events in the same run, and their losses are printed. Each server
has two workers. 64 keep-alive clients ask as fast as they are answered, and so do 16 clients that open a connection for
each request. A client never repeats a request. Before each reload and each upgrade the app's file is written anew,
and the app answers the version that it has.

Owns: the events, how each server is told of them, and the verdict in the last line. Refuses: to call an event done
before the server shows it (all old workers are gone, the new version is answered).
"""

import argparse
import collections
import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from servers import ROOT, VENV, Broken, Server, eventually, parents

KEPT, FRESH, WORKERS = 64, 16, 2
CLIENT = ROOT / "target/release/examples/load"
APP = """
from fastapi import FastAPI

app = FastAPI()


@app.get("/")
async def version() -> int:
    return {version}
"""
# After an event the load runs on for this long, so that requests that are lost late count too.
AFTERWARDS = 0.5


class Cannot(Exception):
    """Says why a server has no such event."""


@dataclasses.dataclass
class Loss:
    """What the clients saw of one event on one server."""

    requests: int
    ends: collections.Counter
    longest_ms: float
    happened: str

    @property
    def lost(self):
        return sum(self.ends.values())


class Load:
    """The clients, which run until the `with` block is left."""

    def __init__(self, port):
        command = [str(CLIENT), f"127.0.0.1:{port}", "/", str(KEPT), str(FRESH)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        said, _ = self.process.communicate(timeout=60)
        self.report = json.loads(said)

    def expect(self, versions):
        if self.report["numbers"] != list(range(1, versions + 1)):
            raise Broken(f"the clients were answered the versions {self.report['numbers']}, not 1 to {versions}")

    def loss(self, happened):
        ends = collections.Counter(self.report["ends"])
        return Loss(ends.total(), ends - collections.Counter(ok=ends["ok"]), self.report["longest_ms"], happened)


class Service:
    """A server with its app's file, and the ways in which it is told of an event."""

    def __init__(self, name, venv, words=(), **toml):
        self.version, self.name, self.venv = 1, name, venv
        if name == "uvicorn" and toml:
            words = ["--limit-max-requests", str(toml["workers__max_requests"])]
        elif name.startswith("gunicorn") and toml:
            words = ["--max-requests", str(toml["workers__max_requests"])]
        elif name == "granian":
            if toml:
                raise Cannot("it limits the age of a worker, not its requests")
            words = ["--respawn-failed-workers"]
        self.server = Server(name, "versioned:app", venv=venv, workers=WORKERS, words=words, paths=(), **toml)
        self.server.environment["PYTHONPATH"] = str(self.server.folder)
        self.write()

    def write(self):
        # A new file takes the place of the old one, so that no worker ever reads half of it.
        new = self.server.folder / "versioned.new"
        new.write_text(APP.format(version=self.version))
        new.rename(self.server.folder / "versioned.py")

    def __enter__(self):
        self.server.__enter__()
        eventually(lambda: len(self.workers()) == WORKERS, f"{self.name} has {WORKERS} workers")
        self.await_version()
        return self

    def __exit__(self, *error):
        self.server.__exit__(*error)

    def workers(self):
        """Returns the pids of the workers. The first process of every server serves nothing."""
        return set(self.server.processes()[1:])

    def signal(self, number):
        os.kill(self.server.pid, number)

    def ctl(self, *words):
        command = [str(self.venv / "bin/oxicorn"), *words, "-c", str(self.server.folder / "supervisor.toml")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise Broken(f"oxicorn {' '.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}")

    def asked(self):
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", "/", headers={"Connection": "close"})
                return int(connection.getresponse().read())
        return None

    def await_version(self):
        """Waits until eight new connections in turn are answered the present version."""
        newest = lambda: all(self.asked() == self.version for _ in range(8))
        eventually(newest, f"{self.name} answers version {self.version}")

    def replaced(self, old, count=WORKERS):
        """Waits until all old workers are gone and as many as there should be have taken their place."""
        gone = lambda: len(now := self.workers()) == count and not now & old
        eventually(gone, f"{self.name} has {count} new workers", 120)

    def reload(self):
        old = self.workers()
        self.version += 1
        self.write()
        if self.name == "oxicorn":
            self.ctl("reload")
        else:
            self.signal(signal.SIGHUP)
        self.replaced(old)
        self.await_version()

    def upgrade(self):
        if self.name in ("uvicorn", "granian"):
            raise Cannot("it has no upgrade")
        old = self.workers()
        self.version += 1
        self.write()
        if self.name == "oxicorn":
            self.ctl("upgrade")
        else:
            self.upgrade_gunicorn(old)
        self.replaced(old)
        self.await_version()

    def upgrade_gunicorn(self, old):
        """Starts a new master beside the old one, and stops the old one once the new workers answer.

        SIGWINCH, which would stop the old workers first, is ignored by a Gunicorn that runs in the foreground.
        """
        self.signal(signal.SIGUSR2)
        eventually(lambda: len(self.workers() - old) == 1 + WORKERS, "Gunicorn's new master has its workers")
        new = min(pid for pid, parent in parents().items() if parent == self.server.pid and pid not in old)
        for _ in range(8):
            eventually(lambda: self.asked() == self.version, "Gunicorn's new workers answer")
        self.signal(signal.SIGTERM)
        eventually(lambda: self.server.pid not in parents(), "Gunicorn's old master is gone")
        self.server.pid = new

    def scale(self, more):
        if self.name == "granian":
            raise Cannot("it cannot change the number of its workers")
        count = len(self.workers())
        self.signal(signal.SIGTTIN if more else signal.SIGTTOU)
        want = count + (1 if more else -1)
        eventually(lambda: len(self.workers()) == want, f"{self.name} has {want} workers")


def reloads(name, venv):
    with Service(name, venv) as service, Load(service.server.port) as load:
        for _ in range(10):
            time.sleep(AFTERWARDS)
            service.reload()
        time.sleep(AFTERWARDS)
    load.expect(11)
    return load.loss("10 reloads")


def recycles(name, venv):
    with Service(name, venv, workers__max_requests=1000) as service:
        seen = service.workers()
        with Load(service.server.port) as load:
            end = time.monotonic() + 15
            while time.monotonic() < end:
                seen |= service.workers()
                time.sleep(0.02)
        eventually(lambda: len(service.workers()) >= WORKERS, f"{name} has its workers again")
    if len(seen) == WORKERS:
        raise Broken("no worker was replaced")
    return load.loss(f"{len(seen) - WORKERS} workers recycled")


def upgrades(name, venv):
    with Service(name, venv) as service, Load(service.server.port) as load:
        for _ in range(4):
            time.sleep(AFTERWARDS)
            service.upgrade()
        time.sleep(AFTERWARDS)
    load.expect(5)
    return load.loss("4 upgrades")


def scales(name, venv):
    with Service(name, venv) as service, Load(service.server.port) as load:
        for more in (True, True, False, False, False, True):
            time.sleep(AFTERWARDS)
            service.scale(more)
        time.sleep(AFTERWARDS)
    return load.loss("3 TTIN, 3 TTOU")


EVENTS = {"reloads": reloads, "recycles": recycles, "upgrades": upgrades, "scales": scales}
NAMES = ["oxicorn", "uvicorn", "gunicorn-uvicorn", "gunicorn", "granian"]


def main():
    # A SIGTERM ends the servers too, because they have sessions of their own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--venv", type=pathlib.Path, default=VENV, help="where the servers are installed")
    ask.add_argument("--server", action="append", choices=NAMES, help="only these servers")
    ask.add_argument("--event", action="append", choices=list(EVENTS), help="only these events")
    ask = ask.parse_args()
    print(
        f"{KEPT} keep-alive clients and {FRESH} that open a connection for each request, {WORKERS} workers, FastAPI\n"
    )
    print("| server | event | requests | lost | how | longest wait, ms |\n|---|---|---|---|---|---|", flush=True)
    faults, total = [], 0
    for event, run in EVENTS.items():
        for name in NAMES:
            if (ask.event and event not in ask.event) or (ask.server and name not in ask.server):
                continue
            try:
                loss = run(name, ask.venv)
            except (Cannot, Broken, OSError, subprocess.SubprocessError, ValueError) as error:
                print(f"| {name} | {event} | – | – | {error} | – |", flush=True)
                if name == "oxicorn":
                    faults.append(f"{event}: {error}")
                continue
            how = ", ".join(f"{count} {end}" for end, count in loss.ends.most_common())
            cells = f"{loss.requests:,} | {loss.lost:,} | {how} | {loss.longest_ms:.0f}"
            print(f"| {name} | {loss.happened} | {cells} |", flush=True)
            if name == "oxicorn":
                total += loss.requests
                if loss.lost:
                    faults.append(f"{loss.happened}: {loss.lost} of {loss.requests:,} lost ({how})")
    print("", *(f"FAILED: {fault}" for fault in faults), "", sep="\n")
    print(f"oxicorn: {total:,} requests, " + (f"{len(faults)} events failed" if faults else "0 lost"))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
