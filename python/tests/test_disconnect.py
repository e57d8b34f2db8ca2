"""Promise: an app is told at once that its client has left, works on undisturbed, and answers whoever still reads."""

import time

import pytest

from clients import Http2, Raw, get
from harness import UVICORN, eventually


@pytest.fixture(scope="module")
def shared(launch_for_module):
    return launch_for_module("disconnect:app")


@pytest.fixture(scope="module")
def shared_2_5(launch_for_module):
    return launch_for_module("disconnect:app", settings={"python.asgi_spec": "2.5"})


@pytest.fixture(scope="module")
def shared_starlette(launch_for_module):
    return launch_for_module("disconnect:starlette")


@pytest.fixture(scope="module")
def shared_starlette_2_5(launch_for_module):
    return launch_for_module("disconnect:starlette", settings={"python.asgi_spec": "2.5"})


@pytest.fixture
def server(shared):
    shared.clear_records()
    return shared


@pytest.fixture
def server_2_5(shared_2_5):
    shared_2_5.clear_records()
    return shared_2_5


@pytest.fixture
def starlette(shared_starlette):
    shared_starlette.clear_records()
    return shared_starlette


@pytest.fixture
def starlette_2_5(shared_starlette_2_5):
    shared_starlette_2_5.clear_records()
    return shared_starlette_2_5


def leave(connection, how):
    connection.close() if how == "FIN" else connection.reset()


def waiting(server, target, *fields):
    """Sends a request and waits until the app waits in receive()."""
    connection = Raw(server).request("GET", target, *fields)
    server.wait_record("waits")
    return connection


# --- receive ---


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_client_that_leaves_ends_a_waiting_receive_within_a_second(server, how):
    connection = waiting(server, "/wait")
    leave(connection, how)
    [told] = server.wait_record("told", within=1)
    assert told["type"] == "http.disconnect"


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_client_that_leaves_never_cancels_the_app(server, how):
    leave(waiting(server, "/wait"), how)
    server.wait_record("answered")
    assert server.records("worked on")
    assert server.records("cancelled") == []


def test_receive_after_a_disconnect_is_a_disconnect_again(server):
    leave(waiting(server, "/wait"), "FIN")
    assert server.wait_record("told again")[0]["type"] == "http.disconnect"


def test_a_client_that_stays_is_no_disconnect(server):
    assert get(server, "/second-request").text == "nothing"


def test_a_second_request_in_the_pipeline_is_no_disconnect(server):
    with Raw(server) as connection:
        connection.request("GET", "/second-request").request("GET", "/hello")
        assert [connection.response().text for _ in range(2)] == ["nothing", "hello"]


def test_a_client_that_leaves_within_its_body_is_a_disconnect_and_no_whole_body(server):
    connection = Raw(server).request("POST", "/upload", "Content-Length: 100")
    connection.send(b"0123456789")
    server.wait_record("waits")
    connection.close()
    [told] = server.wait_record("told", within=2)
    assert told["total"] == 10
    assert server.records("whole") == []


def test_a_chunked_body_without_its_end_is_a_disconnect_and_no_whole_body(server):
    connection = Raw(server).request("POST", "/upload", "Transfer-Encoding: chunked")
    connection.send(b"a\r\n0123456789\r\n")
    server.wait_record("waits")
    connection.close()
    server.wait_record("told", within=2)
    assert server.records("whole") == []


@pytest.mark.needs_oxicorn
def test_a_client_that_reads_nothing_for_the_write_timeout_is_a_disconnect(launch):
    server = launch("disconnect:app", settings={"http.write_timeout": "1s"})
    with waiting(server, "/receive-while-sending"):
        [told] = server.wait_record("told", within=10)
        assert told["type"] == "http.disconnect"


# --- half-close ---


def test_a_client_that_only_half_closes_gets_its_answer(server):
    with Raw(server) as connection:
        connection.request("GET", "/hello").half_close()
        assert connection.response().text == "hello"
        assert connection.rest() == b""


@pytest.mark.differs_under_uvicorn("drops the request")
def test_a_half_close_ends_a_waiting_receive_and_yet_the_answer_is_delivered(server):
    with waiting(server, "/wait") as connection:
        connection.half_close()
        assert server.wait_record("told", within=1)[0]["type"] == "http.disconnect"
        answer = connection.response()
        assert (answer.status, answer.text) == (200, "late answer")


def test_a_half_close_after_a_body_gets_its_answer(server):
    with Raw(server) as connection:
        connection.request("POST", "/upload", body=b"x" * 50_000).half_close()
        assert connection.response().text == "50000"


@pytest.mark.needs_oxicorn
def test_with_2_5_a_half_close_is_no_reason_for_an_error_of_send(server_2_5):
    with waiting(server_2_5, "/wait") as connection:
        connection.half_close()
        assert connection.response().text == "late answer"
    server_2_5.wait_record("answered")


# --- send ---


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_with_2_3_send_to_a_client_that_left_is_silent(server, how):
    leave(waiting(server, "/wait-then-send-much"), how)
    [sent] = server.wait_record("sent")
    assert sent["raised"] is None


@pytest.mark.needs_oxicorn
@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_with_2_5_send_to_a_client_that_left_raises_an_oserror(server_2_5, how):
    leave(waiting(server_2_5, "/wait-then-send-much"), how)
    [sent] = server_2_5.wait_record("sent")
    assert sent["oserror"]
    assert sent["raised"] == "ClientDisconnected"
    assert sent["module"].split(".")[0] == "oxicorn"


