"""Promise: a WSGI app gets all that PEP 3333 asks for, and what it gives becomes the bytes that Gunicorn would send."""

from __future__ import annotations

import ast
import time

import pytest

from clients import Http2, Raw, get
from harness import eventually

pytestmark = pytest.mark.needs_oxicorn

FILE = bytes(range(256)) * 2000


@pytest.fixture(scope="module")
def shared(launch_for_module):
    return launch_for_module("wsgi_rules:app", settings={"python.threads": 2})


@pytest.fixture
def server(shared):
    shared.clear_records()
    shared.path("record.jsonl.go").unlink(missing_ok=True)
    return shared


def environ(server, target, *fields, **more):
    text = get(server, target, *fields).body.decode()
    return dict(line.split("=", 1) for line in text.splitlines())


def seen(answer):
    assert answer.status == 200, answer
    return ast.literal_eval(answer.text)


def serves_on(connection):
    answer = connection.get("/hello")
    return (answer.status, answer.body) == (200, b"hello\n")


# --- environ ---


def test_the_environ_has_what_gunicorn_gives(server):
    with Raw(server) as connection:
        port = connection.socket.getsockname()[1]
        text = connection.get("/environ?a=1&b=%20", "X-One: 1", "X-One: 2", "Cookie: a=b", "Accept: */*").text
    found = {key: ast.literal_eval(value) for key, value in (line.split("=", 1) for line in text.splitlines())
             if not value.startswith("<")}
    expected = {
        "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": "/environ", "QUERY_STRING": "a=1&b=%20",
        "RAW_URI": "/environ?a=1&b=%20", "SERVER_PROTOCOL": "HTTP/1.1", "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": str(server.port), "REMOTE_ADDR": "127.0.0.1", "REMOTE_PORT": str(port),
        "HTTP_HOST": "test", "HTTP_X_ONE": "1,2", "HTTP_COOKIE": "a=b", "HTTP_ACCEPT": "*/*",
        "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.multithread": True, "wsgi.multiprocess": False,
        "wsgi.run_once": False, "wsgi.input_terminated": True, "oxicorn.slot": 0, "oxicorn.generation": 1,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found["SERVER_SOFTWARE"].startswith("oxicorn/")
    assert found["oxicorn.request_id"] == found["HTTP_X_REQUEST_ID"] != ""
    # Nothing else: above all no variable of the process.
    assert set(found) - set(expected) == {"SERVER_SOFTWARE", "oxicorn.request_id", "HTTP_X_REQUEST_ID"}
    assert "wsgi.file_wrapper=<class" in text and "wsgi.errors=<" in text and "wsgi.input=<" in text


def test_a_path_is_one_character_for_each_byte(server):
    found = environ(server, "/%65nviron?%C3%A9=1")
    assert found["PATH_INFO"] == "'/environ'" and found["RAW_URI"] == "'/%65nviron?%C3%A9=1'"
    assert found["QUERY_STRING"] == "'%C3%A9=1'"
    assert seen(get(server, "/path-of/%E2%82%AC%FF%2F")) == "/path-of/\xe2\x82\xac\xff/"


def test_the_methods_and_the_headers_of_a_body(server):
    with Raw(server) as connection:
        found = connection.request("PURGE", "/environ", "Content-Type: a/b; c=d", body=b"abc").response().text
        assert "REQUEST_METHOD='PURGE'" in found and "CONTENT_LENGTH='3'" in found
        assert "CONTENT_TYPE='a/b; c=d'" in found and "HTTP_CONTENT_" not in found
        found = connection.get("/environ").text
        assert "CONTENT_" not in found


def test_a_header_with_an_underscore_is_left_out(server):
    found = environ(server, "/environ", "X_User: admin", "X-User: guest")
    assert found["HTTP_X_USER"] == "'guest'"
    assert "HTTP_X_USER" not in environ(server, "/environ", "X_User: admin")


def test_a_value_of_latin_1_arrives(server):
    assert environ(server, "/environ", "X-Name: caf\xe9")["HTTP_X_NAME"] == repr("caf\xe9")


def test_http_1_0_is_named(server):
    with Raw(server) as connection:
        text = connection.send("GET /environ HTTP/1.0\r\nHost: test\r\n\r\n").response().text
    assert "SERVER_PROTOCOL='HTTP/1.0'" in text


def test_a_trusted_proxy_names_scheme_and_client(launch):
    server = launch("wsgi_rules:app", settings={"http.forwarded_allow_ips": ["127.0.0.1"]})
    found = environ(server, "/environ", "X-Forwarded-Proto: https", "X-Forwarded-For: 203.0.113.7")
    assert (found["wsgi.url_scheme"], found["REMOTE_ADDR"]) == ("'https'", "'203.0.113.7'")
    server = launch("wsgi_rules:app", settings={"http.forwarded_allow_ips": ["192.0.2.1"]})
    found = environ(server, "/environ", "X-Forwarded-Proto: https", "X-Forwarded-For: 203.0.113.7")
    assert (found["wsgi.url_scheme"], found["REMOTE_ADDR"]) == ("'http'", "'127.0.0.1'")
    assert "HTTP_X_FORWARDED_PROTO" not in found


@pytest.mark.parametrize("trusted", [True, False])
def test_a_trusted_proxy_names_the_script(launch, trusted):
    """As nginx does with `proxy_set_header SCRIPT_NAME /prefix;`."""
    server = launch("wsgi_rules:app", settings={"http.forwarded_allow_ips": ["127.0.0.1" if trusted else "192.0.2.1"]})
    text = get(server, "/environ/environ", "SCRIPT_NAME: /environ").text
    assert ("SCRIPT_NAME='/environ'" in text) == trusted
    # An app that gets the whole path has no such route, and says hello.
    assert trusted or text == "hello\n"


def test_the_root_path_is_the_script_name(launch):
    server = launch("wsgi_rules:app", settings={"python.root_path": "/environ"})
    assert get(server, "/environ/environ").text.count("SCRIPT_NAME='/environ'") == 1
    assert "PATH_INFO='/environ'" in get(server, "/environ/environ").text
    # Another path that begins with the same letters is not under it.
    assert get(server, "/environment").body == b"hello\n"


def test_over_a_unix_socket_the_host_names_the_server(launch):
    server = launch("wsgi_rules:app", bind=["unix:{dir}/app.sock"])
    with Raw(server) as connection:
        text = connection.request("GET", "/environ", host="example.org:8080").response().text
        assert "SERVER_NAME='example.org'" in text and "SERVER_PORT='8080'" in text and "REMOTE_ADDR=''" in text
        text = connection.request("GET", "/environ", host="example.org").response().text
        assert "SERVER_NAME='example.org'" in text and "SERVER_PORT='80'" in text


# --- the head ---


def test_a_reason_phrase_and_headers_pass(server):
    answer = get(server, "/reason")
    assert (answer.status, answer.reason, answer.body) == (404, "Nothing Of That Kind", b"no")
    answer = get(server, "/headers")
    assert answer.all("set-cookie") == ["a=1", "b=2"]
    assert answer.get("x-padded") == "a b" and answer.get("x-latin") == "\xe9"
    assert answer.all("keep-alive") == answer.all("connection") == answer.all("transfer-encoding") == []


@pytest.mark.parametrize("path, named", [
    ("/bad-value", "the value of the header 'x-bad' is not valid"),
    ("/bad-name", "'X Bad' is not the name of a header"),
    ("/bytes-header", "name and value of a header must be str: b'X-Bad'"),
    ("/bad-status", "20 OK"),
    ("/start-twice", "Response headers already set!"),
    ("/never-started", "before start_response() was called"),
    ("/str-part", "must be bytes, not str"),
    ("/raises", "ValueError: at once"),
])
def test_a_fault_of_the_app_is_a_500_that_the_log_explains(server, path, named):
    before = len(server.events("app_error"))
    with Raw(server) as connection:
        answer = connection.get(path)
        assert (answer.status, answer.text) == (500, "Internal Server Error")
        assert "evil" not in str(answer.fields)
        assert serves_on(connection)
    [*_, told] = server.wait_event("app_error", before + 1)
    assert named in told["message"] and told["path"] == path and told["method"] == "GET"
    assert told["request_id"] == answer.get("x-request-id")
    # A fault that the worker finds in what the app returned has no frame of the app.
    assert "wsgi_rules.py" in told["traceback"] or path in ("/never-started", "/str-part")


def test_exc_info_replaces_a_head_that_was_not_sent(server):
    answer = get(server, "/replace")
    assert (answer.status, answer.reason, answer.body) == (500, "Replaced", b"replaced")
    assert answer.get("x-first") is None


def test_exc_info_after_the_head_raises_the_error_again(server):
    before = len(server.events("app_error"))
    answer = get(server, "/replace-too-late")
    assert (answer.status, answer.body, answer.complete) == (200, b"a part", False)
    [*_, told] = server.wait_event("app_error", before + 1)
    assert "KeyError: 'after the first part'" in told["message"]


def test_a_generator_may_call_start_response_late(server):
    answer = get(server, "/started-late")
    assert (answer.status, answer.body) == (202, b"late")


def test_a_head_request_and_bodiless_answers_have_no_body(server):
    with Raw(server) as connection:
        answer = connection.request("HEAD", "/list").response("HEAD")
        assert (answer.status, answer.get("content-length")) == (200, "3")
        answer = connection.request("HEAD", "/empty").response("HEAD")
        assert (answer.status, answer.get("content-length")) == (200, None)
        answer = connection.get("/no-content")
        assert (answer.status, answer.get("content-length"), answer.get("transfer-encoding")) == (204, None, None)
        answer = connection.get("/not-modified")
        assert (answer.status, answer.get("etag"), answer.get("transfer-encoding")) == (304, '"a"', None)
        assert serves_on(connection)
    assert len(server.events("body_dropped")) == 1


# --- the body ---


def test_a_list_is_sent_at_once_with_its_length(server):
    answer = get(server, "/list")
    assert (answer.body, answer.get("content-length")) == (b"abc", "3")
    answer = get(server, "/empty")
    assert (answer.body, answer.get("content-length")) == (b"", "0")


def test_a_part_leaves_as_it_comes(server):
    for path, first in (("/slow-parts", b"first"), ("/write-then-wait", b"written ")):
        server.path("record.jsonl.go").unlink(missing_ok=True)
        with Raw(server) as connection:
            connection.request("GET", path)
            answer = connection.head()
            assert answer.get("transfer-encoding") == "chunked"
            assert connection.chunk() == first
            server.path("record.jsonl.go").write_text("")
            assert connection.chunk() in (b"second", b"returned") and connection.chunk() == b""
            assert serves_on(connection)


def test_http_1_0_gets_a_body_without_chunks(server):
    with Raw(server) as connection:
        server.path("record.jsonl.go").write_text("")
        answer = connection.send("GET /slow-parts HTTP/1.0\r\n\r\n").response()
        assert (answer.body, answer.get("transfer-encoding")) == (b"firstsecond", None)


def test_write_comes_before_what_is_returned(server):
    assert get(server, "/write").body == b"written returned"


def test_what_is_longer_than_announced_is_left_out(server):
    with Raw(server) as connection:
        answer = connection.get("/too-long")
        assert (answer.get("content-length"), answer.body) == ("5", b"hello")
        assert serves_on(connection)


def test_what_is_shorter_than_announced_is_cut(server):
    before = len(server.events("app_error"))
    answer = get(server, "/too-short")
    assert (answer.body, answer.complete) == (b"hello", False)
    [*_, told] = server.wait_event("app_error", before + 1)
    assert "sent less than its Content-Length announced" in told["message"]
    assert len(server.records("closed")) == 1


@pytest.mark.parametrize("path, status, body, complete", [
    ("/close", 200, b"ab", True),
    ("/raises-before", 500, b"Internal Server Error", True),
    ("/raises-after", 200, b"a part", False),
    ("/close-raises", 200, b"ab", True),
])
def test_close_is_called_once(server, path, status, body, complete):
    before = len(server.events("app_error"))
    answer = get(server, path)
    assert (answer.status, answer.body, answer.complete) == (status, body, complete)
    server.wait_record("closed")
    if "raises" in path:
        [*_, told] = server.wait_event("app_error", before + 1)
        assert "ValueError" in told["message"] and "Traceback" in told["traceback"]
    assert get(server, "/hello").status == 200
    assert len(server.records("closed")) == 1
    assert len(server.events("app_error")) == before + ("raises" in path)


def test_a_client_that_leaves_ends_the_iteration_and_close_is_called(server):
    before = len(server.events("app_error"))
    connection = Raw(server)
    connection.request("GET", "/endless").head()
    connection.chunk()
    connection.reset()
    server.wait_record("closed")
    time.sleep(0.05)
    assert len(server.records("closed")) == 1
    assert len(server.events("app_error")) == before


def test_write_to_a_client_that_left_raises(server):
    before = len(server.events("app_error"))
    connection = Raw(server)
    connection.request("GET", "/endless-write").head()
    connection.reset()
    [failed] = server.wait_record("write failed")
    assert failed["kind"] == "ClientDisconnected"
    assert get(server, "/hello").status == 200
    assert len(server.events("app_error")) == before


def test_a_slow_reader_holds_the_app_back(server):
    with Raw(server) as connection:
        connection.request("GET", "/endless").head()

        def stands():
            first = len(server.records("part"))
            time.sleep(0.3)
            return first if len(server.records("part")) == first else None

        parts = eventually("the app waits for its client", stands)
        # 64 KiB in the worker, and what the sockets of both ends hold.
        assert parts * 16384 < 12 << 20
    server.wait_record("closed")


# --- files ---


def test_a_real_file_is_sent_whole(server):
    answer = get(server, "/file")
    assert (answer.get("content-length"), answer.body == FILE) == (str(len(FILE)), True)


def test_a_file_is_sent_from_its_position_and_no_longer_than_announced(server):
    with Raw(server) as connection:
        answer = connection.get("/file-part")
        assert (answer.get("content-length"), answer.body) == ("100", FILE[1000:1100])
        answer = connection.get("/file-buffered")
        assert answer.body == FILE[10:]
        answer = connection.request("HEAD", "/file").response("HEAD")
        assert answer.get("content-length") == str(len(FILE))
        assert serves_on(connection)


def test_a_file_that_is_too_short_is_cut(server):
    before = len(server.events("app_error"))
    answer = get(server, "/file-short")
    assert (answer.complete, answer.body == FILE) == (False, True)
    server.wait_event("app_error", before + 1)


def test_what_is_no_real_file_is_read_in_blocks(server):
    answer = get(server, "/file-like")
    assert (answer.body, answer.get("transfer-encoding")) == (b"0123456789" * 5, "chunked")
    assert len(server.wait_record("file closed")) == 1
    assert get(server, "/file-pipe").body == b"through a pipe"


# --- wsgi.input ---

LINES = b"one\ntwo\n\nthree"


@pytest.mark.parametrize("path, expected", [
    ("/read", LINES),
    ("/read-sizes", [b"", b"one", b"\ntwo", b"\n\nthree", b"", b""]),
    ("/readline", [b"one\n", b"tw", b"", b"o\n", b"\n"]),
    ("/readlines", [b"one\n", b"two\n", b"\n", b"three"]),
    ("/readlines-hint", [[b"one\n"], b"two\n\nthree"]),
    ("/iterate", [b"one\n", b"two\n", b"\n", b"three"]),
    ("/mixed", [b"one\n", b"t", [b"wo\n", b"\n", b"three"]]),
    ("/unread", None),
])
def test_the_body_is_read_as_a_file(server, path, expected):
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (LINES[:2], LINES[2:9], LINES[9:]))
    with Raw(server) as connection:
        assert seen(connection.request("POST", path, body=LINES).response()) == expected
        connection.request("POST", path, "Transfer-Encoding: chunked").send(chunked + b"0\r\n\r\n")
        assert seen(connection.response()) == expected
        # Byte by byte, so that each read meets the edge of a piece.
        connection.request("POST", path, f"Content-Length: {len(LINES)}")
        for at in range(len(LINES)):
            connection.send(LINES[at : at + 1])
            time.sleep(0.001)
        assert seen(connection.response()) == expected
        assert serves_on(connection)


