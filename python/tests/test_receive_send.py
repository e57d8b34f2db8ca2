"""Promise: what an app reads and sends over HTTP/1.1 becomes the bytes that the specification asks for."""

import time

import pytest

from clients import Raw, get, post
from harness import eventually


@pytest.fixture(scope="module")
def shared(launch_for_module):
    return launch_for_module("exchange:app")


@pytest.fixture
def server(shared):
    shared.clear_records()
    return shared


def assert_serves_on(connection):
    """Asserts that the connection serves its next request: nothing was left of the one before."""
    answer = connection.get("/hello")
    assert (answer.status, answer.text) == (200, "hello")


# --- receive ---


def test_receive_after_the_whole_answer_is_a_disconnect_at_once(server):
    with Raw(server) as connection:
        assert connection.get("/receive-after-the-end").text == "hello"
        [seen] = server.wait_record("after the end", within=2)
        assert seen["type"] == "http.disconnect"
        assert_serves_on(connection)


def test_a_second_receive_before_the_answer_waits(server):
    seen = get(server, "/receive-twice").json()
    assert seen == {"first": {"type": "http.request", "body": {"bytes": ""}, "more_body": False}, "second": "waits"}


def test_a_cancelled_receive_is_no_disconnect_and_loses_no_body(server):
    with Raw(server) as connection:
        connection.request("POST", "/poll-then-read", "Content-Length: 5")
        server.wait_record("polled")
        connection.send("hello")
        assert connection.response().json() == {"cancelled": 5, "body": "hello"}
        assert_serves_on(connection)


def test_a_receive_cancelled_again_and_again_loses_no_piece(server):
    data = bytes(range(251)) * 2000
    with Raw(server) as connection:
        connection.request("POST", "/poll-between-pieces", f"Content-Length: {len(data)}")
        for at in range(0, len(data), 20_000):
            connection.send(data[at : at + 20_000])
            time.sleep(0.002)  # so that some calls of receive() find nothing and are cancelled
        seen = connection.response().json()
    assert (seen["length"], seen["sum"]) == (len(data), sum(data))
    assert seen["cancelled"] > 0


def test_a_body_that_came_with_the_head_is_one_message(server):
    answer = post(server, "/first-message", b"hello")
    assert answer.json() == {"type": "http.request", "body": {"bytes": "hello"}, "more_body": False}


@pytest.mark.differs_under_uvicorn("hands on up to 128 kB")
def test_a_body_comes_in_pieces_of_at_most_64_kib(server):
    seen = post(server, "/pieces", b"x" * 200_000).json()
    assert sum(seen["sizes"]) == 200_000
    assert max(seen["sizes"]) <= 65536
    assert seen["more"] == [True] * (len(seen["more"]) - 1) + [False]


def test_the_last_piece_of_a_body_with_a_length_says_that_it_is_the_last(server):
    assert post(server, "/pieces", b"x" * 200_000).json()["sizes"][-1] > 0


def test_a_chunked_body_arrives_whole(server):
    with Raw(server) as connection:
        connection.request("POST", "/echo", "Transfer-Encoding: chunked")
        connection.send("5\r\nhello\r\n").send("6;x=y\r\n world\r\n").send("0\r\nX-Trailer: 1\r\n\r\n")
        assert connection.response().text == "hello world"
        assert_serves_on(connection)


def test_a_body_is_kept_for_an_app_that_reads_it_later(server):
    with Raw(server) as connection:
        connection.request("POST", "/wait-then-read", body=b"y" * 100_000)
        assert connection.response().body == b"y" * 100_000
        assert_serves_on(connection)


def test_receive_after_an_early_answer_is_a_disconnect_and_not_the_body(server):
    with Raw(server) as connection:
        connection.request("POST", "/answer-then-read", body=b"hello")
        assert connection.response().text == "early"
        [seen] = server.wait_record("read after the answer")
        assert seen["type"] == "http.disconnect"
        assert_serves_on(connection)


@pytest.mark.differs_under_uvicorn("keeps the connection open")
def test_an_early_answer_reaches_a_client_that_still_sends_its_body(server):
    size = 3_000_000
    with Raw(server) as connection:
        connection.request("POST", "/refuse", f"Content-Length: {size}")
        connection.send(b"x" * size)
        answer = connection.response()
        assert (answer.status, answer.text) == (401, "no")
        assert answer.closes
        connection.half_close()
        assert connection.rest() == b""


def test_a_small_body_that_the_app_did_not_read_does_not_end_the_connection(server):
    with Raw(server) as connection:
        connection.request("POST", "/refuse", body=b"x" * 1000)
        assert connection.response().status == 401
        assert_serves_on(connection)


# --- Expect: 100-continue ---