@pytest.mark.needs_oxicorn
def test_with_2_5_the_error_of_send_that_leaves_the_app_is_no_error_of_the_app(server_2_5):
    leave(waiting(server_2_5, "/raise-on-send"), "RST")
    server_2_5.wait_record("left send")
    assert get(server_2_5, "/hello").status == 200
    assert server_2_5.events("app_error") == []


def test_a_client_that_leaves_releases_an_app_that_waits_in_send(server):
    connection = Raw(server).request("GET", "/waits-in-send")
    server.wait_record("send waits")
    connection.reset()
    assert server.wait_record("released", within=5)[0]["raised"] is None


@pytest.mark.needs_oxicorn
def test_with_2_5_a_client_that_leaves_releases_a_waiting_send_with_an_oserror(server_2_5):
    connection = Raw(server_2_5).request("GET", "/waits-in-send")
    server_2_5.wait_record("send waits")
    connection.reset()
    assert server_2_5.wait_record("released", within=5)[0]["raised"] == "ClientDisconnected"


@pytest.mark.needs_oxicorn
def test_clients_that_left_are_no_errors_and_no_warnings(server):
    for how in ("FIN", "RST"):
        leave(waiting(server, "/wait"), how)
        server.wait_record("answered")
        server.clear_records()
    assert [entry for entry in server.events() if entry["level"] in ("WARN", "ERROR")] == []


# --- frameworks ---


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_an_idle_stream_of_events_ends_within_a_second(starlette, how):
    connection = Raw(starlette).request("GET", "/sse")
    assert connection.head().status == 200
    assert connection.chunk() == b"data: hello\n\n"
    starlette.wait_record("idle")
    left = time.monotonic()
    leave(connection, how)
    [ended] = starlette.wait_record("stream ended", within=2)
    assert ended["at"] - left < 1


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_is_disconnected_is_true_within_a_second(starlette, how):
    connection = Raw(starlette).request("GET", "/poll")
    starlette.wait_record("idle")
    left = time.monotonic()
    leave(connection, how)
    [ended] = starlette.wait_record("stream ended", within=2)
    assert ended["at"] - left < 1


def test_is_disconnected_is_false_for_a_client_that_stays(starlette):
    assert get(starlette, "/never-gone").text == "{False}"


@pytest.mark.needs_oxicorn
@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_with_2_5_a_busy_stream_of_events_ends_at_its_next_sends(starlette_2_5, how):
    connection = Raw(starlette_2_5).request("GET", "/busy")
    assert connection.head().status == 200
    left = time.monotonic()
    leave(connection, how)
    [ended] = starlette_2_5.wait_record("stream ended", within=3)
    assert ended["at"] - left < 2
    assert starlette_2_5.events("app_error") == []


# --- HTTP/2 ---


@pytest.mark.needs_oxicorn
def test_a_stream_that_is_reset_ends_its_receive_and_no_other(server):
    with Http2(server) as connection:
        stream = connection.start("GET", "/wait")
        server.wait_record("waits")
        other = connection.start("GET", "/second-request")
        server.wait_record("waits", 2)
        connection.reset(stream)
        assert server.wait_record("told", within=1)[0]["type"] == "http.disconnect"
        assert connection.response(other).text == "nothing"
    server.wait_record("answered")
    assert server.records("cancelled") == []


@pytest.mark.needs_oxicorn
def test_send_to_a_stream_that_was_reset_is_silent_with_2_3_and_raises_with_2_5(server, server_2_5):
    for which, raised in ((server, None), (server_2_5, "ClientDisconnected")):
        with Http2(which) as connection:
            stream = connection.start("GET", "/wait-then-send-much")
            which.wait_record("waits")
            connection.reset(stream)
            assert which.wait_record("sent")[0]["raised"] == raised
            assert connection.get("/hello").text == "hello"


@pytest.mark.needs_oxicorn
def test_a_reset_releases_an_app_that_waits_for_the_window_of_its_stream(server, server_2_5):
    for which, raised in ((server, None), (server_2_5, "ClientDisconnected")):
        with Http2(which, window=65535) as connection:
            stream = connection.start("GET", "/waits-in-send")
            connection.wait(lambda: len(connection.answers[stream].body) == 65535)  # noqa: B023
            which.wait_record("send waits")
            connection.reset(stream)
            assert which.wait_record("released", within=5)[0]["raised"] == raised


@pytest.mark.needs_oxicorn
def test_the_end_of_a_connection_ends_the_receive_of_all_its_streams(server):
    connection = Http2(server)
    for _ in range(3):
        connection.start("GET", "/wait")
    server.wait_record("waits", 3)
    connection.socket.close()
    told = server.wait_record("told", 3, within=2)
    assert {entry["type"] for entry in told} == {"http.disconnect"}


@pytest.mark.needs_oxicorn
def test_a_stream_that_is_reset_within_its_body_is_no_whole_body(server):
    with Http2(server) as connection:
        stream = connection.start("POST", "/upload", end=False)
        connection.data(stream, b"0123456789")
        server.wait_record("waits")
        connection.reset(stream)
        server.wait_record("told", within=2)
        assert server.records("whole") == []


def test_the_worker_serves_on_after_all_of_these(server):
    for _ in range(20):
        connection = Raw(server).request("GET", "/wait-then-send-much")
        connection.reset()
    eventually("it answers", lambda: get(server, "/hello").text == "hello")
    if not UVICORN:
        assert server.events("worker_exited") == []