def test_no_body_is_an_empty_file(server):
    assert seen(get(server, "/read")) == b""
    assert seen(get(server, "/readline")) == [b""] * 5
    assert seen(get(server, "/iterate")) == []


def test_large_bodies_pass_in_both_directions(server):
    body = bytes(range(251)) * 8000
    with Raw(server) as connection:
        assert connection.request("POST", "/echo", body=body).response().body == body
        assert serves_on(connection)


def test_the_continue_comes_with_the_first_read(server):
    with Raw(server) as connection:
        connection.request("POST", "/read-when-told", "Content-Length: 5", "Expect: 100-continue")
        server.wait_record("began")
        assert connection.is_silent()
        server.path("record.jsonl.go").write_text("")
        assert connection.head().status == 100
        connection.send("hello")
        assert connection.response().text == "5"
        assert serves_on(connection)
    with Raw(server) as connection:
        connection.request("POST", "/refuse", "Content-Length: 5", "Expect: 100-continue")
        assert connection.head().status == 403


def test_pipelined_requests_are_answered_in_their_order(server):
    with Raw(server) as connection:
        for number in range(5):
            connection.request("POST", "/echo", body=b"%d" % number)
        assert [connection.response().body for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


def test_a_body_that_ends_too_early_raises(launch):
    server = launch("wsgi_rules:app", settings={"python.wsgi_body_buffer": "10"})
    with Raw(server) as connection:
        connection.request("POST", "/read-of-gone", "Content-Length: 100").send("x" * 50)
        server.wait_record("began")
    assert server.wait_record("read failed")[0]["kind"] == "ClientDisconnected"
    assert get(server, "/hello").status == 200
    assert server.events("app_error") == []


def test_a_body_above_the_limit_is_refused_without_the_app(launch):
    settings = {"http.limit_request_body": 1000, "python.wsgi_body_buffer": "10"}
    server = launch("wsgi_rules:app", settings=settings)
    with Raw(server) as connection:
        connection.request("POST", "/echo", "Transfer-Encoding: chunked").send(b"7d0\r\n" + b"x" * 2000 + b"\r\n")
        assert connection.response().status == 413


def test_a_slow_small_body_holds_no_thread(launch):
    server = launch("wsgi_rules:app")
    slow = [Raw(server).request("POST", "/echo", "Content-Length: 10").send("12345") for _ in range(4)]
    # There is one thread, and it is free.
    assert get(server, "/hello").status == 200
    for connection in slow:
        assert connection.send("67890").response().body == b"1234567890"
        connection.close()


def test_a_slow_large_body_holds_a_thread_only_from_the_buffer_on(launch):
    server = launch("wsgi_rules:app", settings={"python.wsgi_body_buffer": "100"})
    with Raw(server) as connection:
        connection.request("POST", "/echo", "Content-Length: 1000").send("x" * 99)
        assert get(server, "/hello").status == 200
        connection.send("x" * 901)
        assert connection.response().body == b"x" * 1000


# --- around ---


def test_http_2_and_tls(launch, certificate):
    settings = {"tls.certfile": certificate.chain, "tls.keyfile": certificate.key}
    server = launch("wsgi_rules:app", settings=settings)
    with Raw(connection=certificate.connect(server)) as connection:
        assert "wsgi.url_scheme='https'" in connection.get("/environ").text
    plain = launch("wsgi_rules:app", settings={"http.http2": True})
    with Http2(plain) as connection:
        text = connection.get("/environ", [("cookie", "a=1"), ("cookie", "b=2")]).text
        assert "SERVER_PROTOCOL='HTTP/2.0'" in text and "HTTP_COOKIE='a=1; b=2'" in text
        assert "HTTP_HOST='" in text
        stream = connection.start("POST", "/echo", end=False)
        connection.data(stream, b"x" * 10_000)
        connection.data(stream, b"y" * 10_000, end=True)
        assert connection.response(stream).body == b"x" * 10_000 + b"y" * 10_000


def test_context_variables_are_those_of_one_request(server):
    for _ in range(4):
        assert get(server, "/context").body == b"nothingsomething"


def test_a_worker_of_wsgi_has_no_asyncio(server):
    facts = seen(get(server, "/facts"))
    assert facts["asyncio"] is False
    assert facts["thread"].startswith("wsgi-") and facts["is_main"] is False


def test_sys_exit_in_the_app_drains_the_worker(launch):
    server = launch("wsgi_rules:app")
    [before] = server.serving_pids()
    assert get(server, "/exit").status == 500
    assert "called sys.exit(3) in GET /exit" in server.wait_event("app_exit")[0]["message"]
    eventually("another worker serves", lambda: server.serving_pids() not in ([], [before]))


def test_requests_above_the_limit_are_answered_503(launch):
    server = launch("wsgi_rules:app", settings={"http.limit_concurrency": 2})
    waiting = [Raw(server).request("GET", "/write-then-wait") for _ in range(2)]
    eventually("both are under way", lambda: get(server, "/hello").status == 503)
    server.path("record.jsonl.go").write_text("")
    for connection in waiting:
        assert connection.response().body == b"written returned"
        connection.close()
