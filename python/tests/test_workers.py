"""Promise: workers are replaced without a lost request: by count, by death, by a hang, by a reload."""

import os
import signal
import threading
import time
from collections import Counter

import pytest

from clients import Ended, Raw, get
from harness import APPS, PATIENCE, eventually, is_alive

pytestmark = pytest.mark.needs_oxicorn

VERSIONED = """
import os
from toolkit import Routes, record, text

VERSION = "one"
app = Routes()


@app.route("/version")
async def version(scope, receive, send):
    await text(send, VERSION)


@app.route("/until")
async def until(scope, receive, send):
    import asyncio, pathlib
    record("began")
    path = pathlib.Path(os.environ["RECORD"]).parent / scope["query_string"].decode()
    while not path.exists():
        await asyncio.sleep(0.01)
    await text(send, VERSION)
"""


def versioned(launch, **options):
    """Starts two workers of an app whose file the test changes."""
    options.setdefault("workers", 2)
    settings = {"python.pythonpath": [str(APPS)], **options.pop("settings", {})}
    return launch("main:app", files={"main.py": VERSIONED}, settings=settings, **options)


class Traffic:
    """Clients that ask without a pause, on keep-alive connections and on fresh ones, and count what they get."""

    def __init__(self, server, target, clients=4):
        self.server, self.target = server, target
        self.answers = Counter()
        self.failures = []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self._ask, args=(number % 2 == 0,)) for number in range(clients)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join(30)

    def _ask(self, keep_alive):
        connection = None
        while not self.over.is_set():
            try:
                connection = connection or Raw(self.server)
                answer = connection.get(self.target, *([] if keep_alive else ["Connection: close"]))
                self.answers[answer.text if answer.status == 200 and answer.complete else answer.status] += 1
                if answer.closes or not keep_alive:
                    connection.close()
                    connection = None
            except (OSError, Ended) as error:
                self.failures.append(repr(error))
                connection = None
            # A pause so short that a connection is never idle for long, and the machine has time for the workers.
            time.sleep(0.001)


def answers_until(server, target, wanted, within=20):
    eventually(f"{target} answers {wanted}", lambda: get(server, target).text == wanted, within)


# --- recycling ---


def test_max_requests_replaces_workers_and_loses_no_request(launch):
    server = launch("workers:app", workers=2, settings={"workers.max_requests": 50})
    with Traffic(server, "/pid") as traffic:
        eventually("four workers were replaced", lambda: len(server.events("recycle_requested")) >= 4)
        eventually("they have ended", lambda: len(server.records("shutdown")) >= 4)
    assert traffic.failures == []
    assert all(isinstance(answer, str) for answer in traffic.answers), traffic.answers
    assert len(traffic.answers) >= 4, "the pids of the workers that answered"


def test_a_worker_that_is_replaced_says_so_before_it_closes(launch):
    server = launch("workers:app", settings={"workers.max_requests": 5})
    with Raw(server) as connection:
        answers = [connection.get("/pid")]
        deadline = time.monotonic() + PATIENCE
        while not answers[-1].closes:
            assert time.monotonic() < deadline
            answers.append(connection.get("/pid"))
        assert connection.rest() == b""
    assert {answer.status for answer in answers} == {200}


def order(server, *wanted):
    """Returns the events of these names, in the order of the log, each with the pid of its worker."""
    return [(entry["event"], entry["pid"]) for entry in server.events() if entry.get("event") in wanted]


@pytest.mark.parametrize("why", ["max_requests", "reload"])
def test_the_successor_serves_before_the_old_worker_drains(launch, why):
    server = launch("workers:app", settings={"workers.max_requests": 30 if why == "max_requests" else 0})
    [old] = server.serving_pids()
    if why == "reload":
        server.signal(signal.SIGHUP)
    else:
        with Traffic(server, "/pid", clients=1):
            server.wait_event("recycle_requested")
            server.wait_event("worker_draining", pid=old)
    server.wait_event("worker_draining", pid=old)
    seen = order(server, "worker_serving", "worker_draining")
    assert seen[0] == ("worker_serving", old)
    assert seen[1][0] == "worker_serving" and seen[1][1] != old
    assert seen[2] == ("worker_draining", old)


