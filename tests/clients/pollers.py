#!/usr/bin/env python3
"""Runs clients that ask only now and then, over wires with a delay. All programs have their default settings. No
request may be lost.

With `--reloads 100`, some clients ask during this many reloads of oxicorn, and others during as many reloads of an
nginx in front of an oxicorn that does not reload. HTTP/1.1 itself loses a request that is sent while the end of its
idle connection is on the wire, so these losses are only printed, those of oxicorn beside those of nginx. All clients
run at the same time, because they mostly wait. A run takes six minutes without reloads, and a quarter of an hour with
a hundred reloads.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import pathlib
import random
import signal
import sys
import tempfile
import time

from direct import HTTP1
from drive import GUARD, Broken, Result, Service, accepts, certificate, eventually, free_port
from wire import Wire

CLIENTS = {
    "requests", "urllib3", "httpx", "httpx, async", "aiohttp", "niquests", "pycurl", "node http.Agent", "node fetch",
    "Java 17 HttpClient",
    "Java 17 HttpURLConnection", "LWP", "HTTP::Tiny", "Ruby net/http", "PHP curl", "Go",
}  # fmt: skip
ROWS = [row for row in HTTP1 if row.name in CLIENTS and row.transport == "HTTP/1.1"]
METHODS = ("GET", "POST")
WIRES_S = (0.001, 0.02, 0.1)
# Two reloads are further apart than two polls of any client. Otherwise a client that closes its connection when it sees
# the end of it would close long before its next poll.
INTERVALS, APART_S, LANES = (10, 30), (32, 48), 5
NGINX = """
daemon off; worker_processes 2; pid nginx.pid; error_log said;
events {}
http {
    access_log off;
    server { listen 127.0.0.1:%d; location / { proxy_pass http://127.0.0.1:%d; } }
}
"""


def polls(asked, at_once):
    """Runs each value of `asked`: {key: (row, threads, origin, method, seconds, pause)}.

    At most `at_once` run at the same time, and those that take longest start first. Returns {key: Result or Broken}.
    """

    def one(row, threads, origin, method, seconds, pause):
        try:
            return dataclasses.replace(row.load, threads=threads).ask(origin, method, seconds, pause)
        except Broken as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        longest_first = sorted(asked.items(), key=lambda item: -item[1][4])
        running = {key: pool.submit(one, *words) for key, words in longest_first}
        return {key: future.result() for key, future in running.items()}


def table(results, columns):
    """Prints a table with a row for each client, and yields a sentence for each loss.

    `results` is {(client, column, …): Result}.
    """
    print(f"| client | {' | '.join(map(str, columns))} |\n|{'---|' * (len(columns) + 1)}")
    for row in ROWS:
        line = []
        for column in columns:
            some = [
                result
                for key, result in results.items()
                if key[:2] == (row.name, column) and isinstance(result, Result)
            ]
            total = sum(some, Result())
            line.append(f"{total.tried} ({total.lost})")
        print(f"| {row.name} | {' | '.join(line)} |")
    for key, result in results.items():
        what = ", ".join(map(str, key))
        if isinstance(result, Broken) or not result.tried:
            yield f"{what}: {result}"
        elif result.lost:
            errors = "; ".join(f"{n} × {text}" for text, n in result.errors.most_common(3))
            yield f"{what}: {result.lost} of {result.tried} lost ({errors})"


def without_reloads(intervals):
    """Polls while nothing happens to the service. Returns {(client, interval, method, wire): Result}."""
    with Service() as service, contextlib.ExitStack() as stack:
        wires = {delay: stack.enter_context(Wire(service.port, delay)) for delay in WIRES_S}
        asked = {
            (row.name, f"{interval} s", method, f"{delay * 1000:.0f} ms"): (
                row, 1, f"http://127.0.0.1:{wire.port}", method, max(4.2 * interval, 60), interval,
            )
            for row in ROWS for interval in intervals for method in METHODS for delay, wire in wires.items()
        }  # fmt: skip
        return polls(asked, 200)


@contextlib.contextmanager
def nginx(service):
    """Runs nginx with its defaults in front of the service. Gives nginx's port, and a function that reloads nginx."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        (pathlib.Path(folder) / "nginx.conf").write_text(NGINX % (port, service.port))
        process = GUARD.start(["nginx", "-p", folder, "-c", "nginx.conf", "-e", "said"])
        try:
            eventually(lambda: accepts(port), 10, "nginx serves")
            yield port, lambda: process.send_signal(signal.SIGHUP)
        finally:
            process.terminate()
            process.wait(40)
            GUARD.forget(process)


def lane(number, reloads, threads):
    """Reloads one oxicorn and one nginx while some of the clients poll them.

    Returns {(client, "10 s, oxicorn", method): Result}.
    """
    with contextlib.ExitStack() as stack:
        service, behind = stack.enter_context(Service()), stack.enter_context(Service())
        port, reload_nginx = stack.enter_context(nginx(behind))
        wires = {name: stack.enter_context(Wire(to, 0.02)) for name, to in [("oxicorn", service.port), ("nginx", port)]}
        chance = random.Random(number)

        def happens():
            for _ in range(reloads):
                time.sleep(chance.uniform(*APART_S))
                service.ctl("reload")
                reload_nginx()

        asked = {
            (row.name, f"{interval} s, {name}", method): (
                row, threads, f"http://127.0.0.1:{wire.port}", method, (reloads + 0.5) * sum(APART_S) / 2, interval,
            )
            for row in ROWS[number::LANES] for interval in INTERVALS
            for name, wire in wires.items() for method in METHODS
        }  # fmt: skip
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            reloaded = pool.submit(happens)
            results = polls(asked, len(asked))
            reloaded.result()
        return results


def reloading(reloads, threads):
    with concurrent.futures.ThreadPoolExecutor(LANES) as pool:
        lanes = [pool.submit(lane, number, reloads // LANES, threads) for number in range(LANES)]
        return {key: result for one in lanes for key, result in one.result().items()}


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--intervals", default="1,2,5,10,30,60", help="in seconds")
    ask.add_argument("--reloads", type=int, default=0)
    ask.add_argument("--threads", type=int, default=8, help="pollers of each program, with --reloads")
    ask = ask.parse_args()
    certificate()
    began = time.monotonic()
    if ask.reloads:
        print(f"Polls (lost) through {ask.reloads} reloads, over 20 ms:\n")
        lost = list(
            table(
                reloading(ask.reloads, ask.threads),
                [f"{interval} s, {name}" for interval in INTERVALS for name in ("oxicorn", "nginx")],
            )
        )
        print("", *lost, sep="\n")
        return any("lost (" not in sentence for sentence in lost)
    intervals = [int(interval) for interval in ask.intervals.split(",")]
    print(f"Polls (lost), GET and POST over {', '.join(f'{delay * 1000:.0f}' for delay in WIRES_S)} ms each way:\n")
    faults = list(table(without_reloads(intervals), [f"{interval} s" for interval in intervals]))
    print("", *(f"FAILED: {fault}" for fault in faults), f"pollers: {time.monotonic() - began:.0f} s", sep="\n")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
