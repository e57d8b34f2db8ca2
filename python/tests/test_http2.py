"""Promise: over HTTP/2 an app does what it does over HTTP/1.1, and a stream that is cut is reset."""

import asyncio
import signal

import httpx
import pytest

from clients import Http2
from harness import eventually

pytestmark = pytest.mark.needs_oxicorn


@pytest.fixture(scope="module")
def shared(launch_for_module):
    return launch_for_module("exchange:app")


@pytest.fixture
def server(shared):
    shared.clear_records()
    return shared


@pytest.fixture
def connection(server):
    with Http2(server) as connection:
        yield connection


def assert_serves_on(connection):
    answer = connection.get("/hello")
    assert (answer.status, answer.text, answer.complete) == (200, "hello", True)


def test_one_body_message_gets_its_length(connection):
    answer = connection.get("/one-message")
    assert (answer.text, answer.all("content-length")) == ("hello", ["5"])


def test_several_body_messages_arrive_whole(connection):
    answer = connection.get("/two-messages")
    assert (answer.text, answer.complete) == ("hello", True)


def test_headers_of_http_1_1_alone_are_left_out(connection):
    answer = connection.get("/hop-by-hop")
    assert (answer.status, answer.text) == (200, "hello")
    assert answer.get("transfer-encoding") is None and answer.get("keep-alive") is None


def test_a_body_is_echoed(connection):
    stream = connection.start("POST", "/echo", end=False)
    connection.data(stream, b"hello ")
    connection.data(stream, b"world", end=True)
    assert connection.response(stream).text == "hello world"


def test_a_body_comes_in_pieces_of_at_most_64_kib(connection):
    stream = connection.start("POST", "/pieces", end=False)
    left = 200_000
    while left:
        connection.wait(lambda: connection.h2.local_flow_control_window(stream) > 0)
        size = min(left, connection.h2.local_flow_control_window(stream), connection.h2.max_outbound_frame_size)
        left -= size
        connection.data(stream, b"x" * size, end=not left)
    seen = connection.response(stream).json()
    assert sum(seen["sizes"]) == 200_000
    assert max(seen["sizes"]) <= 65536
    assert seen["more"] == [True] * (len(seen["more"]) - 1) + [False]


def test_head_gets_the_length_and_no_body(connection):
    answer = connection.response(connection.start("HEAD", "/one-message"))
    assert (answer.status, answer.all("content-length"), answer.body) == (200, ["5"], b"")
    assert_serves_on(connection)


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_never_sends_one(connection, status):
    answer = connection.get(f"/{status}")
    assert (answer.status, answer.body, answer.complete) == (status, b"", True)
    assert_serves_on(connection)


@pytest.mark.parametrize("target", ["/raise", "/return", "/start-then-return", "/start-then-raise"])
def test_an_app_that_ends_before_its_first_body_message_is_a_500(connection, target):
    answer = connection.get(target)
    assert (answer.status, answer.text, answer.complete) == (500, "Internal Server Error", True)
    assert_serves_on(connection)


@pytest.mark.parametrize("target", ["/raise-after-a-chunk", "/chunk-then-return", "/too-short"])
def test_an_answer_that_is_cut_resets_its_stream_and_no_other(connection, target):
    answer = connection.get(target)
    assert (answer.status, answer.complete) == (200, False)
    assert connection.resets, "the stream ended as if the answer were whole"
    assert_serves_on(connection)


def test_trailers_reach_the_client(connection):
    answer = connection.get("/trailers", [("te", "trailers")])
    assert (answer.text, answer.trailers, answer.complete) == ("hello", [("x-sum", "42")], True)


def test_an_early_hint_never_costs_the_answer(connection):
    stream = connection.start("GET", "/early-hint")
    answer = connection.response(stream)
    assert answer.status == 200
    hinted = [interim.status for interim in connection.interim[stream]] == [103]
    assert answer.json()["offered"] is hinted, "what is offered is sent"


@pytest.mark.parametrize("target", ["/file", "/file-without-length"])
def test_pathsend_sends_the_file(connection, target):
    answer = connection.get(target)
    assert answer.body == bytes(range(256)) * 200
    assert answer.all("content-length") == ["51200"]
    head = connection.response(connection.start("HEAD", target))
    assert (head.all("content-length"), head.body) == (["51200"], b"")


def test_receive_after_the_whole_answer_is_a_disconnect_at_once(server, connection):
    assert connection.get("/receive-after-the-end").text == "hello"
    assert server.wait_record("after the end", within=2)[0]["type"] == "http.disconnect"


def test_streams_are_served_side_by_side(connection):
    slow = connection.start("GET", "/call-later")
    quick = [connection.start("GET", "/hello") for _ in range(50)]
    for stream in quick:
        assert connection.response(stream).text == "hello"
    assert connection.response(slow).json()[0] == "thread"


def test_streams_of_one_connection_have_contexts_of_their_own(connection):
    streams = [connection.start("GET", f"/context?{number}") for number in range(10)]
    for number, stream in enumerate(streams):
        assert connection.response(stream).json() == {"seen": "nothing", "own": str(number), "import": "set at import"}


def test_httpx_speaks_http_2_over_tls(launch, certificate):
    settings = {"tls.certfile": certificate.chain, "tls.keyfile": certificate.key}
    server = launch("exchange:app", settings=settings)

    async def ask():
        async with httpx.AsyncClient(http2=True, verify=False) as client:
            return await asyncio.gather(*(client.get(f"{server.url}/hello") for _ in range(30)))

    answers = asyncio.run(ask())
    assert {(answer.http_version, answer.status_code, answer.text) for answer in answers} == {("HTTP/2", 200, "hello")}


def test_a_stop_lets_streams_in_flight_finish_and_says_goaway(launch):
    server = launch("life:app", settings={"workers.drain_idle": "200ms"})
    with Http2(server) as connection:
        stream = connection.start("GET", "/until?release")
        server.wait_record("began")
        server.signal(signal.SIGTERM)
        server.wait_event("worker_draining")
        server.write("release", "")
        assert connection.response(stream).text == "done"
        eventually("a GOAWAY or the end", lambda: connection.goaway or connection.ended or connection.turn())
    assert server.wait_exit() == 0
