"""Promise: a worker that hangs is found, and the log shows where each of its threads was, beside its requests.

The lines of the stack are whole, come after the line that says how the worker ended, and those of two workers never
mix. Import and lifespan do not count as a hang, and a long endpoint in a thread is none.
"""

from __future__ import annotations

import socket
import textwrap

import pytest

from harness import Server, eventually

pytestmark = pytest.mark.needs_oxicorn

APP = textwrap.dedent(
    """
    import asyncio, ctypes, os, signal, threading, time

    def waits_for_ever_in_a_thread():
        threading.Event().wait()

    def the_blocking_call():
        time.sleep(600)

    async def answer(send, body):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return await lifespan(receive, send)
        path = scope["path"]
        if path == "/block":
            the_blocking_call()
        elif path == "/thread":
            # Four times workers.timeout, in a thread: the loop is free.
            await asyncio.to_thread(time.sleep, 4)
        elif path == "/segfault":
            ctypes.string_at(0)
        elif path == "/own-handlers":
            import faulthandler
            faulthandler.enable()
            faulthandler.register(signal.SIGUSR1)
        await answer(send, str(os.getpid()).encode())

    async def lifespan(receive, send):
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                threading.Thread(target=waits_for_ever_in_a_thread, daemon=True).start()
                time.sleep(float(os.environ.get("STARTUP", "0")))
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    """
)


def started(launch, app=APP, workers=1, environment=None, **settings) -> Server:
    settings = {"workers.timeout": "1s", **{key.replace("__", "."): value for key, value in settings.items()}}
    return launch("main:app", files={"main.py": app}, workers=workers, settings=settings, environment=environment)


def ask(server: Server, path: str) -> socket.socket:
    """Sends a request on a new connection, and does not wait for the answer."""
    connection = server.connect()
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    return connection


def connection_to(server: Server, pid: int) -> socket.socket:
    """Returns a connection whose requests go to this worker."""

    def probe():
        connection = ask(server, "/")
        if connection.recv(4096).endswith(b"\r\n\r\n" + str(pid).encode()):
            return connection
        connection.close()

    return eventually(f"a connection to the worker {pid}", probe)


def obituary(server: Server, pid: int) -> tuple[dict, list[str]]:
    """Returns the line that says how the worker ended, and the lines of its stack, which come right after it."""
    server.wait_event("worker_exited", pid=pid)
    events = [entry for entry in server.events() if entry.get("event") in ("worker_exited", "worker_stack")]
    at = next(at for at, entry in enumerate(events) if entry["event"] == "worker_exited" and entry["pid"] == pid)
    stack = []
    for entry in events[at + 1 :]:
        if entry["event"] != "worker_stack" or entry["pid"] != pid:
            break
        stack.append(entry["message"])
    said = [entry for entry in events if entry["event"] == "worker_stack" and entry["pid"] == pid]
    assert len(stack) == len(said), "the lines of a stack are not interrupted"
    return events[at], stack


def assert_where_it_blocks(stack: list[str]) -> None:
    text = "\n".join(stack)
    assert 'main.py", line 8 in the_blocking_call' in text, text
    assert 'main.py", line 19 in app' in text, "the callers too\n" + text
    assert 'main.py", line 5 in waits_for_ever_in_a_thread' in text, "every thread\n" + text
    assert text.count("the_blocking_call") == 1, "the stack is there once, and not again at SIGABRT\n" + text


def test_a_blocking_call_is_found_and_the_log_shows_the_stack_of_every_thread(launch):
    server = started(launch)
    pid = server.serving_pids()[0]
    client = ask(server, "/block")
    exited, stack = obituary(server, pid)
    assert "GET /block" in exited["reason"] and "SIGABRT" in exited["reason"], exited
    assert_where_it_blocks(stack)
    assert "GET /block" in server.events("worker_hung", pid=pid)[0]["requests_in_flight"]
    server.wait_serving(1)
    client.close()
    server.stop()


def test_two_workers_that_hang_at_once_do_not_mix_their_stacks(launch):
    server = started(launch, workers=2)
    pids = server.serving_pids()
    clients = [connection_to(server, pid) for pid in pids]
    for client in clients:
        client.sendall(b"GET /block HTTP/1.1\r\nhost: x\r\n\r\n")
    for pid in pids:
        assert_where_it_blocks(obituary(server, pid)[1])
    server.wait_serving(2)
    server.stop()


def test_import_and_lifespan_may_take_longer_than_the_timeout(launch):
    slow = "import time\ntime.sleep(2.5)\n" + APP
    server = started(launch, app=slow, environment={"STARTUP": "2.5"})
    assert server.events("worker_hung") == []
    server.stop()


def test_an_import_and_a_lifespan_that_hang_are_explained(launch):
    server = started(launch, workers__boot_timeout="3s")
    for text, place in [
        ("import time\ndef stuck():\n    time.sleep(600)\nstuck()\n", "line 3 in stuck"),
        (APP.replace("threading.Thread(", "the_blocking_call(); threading.Thread("), "in the_blocking_call"),
    ]:
        before = {entry["pid"] for entry in server.events("worker_exited")}
        server.write("main.py", text)
        refused = server.ctl("reload")
        assert refused.returncode == 1 and "workers.boot_timeout" in refused.stderr, refused.stderr
        late = {entry["pid"] for entry in server.events("worker_forked")} - before
        late -= set(server.serving_pids())
        (pid,) = late
        exited, stack = obituary(server, pid)
        assert "not ready within workers.boot_timeout" in exited["reason"], exited
        assert place in "\n".join(stack), stack
    server.stop()


def test_a_long_endpoint_in_a_thread_is_no_hang(launch):
    server = started(launch)
    client = ask(server, "/thread")
    assert client.recv(4096).startswith(b"HTTP/1.1 200")
    assert server.events("worker_hung") == []
    server.stop()


def test_a_crash_has_its_stack_too(launch):
    server = started(launch)
    pid = server.serving_pids()[0]
    client = ask(server, "/segfault")
    assert client.recv(4096) == b""
    exited, stack = obituary(server, pid)
    assert "SIGSEGV" in exited["reason"] and "GET /segfault" in exited["reason"], exited
    text = "\n".join(stack)
    assert "Segmentation fault" in text and 'main.py", line 24 in app' in text, text
    server.wait_serving(1)
    server.stop()


def test_handlers_of_the_app_do_not_hide_a_hang(launch):
    server = started(launch)
    pid = server.serving_pids()[0]
    assert ask(server, "/own-handlers").recv(4096).startswith(b"HTTP/1.1 200")
    ask(server, "/block")
    assert_where_it_blocks(obituary(server, pid)[1])
    server.wait_serving(1)
    server.stop()


def test_a_worker_that_drains_leaves_no_stack(launch):
    server = started(launch)
    pid = server.serving_pids()[0]
    assert server.ctl("reload").returncode == 0
    server.wait_event("worker_exited", pid=pid)
    server.stop()
    assert server.events("worker_stack") == []
