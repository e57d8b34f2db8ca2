"""Promise: the life of a worker whose app is one of WSGI: hangs are found, drains and reloads lose nothing, the loop
answers while all threads are busy."""

from __future__ import annotations

import os
import signal
import textwrap
import threading
import time

import pytest

from clients import Raw, get
from harness import eventually, is_alive

pytestmark = pytest.mark.needs_oxicorn

APP = textwrap.dedent(
    """
    import atexit, os, signal, threading, time
    from toolkit import record

    FOLDER = os.path.dirname(os.environ["RECORD"])
    atexit.register(lambda: record("atexit"))

    def the_blocking_call():
        time.sleep(600)

    def until(name):
        record("began", pid=os.getpid())
        while not os.path.exists(os.path.join(FOLDER, name)):
            time.sleep(0.005)

    def handler(number, frame):
        record("handled", number=number, thread=threading.current_thread().name)

    signal.signal(signal.SIGUSR2, handler)
    signal.signal(signal.SIGTERM, handler)

    def app(environ, start_response):
        path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
        if path == "/block":
            the_blocking_call()
        elif path == "/until":
            until(query)
        elif path == "/sleep":
            time.sleep(float(query))
        elif path == "/parts":
            start_response("200 OK", [])
            return parts(query)
        elif path == "/large":
            start_response("200 OK", [])
            return (bytes(1 << 20) for _ in range(32))
        elif path == "/read":
            environ["wsgi.input"].read()
            if query == "block":
                the_blocking_call()
        body = str(os.getpid()).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    def parts(name):
        try:
            yield b"first"
            until(name)
            yield b"second"
        finally:
            record("parts ended")
    """
)


def started(launch, workers=1, threads=1, **settings):
    settings = {"python.threads": threads, "python.pythonpath": [os.path.join(os.path.dirname(__file__), "apps")],
                **{key.replace("__", "."): value for key, value in settings.items()}}  # fmt: skip
    return launch("main:app", files={"main.py": APP}, workers=workers, settings=settings)


def ask(server, path):
    """Sends a request on a new connection, and does not wait for the answer."""
    return Raw(server).request("GET", path)


def stack_of(server, pid):
    server.wait_event("worker_exited", pid=pid)
    return "\n".join(entry["message"] for entry in server.events("worker_stack", pid=pid))


def test_a_client_that_leaves_in_its_small_body_is_no_error_of_the_service(launch):
    server = started(launch)
    for _ in range(3):
        with Raw(server) as connection:
            connection.request("POST", "/parts", "Content-Length: 1000")
            connection.send("ab")
    eventually("all are counted", lambda: server.status()["totals"]["responses"]["4xx"] == 3)
    assert server.status()["totals"]["responses"]["5xx"] == 0
    assert server.events("app_error") == []
    assert get(server, "/").status == 200


# --- hangs ---


def test_a_worker_with_one_thread_that_hangs_is_replaced_with_its_stack(launch):
    server = started(launch, workers__timeout="1s")
    [pid] = server.serving_pids()
    began = time.monotonic()
    with ask(server, "/block"):
        [hung] = server.wait_event("worker_hung", pid=pid)
        assert 0.9 < time.monotonic() - began < 3
        assert "GET /block" in hung["requests_in_flight"]
        assert 'main.py", line 9 in the_blocking_call' in stack_of(server, pid)
        server.wait_serving(1)
        assert get(server, "/").text != str(pid)


def test_a_request_that_hangs_beside_free_threads_is_told_once_with_its_stack(launch):
    server = started(launch, threads=2, workers__timeout="500ms")
    [pid] = server.serving_pids()
    with ask(server, "/block") as connection:
        [late] = server.wait_event("request_late")
        assert (late["path"], late["level"]) == ("/block", "WARN")
        assert "line 9, in the_blocking_call" in late["stack"] and late["request_id"]
        time.sleep(1)
        assert get(server, "/").text == str(pid)
        assert len(server.events("request_late")) == 1 and server.events("worker_hung") == []
        # The last thread hangs too: now the worker is replaced.
        with ask(server, "/block"):
            server.wait_event("worker_hung", pid=pid)
            assert stack_of(server, pid).count("in the_blocking_call") == 2
        assert connection.ended or connection.rest() == b""
    server.wait_serving(1)


def test_requests_shorter_than_the_timeout_are_no_hang(launch):
    server = started(launch, workers__timeout="1s")
    with Raw(server) as connection:
        for _ in range(4):
            assert connection.get("/sleep?0.6").status == 200
    assert server.events("worker_hung") == [] == server.events("request_late")


