#!/usr/bin/env python3
"""Measures the CPU time of a request to a Python app under oxicorn, beside its peers: `make bench-python`.

The peers are Uvicorn and Granian, and for WSGI apps Gunicorn (gthread) and Granian.

Each server has one worker and the same app. A round is a second of load for each server, in a new random order, so that
all servers of a round see the same machine. A figure is the median over the rounds, a ratio the median of the ratios of
the rounds. CPU time is that of all threads of all processes of a server, divided by the requests that were answered.

Owns: the rows, their limits, and the verdict in the last line. Refuses: to compare servers whose answers differ, and to
count a request that failed.
"""

import argparse
import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile

from echo import Swarm
from servers import HERE, ROOT, VENV, Broken, Server, memory

ITEM = '{"id":1,"name":"otter","price":1.5,"tags":["a","b"]}'
OURS = "oxicorn"


@dataclasses.dataclass(frozen=True)
class Row:
    """What is asked of which app. `limits` has, for a number of connections, the highest ratios to the peers."""

    name: str
    app: str
    path: str
    limits: dict
    body: str = ""
    script: str = ""
    socket: bool = False
    # The threads of a WSGI app; zero for an ASGI app.
    threads: int = 0
    # Limits of oxicorn with python.asgi_spec = "2.5".
    spec_2_5: dict = dataclasses.field(default_factory=dict)

    @property
    def peers(self):
        return ("gunicorn", "granian") if self.threads else ("uvicorn", "granian")


def to(uvicorn, granian=None):
    return {"uvicorn": uvicorn, "granian": granian}


def of_wsgi(gunicorn, granian=None):
    return {"gunicorn": gunicorn, "granian": granian}


def wsgi_row(name, app, threads, gunicorn, granian=None):
    limits = dict.fromkeys((16, 1), of_wsgi(gunicorn, granian))
    return Row(f"{name}, threads = {threads}", f"wsgi_apps:{app}", "/", limits, threads=threads)


ROWS = [
    Row("bare ASGI GET", "apps:bare", "/", {16: to(0.45, 0.45), 1: to(0.42, 0.26)}),
    Row("FastAPI GET", "apps:fast", "/items/7", {16: to(0.65, 0.68), 1: to(0.78, 0.55)}),
    Row("FastAPI, 120 routes", "apps:mix", "/r1/5?q=a", {16: to(0.76, 0.74)}, script="mix.lua"),
    Row("FastAPI POST", "apps:fast", "/items", {16: to(0.70, 0.52), 1: to(0.72, 0.42)}, body=ITEM, script="post.lua"),
    Row("StreamingResponse", "apps:star", "/stream", {16: to(0.75)}, spec_2_5={16: to(0.22)}),
    Row("FileResponse, 50 kB", "apps:star", "/file", {16: to(0.40, 0.90)}),
    Row("web socket echo", "apps:star", "/echo", {64: to(0.60)}, socket=True),
    Row("web socket echo, bare ASGI", "apps:bare", "/echo", {64: to(None)}, socket=True),
    wsgi_row("bare WSGI GET", "bare", 1, 0.60, 0.90),
    wsgi_row("bare WSGI GET", "bare", 8, 0.60, 0.90),
    wsgi_row("Flask GET", "flask", 1, 0.90),
    wsgi_row("Flask GET", "flask", 8, 0.90),
]
# A worker may have so many MiB more than a bare interpreter that imported the same app and asyncio.
WORKER_MIB, MASTER_MIB = 4.0, 16.0


def arguments():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--rounds", type=int, default=8)
    ask.add_argument("--seconds", type=int, default=1, help="the time of each server in a round")
    ask.add_argument("--row", action="append", default=[], metavar="WORD", help="only rows whose name holds this")
    ask.add_argument("--connections", type=int, help="only the cells with this number of connections")
    ask.add_argument("--venv", type=pathlib.Path, default=VENV, help="where oxicorn and its peers are installed")
    ask.add_argument("--without", action="append", default=[], metavar="NAME", help="leave a server out")
    ask.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="measure one more server; its command holds {app} and {port}",
    )
    ask.add_argument("--save", type=pathlib.Path, default=ROOT / "target/bench/python.json")
    ask.add_argument("--list", action="store_true", help="only print the names of the rows")
    return ask.parse_args()


def asked(server, row):
    """Asks once. Returns the status, the type and the body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json"} if row.body else {}
        connection.request("POST" if row.body else "GET", row.path, row.body or None, headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("content-type"), answer.read()


def wrk(server, row, connections, seconds):
    command = ["wrk", "-t", "1", "-c", str(connections), "-d", f"{seconds}s"]
    command += ["-s", str(HERE / row.script)] if row.script else []
    command += [f"http://127.0.0.1:{server.port}{row.path}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if wrong := re.search(r"(Non-2xx|Socket errors).*", said):
        raise Broken(f"{server.name}: {wrong[0]}")
    return int(re.search(r"(\d+) requests in", said)[1])


@dataclasses.dataclass
class Turn:
    """One server's turn in a round: microseconds of CPU for a request, and requests a second."""

    us: float
    rate: float