# --- deaths ---


def test_a_killed_worker_is_replaced_and_the_other_serves_on(launch):
    server = launch("workers:app", workers=2)
    victim, other = server.serving_pids()
    os.kill(victim, signal.SIGKILL)
    eventually("the other answers", lambda: get(server, "/pid").text == str(other))
    server.wait_event("worker_exited", pid=victim)
    serving = server.wait_serving(2)
    assert other in serving and victim not in serving
    assert server.is_running()


@pytest.mark.parametrize("target, said", [("/os-exit", "exited with code 9"), ("/kill", "SIGKILL")])
def test_a_death_within_a_request_is_told_with_the_request_and_replaced(launch, target, said):
    server = launch("workers:app", workers=1)
    [old] = server.serving_pids()
    with Raw(server) as connection:
        connection.request("GET", target)
        assert connection.rest() == b""
    [exited] = server.wait_event("worker_exited", pid=old)
    assert said in exited["reason"]
    assert f"GET {target}" in exited["reason"]
    assert server.wait_serving(1) != [old]


@pytest.mark.parametrize("target, said", [("/exit", "sys.exit(3)"), ("/interrupt", "KeyboardInterrupt")])
def test_an_exit_within_a_request_is_a_500_and_the_worker_is_replaced_without_a_loss(launch, target, said):
    server = launch("workers:app", workers=1)
    [old] = server.serving_pids()
    assert get(server, target).status == 500
    eventually("it is replaced", lambda: server.serving_pids() not in ([], [old]))
    eventually("the old worker has ended", lambda: not is_alive(old))
    assert server.logged(said)
    assert server.logged(f"GET {target}")
    assert get(server, "/pid").status == 200


def test_a_loop_that_the_app_stops_runs_on(launch):
    server = launch("workers:app", workers=1)
    [old] = server.serving_pids()
    assert get(server, "/stop-the-loop").text == "ran on"
    assert get(server, "/pid").text == str(old)


def test_a_term_to_one_worker_drains_and_replaces_it(launch):
    server = launch("workers:app", workers=1, settings={"workers.drain_idle": "200ms"})
    [old] = server.serving_pids()
    with Raw(server) as connection:
        connection.request("GET", "/until?release")
        server.wait_record("began")
        os.kill(old, signal.SIGTERM)
        eventually("it is replaced", lambda: server.serving_pids() not in ([], [old]))
        server.write("release", "")
        answer = connection.response()
        assert (answer.text, answer.closes) == (str(old), True)
    eventually("the old worker has ended", lambda: not is_alive(old))
    assert [entry["pid"] for entry in server.records("shutdown")] == [old]


# --- hangs ---


def test_a_worker_that_blocks_is_killed_and_replaced_and_the_other_serves(launch):
    server = launch("workers:app", workers=2, settings={"workers.timeout": "1s"})
    with Raw(server) as blocked:
        blocked.request("GET", "/block?30")
        [began] = server.wait_record("blocks")
        for _ in range(20):
            assert get(server, "/pid").text != str(began["pid"])
        [hung] = server.wait_event("worker_hung")
        assert hung["pid"] == began["pid"]
        assert "/block" in str(hung)
        assert blocked.rest() == b""
    eventually("it is replaced", lambda: len(server.serving_pids()) == 2)
    assert began["pid"] not in server.serving_pids()


def test_a_short_block_is_no_hang(launch):
    server = launch("workers:app", workers=1, settings={"workers.timeout": "2s"})
    [old] = server.serving_pids()
    assert get(server, "/block?0.8").text == "unblocked"
    assert server.events("worker_hung") == []
    assert server.serving_pids() == [old]


# --- reloads ---


