"""Promise: an app of each framework runs as it is, and loses nothing when its code is reloaded.

FastAPI has a file of its own, test_fastapi.py.
"""

import concurrent.futures
import hashlib
import os
import signal
import threading

import httpx
import pytest
import websockets.sync.client

FRAMEWORKS = ["starlette", "litestar", "quart", "django"]


@pytest.fixture(scope="module", params=FRAMEWORKS)
def shared(request, launch_for_module):
    return launch_for_module(f"{request.param}_app:app")


@pytest.fixture
def server(shared):
    shared.clear_records()
    return shared


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_endpoints_and_middleware(client, kind):
    answer = client.get(f"/{kind}")
    assert (answer.status_code, answer.json()) == (200, {"kind": kind})
    assert answer.headers["x-middleware"] == "yes"


def test_a_stream(client):
    with client.stream("GET", "/stream") as answer:
        assert "".join(answer.iter_text()) == "part 0\npart 1\npart 2\n"


def test_an_upload_of_three_megabytes(client):
    content = os.urandom(3_000_000)
    answer = client.post("/upload", files={"file": ("some.bin", content)})
    assert answer.json() == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_background_task_runs_after_the_answer(server, client):
    assert client.post("/background").status_code == 200
    server.wait_record("background")


def test_a_session(client):
    assert [client.get("/session").json()["count"] for _ in range(3)] == [1, 2, 3]


def test_a_web_socket(server):
    with websockets.sync.client.connect(f"ws://127.0.0.1:{server.port}/echo") as websocket:
        for word in ("one", "two"):
            websocket.send(word)
            assert websocket.recv(20) == word.upper()


def test_an_unknown_path_is_404(client):
    assert client.get("/nowhere").status_code == 404


@pytest.mark.needs_oxicorn
def test_nothing_is_lost_in_a_reload(server):
    """Clients that do not retry: `httpx` raises when an answer is missing."""
    over = threading.Event()

    def ask(kind):
        count = 0
        with httpx.Client(base_url=server.url, timeout=20) as client:
            while not over.is_set():
                assert client.get(f"/{kind}").status_code == 200
                count += 1
        return count

    before = len(server.events("reloaded"))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, kind) for kind in ("async", "sync", "async", "stream")]
        try:
            server.signal(signal.SIGHUP)
            server.wait_event("reloaded", before + 1)
        finally:
            over.set()
        assert all(one.result() > 0 for one in asking)
