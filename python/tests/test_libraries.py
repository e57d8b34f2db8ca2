"""Promise: the libraries that apps use work in a request, and a reload under load loses nothing of theirs.

The databases are real ones, started here. What test_asyncio.py asks of the loop alone is not repeated.
"""

import asyncio
import concurrent.futures
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import httpx
import pytest

from harness import PATIENCE, TESTS, eventually

# An address of our own: on 127.0.0.1 any client of another test may have taken the port for its end of a connection.
HOST = f"127.{1 + os.getpid() % 250}.{os.getpid() // 250 % 250}.9"

EXPECTED = {
    "/asyncpg": [285, 0, 500_500, "told"],
    "/redis": [[True, 2, 3, 1], "pushed", "published"],
    "/pymongo": [True, 4950],
    "/httpx": ["timed out"] * 3,
    "/anyio": [[0, 1, 4, 9, 16], [True]],
    "/task-group": ["cancelled", "failed"],
    "/timeout": "timed out",
    "/subprocess": ["one", "two", 0],
    "/to-thread": ["the request", True],
    "/signal": "seen",
}


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@pytest.fixture(scope="module")
def databases():
    """PostgreSQL on a Unix socket, Redis and MongoDB on their usual ports."""
    postgres = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    mongod = TESTS.parents[1] / "target/mongod/fiftyone/db/bin/mongod"
    folder = Path(tempfile.mkdtemp(prefix="oxicorn-libraries-"))
    folder.chmod(0o755)
    for name in ("postgres", "mongo"):
        (folder / name).mkdir()
    # PostgreSQL refuses to run as root.
    user = {}
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        os.chown(folder / "postgres", owner.pw_uid, owner.pw_gid)
    data = folder / "postgres/data"
    running = []

    def start(*words, **options):
        log = open(folder / f"{Path(words[0]).name}.log", "ab")
        with log:
            running.append(
                subprocess.Popen(words, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options)
            )

    try:
        start(mongod, "--dbpath", folder / "mongo", "--bind_ip", HOST, "--nounixsocket", "--setParameter",
              "diagnosticDataCollectionEnabled=false")
        start("redis-server", "--bind", HOST, "--save", "", "--dir", folder)
        subprocess.run(
            [postgres / "initdb", "--no-sync", "--auth=trust", "--username=postgres", "--pgdata", data],
            cwd=folder, check=True, capture_output=True, timeout=50, **user,
        )
        options = ["-k", data.parent, "-c", "listen_addresses=", "-c", "fsync=off"]
        start(postgres / "postgres", "-D", data, *options, **user)
        ready = [postgres / "pg_isready", "--quiet", "--host", data.parent]
        eventually("PostgreSQL accepts connections", lambda: subprocess.run(ready).returncode == 0)
        eventually("Redis listens", lambda: listens(6379))
        eventually("MongoDB listens", lambda: listens(27017))
        yield {"POSTGRES": str(data.parent), "HOST": HOST}
    except BaseException:
        for log in folder.glob("*.log"):
            print(f"--- {log.name} ---", *log.read_text(errors="replace").splitlines()[-20:], sep="\n")
        raise
    finally:
        for process in running:
            # PostgreSQL ends its own processes at SIGQUIT, and leaves them behind at SIGKILL.
            process.send_signal(signal.SIGQUIT if Path(process.args[0]).name == "postgres" else signal.SIGKILL)
        for process in running:
            process.wait(PATIENCE)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shared(launch_for_module, databases):
    return launch_for_module("libraries:app", environment=databases)


@pytest.fixture
def server(shared):
    shared.clear_records()
    return shared


def at_once(server, *requests):
    """Sends requests at the same time, each over a connection of its own."""

    async def send():
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
            return await asyncio.gather(*(client.request(method, path, **more) for method, path, more in requests))

    return asyncio.run(send())


@pytest.mark.parametrize("path", EXPECTED)
def test_a_library_works_in_a_request(server, path):
    for answer in at_once(server, *[("GET", path, {})] * 3):
        assert (answer.status_code, answer.json()) == (200, EXPECTED[path])