def test_100_continue_comes_at_the_first_receive(server):
    with Raw(server) as connection:
        connection.request("POST", "/wait-then-read", "Content-Length: 5", "Expect: 100-continue")
        server.wait_record("not read yet")
        assert connection.is_silent(0.05), "100 Continue before the app has asked for the body"
        assert connection.head().status == 100
        connection.send("hello")
        answer = connection.head()
        assert answer.status == 200
        assert connection.body_of(answer).text == "hello"
        assert_serves_on(connection)


def test_an_app_that_refuses_unread_sends_no_100_continue(server):
    with Raw(server) as connection:
        connection.request("POST", "/refuse", "Content-Length: 5", "Expect: 100-continue")
        answer = connection.head()
        assert answer.status == 401
        assert connection.body_of(answer).text == "no"


@pytest.mark.differs_under_uvicorn("keeps the connection open")
def test_after_a_refusal_of_100_continue_the_connection_ends(server):
    with Raw(server) as connection:
        connection.request("POST", "/refuse", "Content-Length: 5", "Expect: 100-continue")
        answer = connection.response()
        assert (answer.status, answer.closes) == (401, True)
        connection.half_close()
        assert connection.rest() == b""


# --- framing ---


@pytest.mark.differs_under_uvicorn("sends chunks")
def test_one_body_message_without_a_length_gets_its_length(server):
    with Raw(server) as connection:
        answer = connection.get("/one-message")
        assert (answer.status, answer.text) == (200, "hello")
        assert answer.all("content-length") == ["5"]
        assert answer.get("transfer-encoding") is None
        assert_serves_on(connection)


def test_several_body_messages_without_a_length_are_chunks(server):
    with Raw(server) as connection:
        answer = connection.get("/two-messages")
        assert answer.get("transfer-encoding") == "chunked"
        assert answer.get("content-length") is None
        assert (answer.text, answer.complete) == ("hello", True)
        assert_serves_on(connection)


@pytest.mark.differs_under_uvicorn("sends chunks")
@pytest.mark.parametrize("target", ["/empty", "/no-body-key"])
def test_an_empty_body_has_the_length_0(server, target):
    with Raw(server) as connection:
        answer = connection.get(target)
        assert (answer.status, answer.all("content-length"), answer.body) == (200, ["0"], b"")
        assert_serves_on(connection)


@pytest.mark.differs_under_uvicorn("sends chunks to a client of HTTP/1.0")
@pytest.mark.parametrize("target", ["/one-message", "/two-messages"])
def test_a_client_of_http_1_0_never_gets_chunks(server, target):
    with Raw(server) as connection:
        answer = connection.send(f"GET {target} HTTP/1.0\r\n\r\n").response()
        assert answer.get("transfer-encoding") is None
        assert answer.body == b"hello"
        assert connection.rest() == b""


@pytest.mark.differs_under_uvicorn("sends no length")
def test_head_gets_the_length_and_no_body(server):
    with Raw(server) as connection:
        answer = connection.request("HEAD", "/one-message").response("HEAD")
        assert (answer.status, answer.all("content-length")) == (200, ["5"])
        assert_serves_on(connection)


def test_head_never_gets_a_body(server):
    with Raw(server) as connection:
        for target in ("/one-message", "/two-messages", "/hello"):
            assert connection.request("HEAD", target).response("HEAD").status == 200
            assert_serves_on(connection)


@pytest.mark.differs_under_uvicorn("raises in send() and ends the connection")
@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_never_sends_one(server, status):
    with Raw(server) as connection:
        answer = connection.get(f"/{status}")
        assert answer.status == status
        assert answer.get("transfer-encoding") is None
        assert_serves_on(connection)


@pytest.mark.needs_oxicorn
def test_a_body_that_is_not_sent_is_told_once_and_not_each_time(launch):
    server = launch("exchange:app")
    for _ in range(3):
        assert get(server, "/204").status == 204
    assert get(server, "/hello").status == 200
    told = [entry for entry in server.events() if "/204" in str(entry)]
    assert len(told) == 1, told


def test_an_answer_shorter_than_its_length_is_cut(server):
    with Raw(server) as connection:
        answer = connection.get("/too-short")
        assert answer.get("content-length") == "10"
        assert (answer.body, answer.complete) == (b"12345", False)
        assert connection.rest() == b""


@pytest.mark.needs_oxicorn
@pytest.mark.parametrize("target", ["/too-short", "/too-long"])
def test_an_answer_whose_length_is_wrong_is_told_as_an_error_of_the_app(server, target):
    before = len(server.events("app_error", path=target))
    get(server, target, "Connection: close")
    [said] = server.wait_event("app_error", before + 1, path=target)[before:]
    assert "Content-Length" in said["message"]


def test_an_answer_longer_than_its_length_ends_its_connection(server):
    with Raw(server) as connection:
        answer = connection.get("/too-long")
        if answer.status == 200:
            assert connection.rest(5) == b""