def turn(server, load, seconds):
    before = server.cpu()
    count = load(seconds)
    after = server.cpu()
    if before.keys() != after.keys():
        raise Broken(f"{server.name} has other processes than before:\n{server.log()[-2000:]}")
    return Turn(sum(after[pid] - before[pid] for pid in after) / count / 1000, count / seconds)


class Bench:
    def __init__(self, ask):
        self.ask = ask
        self.custom = dict(given.split("=", 1) for given in ask.also)
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="oxicorn-bench-"))
        self.file = self.work / "file.bin"
        self.file.write_bytes(os.urandom(50_000))
        self.record, self.met, self.missed = [], [], []

    def names(self, row):
        names = [*row.peers, *self.custom, OURS, *([f"{OURS}-2.5"] if row.spec_2_5 else [])]
        return [name for name in names if name.split("-")[0] not in self.ask.without and name not in self.ask.without]

    def server(self, name, row):
        words = ["--no-ws"] if name == "granian" and not row.socket else []
        toml = {"python__asgi_spec": '"2.5"'} if name == f"{OURS}-2.5" else {}
        environment = {"BENCH_FILE": str(self.file)}
        how = {"venv": self.ask.venv, "custom": self.custom, "words": words, "environment": environment}
        how["threads"] = row.threads
        return Server(name, row.app, **how, **toml)

    def row(self, row):
        cells = [count for count in row.limits if self.ask.connections in (None, count)]
        if not cells:
            return
        with contextlib.ExitStack() as stack:
            servers = {name: stack.enter_context(self.server(name, row)) for name in self.names(row)}
            if not row.socket:
                answers = {name: asked(server, row) for name, server in servers.items()}
                if len(set(answers.values())) != 1 or next(iter(answers.values()))[0] != 200:
                    raise Broken(f"the answers differ: {answers}")
            for connections in cells:
                self.cell(row, connections, servers)

    def cell(self, row, connections, servers):
        with contextlib.ExitStack() as stack:
            loads = {}
            for name, server in servers.items():
                if row.socket:
                    swarm = stack.enter_context(contextlib.closing(Swarm(server.port, row.path, connections)))
                    loads[name] = swarm.run
                else:
                    loads[name] = lambda seconds, server=server: wrk(server, row, connections, seconds)
                loads[name](1)  # so that no round has the first requests
            rounds = []
            for _ in range(self.ask.rounds):
                names = random.sample(list(servers), len(servers))
                rounds.append({name: turn(servers[name], loads[name], self.ask.seconds) for name in names})
        for name in servers:
            of = [one[name] for one in rounds]
            ratios = {
                peer: [one[name].us / one[peer].us for one in rounds]
                for peer in row.peers
                if peer in servers
            }
            self.report(row, connections, name, of, {} if name in ratios else ratios)
        cell = {name: [[one[name].us, one[name].rate] for one in rounds] for name in servers}
        self.record.append({"row": row.name, "connections": connections, "us_and_rate": cell})

    def report(self, row, connections, name, turns, ratios):
        cells, wrong = [], []
        limits = row.spec_2_5 if name == f"{OURS}-2.5" else row.limits if name == OURS else {}
        for peer, values in ratios.items():
            ratio, limit = statistics.median(values), limits.get(connections, {}).get(peer)
            cells.append(f"{ratio:.2f} ({min(values):.2f}–{max(values):.2f})" + (f" ≤ {limit:.2f}" if limit else ""))
            if limit and ratio > limit:
                wrong.append(f"{ratio:.2f} of {peer.capitalize()}, limit {limit:.2f}")
        us = [one.us for one in turns]
        rate = statistics.median(one.rate for one in turns)
        figures = f"{statistics.median(us):.1f} ({min(us):.1f}–{max(us):.1f}) | {rate:,.0f}"
        title = f"{row.name} | {connections} | {name}"
        print(f"| {title} | {figures} | {' | '.join(cells or ['', ''])} |{' MISSED' if wrong else ''}", flush=True)
        if any(limits.get(connections, {}).values()):
            self.judge(f"{row.name}, {connections}" + (", spec 2.5" if name != OURS else ""), "; ".join(wrong))

    def judge(self, what, wrong):
        if wrong:
            self.missed.append(f"{what}: {wrong}")
        else:
            self.met.append(what)

    def memory(self):
        """Compares a worker with an interpreter that imported the same app, before and after the same requests."""
        row = next(row for row in ROWS if row.name == "FastAPI GET")
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(self.server(OURS, row))
            twin = stack.enter_context(Twin(self.ask.venv, row))
            asked(server, row)
            master, *workers = server.processes()
            if len(workers) != 1:
                raise Broken(f"oxicorn has {len(workers)} workers")
            figures = {}
            for when in ("after the start", "after 10,000 requests"):
                # All three live at the same time, so that each has the same part of the pages that they share.
                figures[when] = {
                    "master": memory(master),
                    "worker": memory(workers[0]),
                    "bare": memory(twin.process.pid),
                }
                if len(figures) == 1:
                    twin.serve(10_000)
                    total = 0
                    while total < 10_000:
                        total += wrk(server, row, 16, 1)
        print("\n| memory, MiB | PSS of the master | of the worker | of a bare interpreter | more | own pages more |")
        print("|---|---|---|---|---|---|")
        for when, of in figures.items():
            pss = {name: of[name]["Pss"] / 1024 for name in of}
            own = (of["worker"]["Private_Dirty"] - of["bare"]["Private_Dirty"]) / 1024
            more = pss["worker"] - pss["bare"]
            cells = [f"{size:.1f}" for size in (*pss.values(), more, own)]
            print(f"| {when} | {' | '.join(cells)} |")
            self.judge(
                f"memory of a worker {when}", more > WORKER_MIB and f"{more:.1f} MiB more, limit {WORKER_MIB:.0f}"
            )
            self.judge(
                f"memory of the master {when}",
                pss["master"] > MASTER_MIB and f"{pss['master']:.1f} MiB, limit {MASTER_MIB:.0f}",
            )
        self.record.append({"memory": figures})


