#!/usr/bin/env python3
"""Measures point reads and inserts a second of the reference service, and of FastAPI with Uvicorn for the same work.

`make bench-facts` runs it. Both servers have two workers, the same mongod or SQLite, and the same wrk. Their rounds
alternate. The output is the median and the range. Inserts on SQLite are equally durable on both sides (WAL,
synchronous=NORMAL).
Servers, client and database share the machine, so compare figures of one run only.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
INSERT = 'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
INSERT += 'wrk.body = \'{"text":"Otters sleep holding hands"}\'\n'
# Prints wrk's counts at the end of a run, with the answers that are neither 2xx nor 3xx.
REPORT = 'done = function(s, l) io.write(string.format("%d %d %d %d\\n", s.requests, s.duration, s.errors.status, '
REPORT += 's.errors.connect + s.errors.read + s.errors.write + s.errors.timeout)) end\n'


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def started(command, port, path, **environment):
    process = subprocess.Popen(
        command,
        cwd=path,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=open(path / "log", "ab"),
        start_new_session=True,
    )
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", port), 1):
                return process
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.05)
    sys.exit(f"{command[0]} does not serve:\n{(path / 'log').read_text()}")


def ask(port, path, body=None):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", body and json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    return json.load(urllib.request.urlopen(request, timeout=10))


def wrk(port, path, script, seconds, folder):
    lua = folder / "wrk.lua"
    lua.write_text(script + REPORT)
    command = ["wrk", "-t", "1", "-c", "32", "-d", f"{seconds}s", "-s", str(lua), f"http://127.0.0.1:{port}{path}"]
    requests, micros, refused, broken = map(
        int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")[-2].split()
    )
    if refused or broken:
        sys.exit(f"{path}: {refused} answers failed, {broken} connections broke; the rate of failures says nothing")
    return requests / (micros / 1e6)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=int, default=3)
    arguments.add_argument("--program", default=ROOT / "target/release/oxicorn")
    asked = arguments.parse_args()
    peers = ROOT / "target/peers-facts"
    processes, rates = [], {}
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)

        def folder(name):
            (work / name).mkdir()
            return work / name

        try:
            database = free_port()
            mongod = str(ROOT / "target/mongod/fiftyone/db/bin/mongod")
            processes.append(
                started(
                    [mongod, "--dbpath", ".", "--port", str(database), "--bind_ip", "127.0.0.1"],
                    database,
                    folder("mongod"),
                )
            )
            uri = f"mongodb://127.0.0.1:{database}"
            services = {}
            for store in ("MongoDB", "SQLite"):
                port, where = free_port(), folder(f"oxicorn-{store}")
                given = (
                    {"MONGODB_URI": uri}
                    if store == "MongoDB"
                    else {"OXICORN_SERVICE__SQLITE_PATH": str(where / "facts.db")}
                )
                flags = ["--bind", f"127.0.0.1:{port}", "--workers", "2", "--name", f"bench-{store.lower()}"]
                processes.append(
                    started([str(asked.program), *flags], port, where, OXICORN_CONTROL__SOCKET="off", **given)
                )
                services[store, "oxicorn"] = port
                port, where = free_port(), folder(f"fastapi-{store}")
                given = {"MONGODB_URI": uri} if store == "MongoDB" else {"SQLITE_PATH": str(where / "facts.db")}
                command = [
                    sys.executable,
                    "-m",
                    "uvicorn",
                    "--app-dir",
                    str(ROOT / "benches"),
                    "--port",
                    str(port),
                    "--workers",
                    "2",
                    "--no-access-log",
                    "fastapi_facts:app",
                ]
                processes.append(started(command, port, where, PYTHONPATH=str(peers), **given))
                services[store, "FastAPI + Uvicorn"] = port
            time.sleep(1)
            facts = {key: ask(port, "/facts", {"text": "Honey never spoils"})["id"] for key, port in services.items()}
            for _ in range(asked.rounds):
                for key, port in services.items():
                    for what, path, script in (
                        ("point reads", f"/facts/{facts[key]}", ""),
                        ("inserts", "/facts", INSERT),
                    ):
                        rates.setdefault((key[0], what), {}).setdefault(key[1], []).append(
                            wrk(port, path, script, asked.seconds, work)
                        )
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(timeout=30)
    print(f"requests a second, 2 workers, 32 connections, median of {asked.rounds} rounds of {asked.seconds} s (range)")
    for (store, what), by in sorted(rates.items()):
        for name, values in by.items():
            print(
                f"{store:8} {what:12} {name:18} {statistics.median(values):8.0f}  "
                f"({min(values):.0f}–{max(values):.0f})"
            )
        ours, theirs = (statistics.median(by[name]) for name in ("oxicorn", "FastAPI + Uvicorn"))
        print(f"{store:8} {what:12} ratio {ours / theirs:.1f}")


main()
