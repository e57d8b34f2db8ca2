"""The harness itself: a server starts, answers each client, is seen, and ends."""

import httpx
import pytest

from clients import Http2, Raw, RawWebSocket, get
from harness import is_alive


def test_a_server_starts_answers_and_stops(launch):
    server = launch("scope:app_with_scope")
    answer = get(server, "/a?b=c")
    assert answer.status == 200
    assert answer.json()["path"] == "/a"
    assert httpx.get(f"{server.url}/x").json()["path"] == "/x"
    with RawWebSocket(server, "/ws") as websocket:
        assert websocket.answer.status == 101
        assert b'"websocket"' in websocket.receive().data
    pid = server.pid
    server.stop()
    assert not is_alive(pid)


@pytest.mark.needs_oxicorn
def test_one_port_speaks_http_2_too(launch):
    server = launch("scope:app_with_scope")
    with Http2(server) as connection:
        assert connection.get("/over-two").json()["http_version"] == "2"


@pytest.mark.needs_oxicorn
def test_two_workers_serve_and_the_status_says_so(launch):
    server = launch("scope:app_with_scope", workers=2)
    assert len(server.serving_pids()) == 2
    assert [worker["state"] for worker in server.status()["workers"]] == ["serving", "serving"]
    with Raw(server) as connection:
        assert connection.get("/").status == 200