class Twin:
    """A bare interpreter that has imported the app and asyncio, and calls the app without a server."""

    SCRIPT = """
import asyncio, importlib, sys
module, attribute = sys.argv[1].split(":")
app, path = getattr(importlib.import_module(module), attribute), sys.argv[2]
scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
         "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
         "headers": [(b"host", b"127.0.0.1")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)}

async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}

async def send(message):
    pass

async def calls(count):
    for _ in range(count):
        await asyncio.create_task(app(dict(scope), receive, send))

print("imported", flush=True)
with asyncio.Runner() as runner:
    while count := sys.stdin.readline():
        runner.run(calls(int(count)))
        print("served", flush=True)
"""

    def __init__(self, venv, row):
        command = [str(venv / "bin/python"), "-c", self.SCRIPT, row.app, row.path]
        environment = os.environ | {"PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1"}
        how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **how)

    def __enter__(self):
        self.expect("imported")
        self.serve(1)
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(10)

    def serve(self, count):
        print(count, file=self.process.stdin, flush=True)
        self.expect("served")

    def expect(self, word):
        if (line := self.process.stdout.readline().strip()) != word:
            raise Broken(f"the bare interpreter said {line!r}, not {word}")


def versions(venv):
    code = "import importlib.metadata as m, platform; print('Python', platform.python_version())\n"
    names = "oxicorn uvicorn granian gunicorn uvloop httptools fastapi starlette pydantic flask"
    code += f"for n in {names.split()}:\n"
    code += "    print(n, m.version(n) if any(d.name == n for d in m.distributions()) else '-')"
    return subprocess.run([venv / "bin/python", "-c", code], capture_output=True, text=True).stdout.splitlines()


def main():
    # A SIGTERM ends the servers too, because they have sessions of their own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    ask = arguments()
    rows = [row for row in ROWS if not ask.row or any(word in row.name for word in ask.row)]
    if ask.list:
        return print(*(row.name for row in rows), "memory", sep="\n")
    bench = Bench(ask)
    # What else runs makes a request dearer, and takes most from the server with the warmest caches.
    busy = f"load average {os.getloadavg()[0]:.1f} before"
    print(*versions(ask.venv), f"{os.cpu_count()} CPUs", platform.release(), busy, sep=", ")
    print(f"{ask.rounds} rounds of {ask.seconds} s; medians (lowest–highest)")
    print("ratios to Uvicorn, or to Gunicorn for a WSGI app, and to Granian\n")
    print("| row | connections | server | µs of CPU a request | requests a second | / Uvicorn, Gunicorn | / Granian |")
    print("|---|---|---|---|---|---|---|", flush=True)
    measures = [(row.name, lambda row=row: bench.row(row)) for row in rows]
    if OURS not in ask.without and (not ask.row or any(word in "memory" for word in ask.row)):
        measures.append(("memory", bench.memory))
    for name, measure in measures:
        try:
            measure()
        except (Broken, OSError, subprocess.SubprocessError) as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            bench.judge(name, "could not be measured")
    ask.save.parent.mkdir(parents=True, exist_ok=True)
    ask.save.write_text(json.dumps(bench.record, indent=1))
    print("", *(f"MISSED: {what}" for what in bench.missed), sep="\n")
    print(f"{len(bench.met)} rows met, {len(bench.missed)} missed")
    return bool(bench.missed)


if __name__ == "__main__":
    sys.exit(main())