def test_an_exception_is_an_event_of_sentry_with_its_own_request(server):
    """Requests at once: tags, bodies and exceptions of one never come with another."""
    answers = at_once(server, *(
        ("POST", f"/fails/{number}?x=1", {"json": {"body": number}, "headers": {"x-number": str(number)}})
        for number in range(10)
    ))
    assert [answer.status_code for answer in answers] == [500] * 10
    events = {entry["tags"]["number"]: entry for entry in server.wait_record("sentry", 10)}
    assert sorted(events) == list(range(10))
    for number, event in events.items():
        assert event["error"] == ["LookupError", f"{number} failed", "fails"]
        assert event["transaction"] == "/fails/{number}"
        request = event["request"]
        assert request["url"] == f"{server.url}/fails/{number}"
        assert (request["method"], request["query_string"], request["data"]) == ("POST", "x=1", {"body": number})
        assert request["headers"]["x-number"] == str(number)
    assert len(server.records("sentry")) == 10


def test_spans_of_opentelemetry_belong_to_the_trace_of_their_request(server):
    traces = [f"{1000 + number:032x}" for number in range(10)]
    caller = "00000000000000ff"
    answers = at_once(server, *(
        ("GET", f"/traced/{number}", {"headers": {"traceparent": f"00-{trace}-{caller}-01"}})
        for number, trace in enumerate(traces)
    ))
    assert [answer.json() for answer in answers] == traces

    def finished():
        [answer] = at_once(server, ("GET", "/spans", {}))
        roots = [span for span in answer.json() if span["trace"] in traces and span["kind"] == "SERVER"]
        return len(roots) >= 10 and answer.json()

    # The span of a request ends after its answer.
    spans = eventually("the spans of all ten requests have ended", finished)
    for number, trace in enumerate(traces):
        mine = [span for span in spans if span["trace"] == trace]
        [root] = [span for span in mine if span["kind"] == "SERVER"]
        assert (root["name"], root["parent"], root["status"]) == ("GET /traced/{number}", caller, 200)
        [inner] = [span for span in mine if span["name"].startswith("inner")]
        assert (inner["name"], inner["parent"]) == (f"inner {number}", root["id"])


@pytest.mark.needs_oxicorn
def test_a_reload_under_load_loses_nothing_and_closes_what_the_old_worker_held(server):
    """One client for each library. None of them retries: `httpx` raises when an answer is missing."""
    paths = [*EXPECTED, "/traced/7", "/fails/7"]
    over, counts = threading.Event(), dict.fromkeys(paths, 0)

    def ask(path):
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            while not over.is_set():
                if path == "/fails/7":
                    answer = client.post(path, json={})
                    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
                else:
                    answer = client.get(path)
                    assert answer.status_code == 200, f"{path}: {answer.text}"
                    assert path not in EXPECTED or answer.json() == EXPECTED[path]
                counts[path] += 1

    def all_asked_again():
        """Waits until each client has had one more answer, or until one has failed."""
        before = dict(counts)
        eventually(
            f"each of {paths} is answered",
            lambda: any(one.done() for one in asking) or all(counts[path] > before[path] for path in paths),
        )

    [old] = server.serving_pids()
    with concurrent.futures.ThreadPoolExecutor(len(paths)) as pool:
        asking = [pool.submit(ask, path) for path in paths]
        with contextlib.ExitStack() as stack:
            stack.callback(over.set)
            all_asked_again()
            before = len(server.events("reloaded"))
            server.signal(signal.SIGHUP)
            server.wait_event("reloaded", before + 1)
            all_asked_again()
        for one in asking:
            one.result()
    assert [entry["pid"] for entry in server.wait_record("closed")] == [old]
    [new] = server.wait_serving(1)
    assert new != old

    def connected():
        [answer] = at_once(server, ("GET", "/connections", {}))
        return answer.json()

    # The old worker has closed its connections, and the new one keeps its own. The databases see the end a bit later.
    eventually("only the new worker is connected", lambda: connected() == [[f"worker-{new}"]] * 2)

    def failed():
        """Sentry also tells what a task of the group raised, and of a request it tells after the answer."""
        return [entry["pid"] for entry in server.records("sentry") if entry["transaction"] == "/fails/{number}"]

    eventually("each failed request is an event", lambda: len(failed()) >= counts["/fails/7"])
    assert (len(failed()), set(failed())) == (counts["/fails/7"], {old, new})