def test_a_reload_serves_the_changed_code_and_loses_no_request(launch):
    server = versioned(launch)
    old = server.serving_pids()
    with Traffic(server, "/version") as traffic:
        eventually("the old code answers", lambda: traffic.answers["one"] > 20)
        server.write("main.py", VERSIONED.replace('"one"', '"two"'))
        done = server.ctl("reload")
        assert done.returncode == 0, done.stderr
        eventually("the new code answers", lambda: traffic.answers["two"] > 20)
        eventually("the old workers are gone", lambda: not [pid for pid in old if is_alive(pid)])
    assert traffic.failures == []
    assert set(traffic.answers) == {"one", "two"}


def test_a_request_in_flight_at_a_reload_is_answered_by_the_old_code(launch):
    server = versioned(launch)
    with Raw(server) as connection:
        connection.request("GET", "/until?release")
        server.wait_record("began")
        server.write("main.py", VERSIONED.replace('"one"', '"two"'))
        server.signal(signal.SIGHUP)
        server.wait_event("reloaded")
        answers_until(server, "/version", "two")
        server.write("release", "")
        answer = connection.response()
        assert (answer.text, answer.closes) == ("one", True)


def test_a_slow_start_of_the_new_code_is_served_by_the_old(launch):
    server = launch("workers:app", workers=2, environment={"SLOW_START": "0.8"})
    old = server.serving_pids()
    with Traffic(server, "/pid") as traffic:
        server.signal(signal.SIGHUP)
        server.wait_event("reloaded")
        eventually("the old workers are gone", lambda: not [pid for pid in old if is_alive(pid)])
    assert traffic.failures == []
    assert len(traffic.answers) == 4, "the pids of the old workers and of the new ones"


@pytest.mark.parametrize("what, text, said", [
    ("import", "import os\nraise RuntimeError('half a release')\n", "half a release"),
    ("syntax", "def broken(:\n", "SyntaxError"),
    (
        "lifespan",
        "async def app(scope, receive, send):\n    await receive()\n    raise RuntimeError('no database today')\n",
        "no database today",
    ),
])
def test_new_code_that_cannot_start_is_refused_loudly_and_the_old_serves_on(launch, what, text, said):
    server = versioned(launch)
    old = server.serving_pids()
    with Traffic(server, "/version") as traffic:
        server.write("main.py", text)
        done = server.ctl("reload")
        assert done.returncode != 0
        assert said in done.stdout + done.stderr, "the caller is told why"
    assert traffic.failures == []
    assert set(traffic.answers) == {"one"}
    assert server.serving_pids() == old
    assert server.logged(said)


def test_a_good_release_is_taken_after_one_that_was_refused(launch):
    server = versioned(launch, workers=1)
    server.write("main.py", "raise RuntimeError('half a release')\n")
    assert server.ctl("reload").returncode != 0
    server.write("main.py", VERSIONED.replace('"one"', '"three"'))
    done = server.ctl("reload")
    assert done.returncode == 0, done.stderr
    assert get(server, "/version").text == "three"


def test_more_and_fewer_workers_lose_no_request(launch):
    server = launch("workers:app", workers=1)
    with Traffic(server, "/pid") as traffic:
        server.signal(signal.SIGTTIN)
        server.wait_serving(2)
        server.signal(signal.SIGTTOU)
        server.wait_serving(1)
        eventually("one of them has ended", lambda: len(server.worker_pids()) == 1)
    assert traffic.failures == []
    assert all(isinstance(answer, str) for answer in traffic.answers), traffic.answers


def test_the_master_never_imports_the_app_and_has_one_thread(launch):
    server = launch("workers:app", workers=2)
    assert {entry["pid"] for entry in server.records("imported")} == set(server.serving_pids())
    assert len(os.listdir(f"/proc/{server.pid}/task")) == 1


def test_the_master_stays_below_16_mib(launch):
    server = launch("workers:app", workers=2)
    with open(f"/proc/{server.pid}/smaps_rollup") as rollup:
        [pss] = [int(line.split()[1]) for line in rollup if line.startswith("Pss:")]
    assert pss <= 16 * 1024, f"{pss} KiB PSS"
