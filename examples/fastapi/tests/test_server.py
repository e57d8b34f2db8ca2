"""Tests of the service as it runs: `oxicorn` with two workers, a web socket, a reload, a stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

FOLDER = Path(__file__).resolve().parent.parent
OXICORN = os.environ.get("OXICORN", f"{sys.executable} -m oxicorn").split()


@pytest.fixture
def service(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "FACTS_SQLITE_PATH": str(tmp_path / "facts.db"), "RUNTIME_DIRECTORY": str(tmp_path)}
    command = [*OXICORN, "--workers", "1", "--bind", f"127.0.0.1:{port}"]
    with subprocess.Popen(command, cwd=FOLDER, env=environment) as process:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 20
        while True:
            try:
                httpx.get(f"{url}/ready").raise_for_status()
                break
            except httpx.HTTPError:
                assert process.poll() is None and time.monotonic() < deadline, "the service does not become ready"
                time.sleep(0.05)
        yield process, url
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_listener_gets_each_new_fact_and_1012_at_a_reload(service):
    process, url = service
    with connect(url.replace("http", "ws") + "/facts/new") as listener:
        added = httpx.post(f"{url}/facts", json={"text": "Sound is slower than light."})
        assert added.status_code == 201
        assert json.loads(listener.recv(10)) == added.json()
        process.send_signal(signal.SIGHUP)
        with pytest.raises(ConnectionClosed) as closed:
            listener.recv(20)
        assert closed.value.rcvd.code == 1012
    assert httpx.get(f"{url}/facts/{added.json()['id']}").status_code == 200
