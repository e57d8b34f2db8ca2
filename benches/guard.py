#!/usr/bin/env python3
"""Compares the instructions of a request in a worker of the release binary with the recorded ones: `make bench-guard`.

Owns: the count, and the verdict. Valgrind's callgrind counts, because its counts depend little on the machine and its
other load. A count of more than 3 % above benches/instructions.json is a failure. Refuses: to measure
time (`cargo bench --bench load` does), and to count the work of the kernel.

The program runs twice, once with few requests and once with many. The difference of both counts is the cost of the
requests alone, because the start and the end cost the same in both runs.
`--record` writes new figures, for a change that is worth its price or for a new compiler.
"""

import argparse
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
BINARY = ROOT / "target/release/oxicorn"
RECORD = ROOT / "benches/instructions.json"
FEW, MANY = 500, 5_500
MORE = 0.03

# All other settings keep their defaults. The timeouts are longer, because under valgrind everything takes fifty times
# as long.
SETTINGS = """
[server]
bind = ["127.0.0.1:{port}"]
[workers]
count = 1
max_requests = 0
timeout = "300s"
boot_timeout = "300s"
[log]
access = "{access}"
[service]
sqlite_path = "{folder}/facts.db"
"""
WAYS = {"GET /health": "off", "GET /health, access log on": "{folder}/access.log"}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ask(port, times):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for _ in range(times):
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            sys.exit(f"FAILED: /health answered {answer.status}")
    connection.close()


def answers(port):
    try:
        ask(port, 1)
        return True
    except OSError:
        return False


def instructions(access, times):
    """Returns the instructions of the worker, from its fork to its end."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        settings = pathlib.Path(folder, "supervisor.toml")
        settings.write_text(SETTINGS.format(port=port, folder=folder, access=access.format(folder=folder)))
        command = ["valgrind", "--tool=callgrind", "--trace-children=yes", f"--callgrind-out-file={folder}/out.%p"]
        # The program gets only PATH from the caller's environment, because it would also read settings from there.
        environment = {"PATH": os.environ["PATH"]}
        with open(f"{folder}/log", "w+") as log:
            master = subprocess.Popen(
                [*command, BINARY, "--config", settings], env=environment, cwd=folder, stdout=log, stderr=log
            )
            try:
                end = time.monotonic() + 60
                while not answers(port):
                    if time.monotonic() > end or master.poll() is not None:
                        log.seek(0)
                        sys.exit(f"FAILED: the service does not serve\n{log.read()}")
                    time.sleep(0.1)
                ask(port, times)
            finally:
                master.send_signal(signal.SIGTERM)
                master.wait(120)
        counts = []
        for out in pathlib.Path(folder).glob("out.*"):
            total = re.search(r"^(?:summary|totals): (\d+)", out.read_text(errors="replace"), re.MULTILINE)
            if total and int(out.suffix[1:]) != master.pid:
                counts.append(int(total[1]))
        # The child with the most instructions is the worker, because the master's other children are short-lived
        # helpers.
        return max(counts)


def main():
    arguments = argparse.ArgumentParser(description="Compares the instructions of a request with the recorded ones.")
    arguments.add_argument("--record", action="store_true", help="write the figures instead of comparing them")
    record = arguments.parse_args().record
    compiler = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    counted = {}
    for way, access in WAYS.items():
        few, many = instructions(access, FEW), instructions(access, MANY)
        counted[way] = round((many - few) / (MANY - FEW))
    if record:
        RECORD.write_text(json.dumps({"compiler": compiler, "instructions": counted}, indent=2) + "\n")
    before = json.loads(RECORD.read_text())
    if compiler != before["compiler"]:
        print(f"recorded with {before['compiler']}, counted with {compiler}")
    worse = []
    for way, count in counted.items():
        known = before["instructions"][way]
        change = count / known - 1
        print(f"{way:<28} {count:>7,} instructions per request, recorded {known:,}: {change:+.1%}")
        if change > MORE:
            worse.append(way)
    if worse:
        sys.exit(f"FAILED: more than {MORE:.0%} above the recorded figure: {', '.join(worse)}")


main()