def test_an_answer_longer_than_its_length_never_writes_more(server):
    with Raw(server) as connection:
        wire = connection.request("GET", "/too-long", "Connection: close").rest()
        if b"\r\n\r\n" in wire:
            head, _, data = wire.partition(b"\r\n\r\n")
            # Either a clean 500 in its place, or a body that is cut: never five bytes behind a length of 3.
            assert head.startswith(b"HTTP/1.1 500 ") or b"123".startswith(data), wire


@pytest.mark.differs_under_uvicorn("sends both")
def test_the_apps_own_date_and_server_replace_the_workers(server):
    answer = get(server, "/own-date-and-server")
    assert answer.all("date") == ["Thu, 01 Jan 1970 00:00:00 GMT"]
    assert answer.all("server") == ["my-own"]


def test_an_answer_has_one_date(server):
    assert len(get(server, "/hello").all("date")) == 1


def test_headers_of_the_app_keep_their_values_and_their_order(server):
    answer = get(server, "/headers")
    assert answer.all("set-cookie") == ["a=1", "b=2"]
    assert answer.all("x-caps") == ["caf\xe9"]


def test_headers_that_frame_the_message_are_not_the_apps(server):
    with Raw(server) as connection:
        answer = connection.get("/hop-by-hop")
        assert (answer.status, answer.text, answer.complete) == (200, "hello", True)
        framings = answer.all("transfer-encoding") + answer.all("content-length")
        assert len(framings) == 1, answer.fields
        assert_serves_on(connection)


def test_a_header_value_with_a_line_end_is_refused(server):
    with Raw(server) as connection:
        wire = connection.request("GET", "/bad-header", "Connection: close").rest()
    assert b"x-injected" not in wire
    assert wire.startswith(b"HTTP/1.1 500 ") or wire == b""


# --- errors ---


def assert_is_500(answer):
    assert (answer.status, answer.text) == (500, "Internal Server Error")
    assert answer.get("content-type").startswith("text/plain")


@pytest.mark.differs_under_uvicorn("ends the connection")
def test_an_app_that_raises_before_its_answer_is_a_500_on_a_connection_that_stays(server):
    with Raw(server) as connection:
        answer = connection.get("/raise")
        assert_is_500(answer)
        assert not answer.closes
        assert_serves_on(connection)
        assert_is_500(connection.request("POST", "/read-then-raise", body=b"hello").response())
        assert_serves_on(connection)


@pytest.mark.needs_oxicorn
def test_an_app_that_raises_is_one_event_with_its_traceback(server):
    before = len(server.events("app_error"))
    assert get(server, "/raise?secret=1", "X-Request-Id: the-id").status == 500
    server.wait_event("app_error", before + 1)
    assert_serves_on(Raw(server))
    [said] = server.events("app_error")[before:]
    assert (said["level"], said["method"], said["path"], said["request_id"]) == ("ERROR", "GET", "/raise", "the-id")
    whole = str(said)
    assert "ValueError: on purpose" in whole
    assert "in raise_before" in whole, "the frame of the app is in the traceback"


@pytest.mark.needs_oxicorn
def test_an_app_that_raises_after_its_answer_is_told_and_does_no_harm(server):
    before = len(server.events("app_error"))
    with Raw(server) as connection:
        assert connection.get("/raise-after-the-end").text == "hello"
        server.wait_event("app_error", before + 1)
        assert_serves_on(connection)


@pytest.mark.parametrize("target", ["/raise-after-a-chunk", "/chunk-then-return"])
def test_an_app_that_ends_within_its_answer_never_ends_the_chunks(server, target):
    with Raw(server) as connection:
        wire = connection.request("GET", target).rest()
    assert b"5\r\nfirst\r\n" in wire
    assert not wire.endswith(b"0\r\n\r\n"), "the client cannot see that the answer was cut"


@pytest.mark.differs_under_uvicorn("has sent the head, and cuts the connection")
@pytest.mark.parametrize("target", ["/start-then-return", "/start-then-raise"])
def test_an_app_that_ends_before_its_first_body_message_is_a_clean_500(server, target):
    with Raw(server) as connection:
        assert_is_500(connection.get(target))
        assert_serves_on(connection)


def test_an_app_that_sends_nothing_is_a_500(server):
    assert_is_500(get(server, "/return"))


def test_the_worker_survives_all_of_these(server):
    pids = server.serving_pids()
    for target in ("/raise", "/raise-after-a-chunk", "/start-then-raise", "/return", "/too-short", "/too-long"):
        with Raw(server) as connection:
            connection.request("GET", target, "Connection: close").rest()
    assert get(server, "/hello").text == "hello"
    assert server.serving_pids() == pids