def test_an_idle_worker_is_no_hang(launch):
    server = started(launch, workers__timeout="300ms")
    assert get(server, "/").status == 200
    time.sleep(1)
    assert server.events("worker_hung") == [] and get(server, "/").status == 200


def test_a_thread_that_waits_for_its_client_is_no_hang(launch):
    server = started(launch, threads=2, workers__timeout="500ms")
    [pid] = server.serving_pids()
    with Raw(server) as sends, Raw(server) as reads:
        # More than is read of a body before a thread gets the request, and more than the buffers of the kernel hold.
        sends.send(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\n" + bytes(100_000))
        reads.request("GET", "/large")
        time.sleep(2)
        sends.send(b"x")
        assert sends.response().text == str(pid) and len(reads.response().body) == 32 << 20
    assert server.events("worker_hung") == [] == server.events("request_late")


def test_an_app_that_hangs_after_it_has_waited_for_its_client_is_a_hang(launch):
    server = started(launch, workers__timeout="500ms")
    [pid] = server.serving_pids()
    with Raw(server) as sends:
        sends.send(b"POST /read?block HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\n" + bytes(100_000))
        time.sleep(1)
        assert server.events("worker_hung") == []
        sends.send(b"x")
        server.wait_event("worker_hung", pid=pid)
        assert "in the_blocking_call" in stack_of(server, pid)


# --- the loop beside the threads ---


def test_the_health_check_is_answered_while_all_threads_are_busy(launch):
    server = started(launch, threads=8, http__health_path="/health")
    busy = [ask(server, "/until?go") for _ in range(20)]
    server.wait_record("began", 8)
    slowest = 0.0
    for _ in range(50):
        began = time.monotonic()
        assert get(server, "/health").status == 200
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 0.5 and len(server.records("began")) == 8
    server.path("go").write_text("")
    for connection in busy:
        assert connection.response().status == 200
        connection.close()
    assert len(server.records("began")) == 20


def test_so_many_requests_run_at_once_as_there_are_threads(launch):
    server = started(launch, threads=4)
    began = time.monotonic()
    waiting = [ask(server, "/sleep?0.5") for _ in range(4)]
    for connection in waiting:
        assert connection.response().status == 200
        connection.close()
    assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("shared", [False, True])
def test_a_busy_worker_leaves_new_connections_to_its_sibling(launch, shared):
    server = started(launch, workers=2, **({"server__reuse_port": False} if shared else {}))
    with ask(server, "/until?go") as busy:
        server.wait_record("began")
        # The worker counts as busy after 5 ms of its request.
        time.sleep(0.1)
        pids = {get(server, "/").text for _ in range(30)}
        server.path("go").write_text("")
        assert len(pids) == 1 and busy.response().text not in pids
    # It has room again.
    eventually("both workers serve", lambda: get(server, "/").text not in pids)


def test_if_all_workers_are_busy_requests_wait_for_one(launch):
    server = started(launch, workers=2)
    busy = []

    def both_are_busy():
        # A worker that has just taken a request may take another one, which then waits in it.
        busy.append(ask(server, f"/until?go{len(busy)}"))
        time.sleep(0.05)
        return len(server.records("began")) == 2

    eventually("both workers are busy", both_are_busy)
    busy += [ask(server, f"/until?go{number}") for number in (len(busy), len(busy) + 1)]
    for number in range(len(busy)):
        server.path(f"go{number}").write_text("")
    for connection in busy:
        assert connection.response().status == 200
        connection.close()


def test_a_handler_of_a_signal_runs_in_the_main_thread_while_a_request_runs(launch):
    server = started(launch)
    [pid] = server.serving_pids()
    with ask(server, "/until?go") as connection:
        server.wait_record("began")
        os.kill(pid, signal.SIGUSR2)
        assert server.wait_record("handled")[0]["thread"] == "MainThread"
        server.path("go").write_text("")
        assert connection.response().status == 200


# --- the end ---


def test_a_stop_waits_for_the_requests_that_run_and_for_those_that_wait(launch):
    server = started(launch)
    running = ask(server, "/until?go")
    server.wait_record("began")
    queued = ask(server, "/")
    streaming = ask(server, "/parts?go")
    [pid] = server.serving_pids()
    eventually("three requests are under way", lambda: server.status()["workers"][0]["in_flight"] == 3)
    server.signal(signal.SIGTERM)
    server.wait_event("worker_draining", pid=pid)
    time.sleep(0.3)
    server.path("go").write_text("")
    assert running.response().text == queued.response().text == str(pid)
    assert streaming.response().body == b"firstsecond"
    assert server.wait_exit() == 0
    assert len(server.records("atexit")) == 1
    assert server.events("worker_drained")[0]["cut"] == 0


def test_a_sigterm_to_the_worker_runs_the_apps_handler_and_drains(launch):
    server = started(launch)
    [pid] = server.serving_pids()
    with ask(server, "/until?go") as connection:
        server.wait_record("began")
        os.kill(pid, signal.SIGTERM)
        assert server.wait_record("handled")[0] == {
            "what": "handled", "pid": pid, "number": signal.SIGTERM, "thread": "MainThread",
        }  # fmt: skip
        server.wait_event("worker_draining", pid=pid)
        server.path("go").write_text("")
        assert connection.response().text == str(pid)
    eventually("it ends", lambda: not is_alive(pid))


@pytest.mark.parametrize("shutdown_grace", ["500ms", "5s"])
def test_the_end_of_the_grace_cuts_what_runs_on(launch, shutdown_grace):
    server = started(launch, workers__graceful_timeout="2s", python__shutdown_grace=shutdown_grace)
    with ask(server, "/block") as connection:
        eventually("it runs", lambda: server.status()["workers"][0]["in_flight"] == 1)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert connection.rest() == b""
        assert server.wait_exit() == 0
    assert 1 < time.monotonic() - began < 4
    assert server.events("worker_drained")[0]["cut"] == 1
    [left] = server.events("threads_left")
    assert left["threads"] == "wsgi-0 (main.py, line 9)"
    assert server.events("worker_killed") == []
    assert len(server.records("atexit")) == 1


def test_a_response_that_is_complete_may_run_on_in_its_close(launch):
    server = started(launch)
    server.write("main.py", APP.replace("return [body]", "return Late(body)") + textwrap.dedent(
        """
        class Late(list):
            def __init__(self, body):
                super().__init__([body])
            def close(self):
                until("go")
                record("closed")
        """
    ))  # fmt: skip
    assert server.ctl("reload").returncode == 0
    assert get(server, "/").status == 200
    server.wait_record("began")
    server.signal(signal.SIGTERM)
    time.sleep(0.3)
    assert server.is_running() and server.records("closed") == []
    server.path("go").write_text("")
    assert server.wait_exit() == 0
    assert len(server.records("closed")) == 1


def test_reloads_under_load_lose_nothing(launch):
    server = started(launch, workers=2, threads=4)
    ends, lost, answered = threading.Event(), [], []

    def load():
        connection = Raw(server)
        while not ends.is_set():
            try:
                answer = connection.get("/sleep?0.002")
            except Exception as error:
                lost.append(repr(error))
                connection = Raw(server)
                continue
            if answer.status != 200 or not answer.complete:
                lost.append(answer)
            answered.append(answer.text)
            if answer.closes:
                connection.close()
                connection = Raw(server)
        connection.close()

    clients = [threading.Thread(target=load) for _ in range(6)]
    for client in clients:
        client.start()
    for _ in range(5):
        assert server.ctl("reload", within=30).returncode == 0
    ends.set()
    for client in clients:
        client.join()
    assert lost == [] and len(answered) > 100
    # Two workers of each of the six generations.
    assert len(set(answered)) >= 10


def test_a_worker_is_recycled_after_its_requests(launch):
    server = started(launch, workers__max_requests=20)
    [first] = server.serving_pids()
    seen = set()
    for _ in range(60):
        answer = get(server, "/")
        assert answer.status == 200
        seen.add(answer.text)
        if len(seen) > 1:
            break
        time.sleep(0.05)
    assert len(seen) > 1
    eventually("the first worker ends", lambda: not is_alive(first))



def test_a_worker_that_is_asked_to_end_in_its_boot_does_not_wait_for_its_threads(launch):
    app = """
import os, signal

def app(environ, start_response):
    start_response("200 OK", [])
    return [b""]

if os.path.exists("early"):
    os.kill(os.getpid(), signal.SIGTERM)
"""
    server = launch("main:app", files={"main.py": app}, workers=2, settings={"python.threads": 4})
    server.write("early", "")
    began = time.monotonic()
    server.signal(signal.SIGHUP)
    server.wait_event("worker_exited", generation=2)
    assert time.monotonic() - began < 4, "the grace of the threads is 5 seconds"
    assert server.events("threads_left") == []