@pytest.mark.parametrize(
    "target, what",
    [
        ("/body-after-the-end", "body after the end"),
        ("/second-start", "second start"),
        ("/body-before-start", "body before start"),
        ("/unknown-message", "unknown message"),
    ],
)
def test_a_message_out_of_turn_raises_in_the_app(server, target, what):
    with Raw(server) as connection:
        assert connection.get(target).text == "hello"
        [seen] = server.wait_record(what)
        assert seen["raised"] is not None
        assert not seen["oserror"], "an app takes an OSError for a client that left"
        assert_serves_on(connection)


# --- extensions ---


@pytest.mark.differs_under_uvicorn("raises in send(): 500")
def test_an_early_hint_never_costs_the_answer(server):
    with Raw(server) as connection:
        connection.request("GET", "/early-hint")
        first = connection.head()
        hinted = first.status == 103
        answer = connection.body_of(connection.head() if hinted else first)
        assert answer.status == 200
        assert answer.json()["offered"] is hinted, "what is offered is sent"
        assert_serves_on(connection)


@pytest.mark.differs_under_uvicorn("raises in send()")
def test_trailers_for_a_client_that_did_not_ask_are_dropped(server):
    with Raw(server) as connection:
        answer = connection.get("/trailers")
        assert (answer.status, answer.text, answer.complete) == (200, "hello", True)
        assert (answer.trailers, answer.get("x-offered")) == ([], "False")
        server.wait_record("trailers were sent", within=5)
        assert_serves_on(connection)


@pytest.mark.needs_oxicorn
def test_trailers_reach_a_client_that_asks_for_them(server):
    with Raw(server) as connection:
        answer = connection.get("/trailers", "TE: trailers", "Connection: TE")
        assert (answer.text, answer.get("x-offered")) == ("hello", "True")
        assert answer.trailers == [("x-sum", "42")]
        assert_serves_on(connection)


CONTENT = bytes(range(256)) * 200


@pytest.mark.needs_oxicorn
@pytest.mark.parametrize("target", ["/file", "/file-without-length"])
def test_pathsend_sends_the_file_with_its_length(server, target):
    with Raw(server) as connection:
        answer = connection.get(target)
        assert answer.all("content-length") == ["51200"]
        assert (answer.body == CONTENT, answer.complete) == (True, True)
        assert_serves_on(connection)


@pytest.mark.needs_oxicorn
@pytest.mark.parametrize("target", ["/file", "/file-without-length"])
def test_pathsend_to_head_sends_the_length_alone(server, target):
    with Raw(server) as connection:
        answer = connection.request("HEAD", target).response("HEAD")
        assert answer.all("content-length") == ["51200"]
        assert_serves_on(connection)


@pytest.mark.needs_oxicorn
def test_pathsend_of_an_empty_file_is_an_empty_answer(server):
    with Raw(server) as connection:
        answer = connection.get("/empty-file")
        assert (answer.status, answer.body, answer.complete) == (200, b"", True)
        assert_serves_on(connection)


@pytest.mark.needs_oxicorn
def test_pathsend_of_a_file_that_is_not_there_is_a_clean_500(server):
    with Raw(server) as connection:
        assert_is_500(connection.get("/missing-file"))
        assert_serves_on(connection)


# --- the app is a Task ---


def test_a_request_is_a_task_and_send_is_a_coroutine(server):
    assert get(server, "/task").text == "child True True"


def test_requests_at_the_same_time_have_contexts_of_their_own(server):
    connections = [Raw(server) for _ in range(8)]
    for number, connection in enumerate(connections):
        connection.request("GET", f"/context?{number}")
    for number, connection in enumerate(connections):
        seen = connection.response().json()
        assert seen == {"seen": "nothing", "own": str(number), "import": "set at import"}
        connection.close()


def test_requests_on_one_connection_have_contexts_of_their_own(server):
    with Raw(server) as connection:
        for number in range(3):
            assert connection.get(f"/context?{number}").json()["seen"] == "nothing"


def test_timers_threads_sockets_and_programs_of_the_app_work(server):
    assert get(server, "/call-later").json() == ["thread", "socket", "subprocess", 0]


def test_pipelined_requests_are_answered_in_their_order(server):
    with Raw(server) as connection:
        connection.request("GET", "/call-later").request("GET", "/hello").request("GET", "/one-message")
        assert connection.response().json()[0] == "thread"
        assert [connection.response().text for _ in range(2)] == ["hello", "hello"]


def test_many_requests_at_once_are_all_answered(server):
    connections = [Raw(server) for _ in range(100)]
    for connection in connections:
        connection.request("POST", "/echo", body=b"z" * 5000)
    for connection in connections:
        assert connection.response().body == b"z" * 5000
        connection.close()
    eventually("the worker serves on", lambda: get(server, "/hello").text == "hello")
