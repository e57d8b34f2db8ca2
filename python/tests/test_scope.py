"""Promise: the scope says what ASGI 3 says, in the types that ASGI says, on each transport and protocol."""

import json
import socket

import pytest

from clients import Http2, Raw, RawWebSocket, get
from harness import UVICORN


@pytest.fixture(scope="module")
def server(launch_for_module):
    return launch_for_module("scope:app_with_scope")


@pytest.fixture(scope="module")
def below_api(launch_for_module):
    return launch_for_module("scope:app_with_scope", settings={"python.root_path": "/api"})


def scope_of(server, target="/", *fields):
    return get(server, target, *fields).json()


def websocket_scope(server, target="/", *fields):
    with RawWebSocket(server, target, *fields) as websocket:
        return json.loads(websocket.receive().data)


def text_of(value):
    """Takes the text out of what `toolkit.plain` made of bytes, and asserts that it was bytes."""
    assert set(value) == {"bytes"}, f"{value} was not bytes"
    return value["bytes"]


def headers_of(scope):
    """Returns the headers of a scope as pairs of texts. A pair may be a tuple or a list."""
    pairs = [pair["tuple"] if isinstance(pair, dict) else pair for pair in scope["headers"]]
    return [tuple(text_of(part) for part in pair) for pair in pairs]


# --- the path ---


def test_the_path_is_decoded_and_raw_path_is_not(server):
    scope = scope_of(server, "/a%2Fb%20c?x=%31")
    assert scope["path"] == "/a/b c"
    assert text_of(scope["raw_path"]) == "/a%2Fb%20c"
    assert text_of(scope["query_string"]) == "x=%31"


def test_a_path_that_is_no_utf_8_still_reaches_the_app(server):
    scope = scope_of(server, "/%ff")
    assert scope["path"] == "/\ufffd"
    assert text_of(scope["raw_path"]) == "/%ff"


def test_a_path_in_utf_8_is_decoded_as_utf_8(server):
    assert scope_of(server, "/gr%C3%BC%C3%9Fe")["path"] == "/grüße"


def test_a_target_without_a_query_has_an_empty_query_string(server):
    assert text_of(scope_of(server, "/x")["query_string"]) == ""
    assert text_of(scope_of(server, "/x?")["query_string"]) == ""


def test_an_absolute_target_gives_its_path_alone(server):
    scope = scope_of(server, "http://test/here?q=1")
    assert (scope["path"], text_of(scope["raw_path"]), text_of(scope["query_string"])) == ("/here", "/here", "q=1")


def test_without_a_root_path_it_is_empty(server):
    assert scope_of(server, "/items")["root_path"] == ""


def test_a_stripped_path_gets_the_root_path_in_front(below_api):
    scope = scope_of(below_api, "/items")
    assert scope["root_path"] == "/api"
    assert scope["path"] == "/api/items"
    assert text_of(scope["raw_path"]) == "/api/items"


@pytest.mark.differs_under_uvicorn("puts the root path in front twice")
def test_a_path_with_the_root_path_keeps_it_once(below_api):
    scope = scope_of(below_api, "/api/items")
    assert (scope["path"], text_of(scope["raw_path"])) == ("/api/items", "/api/items")
    assert scope_of(below_api, "/api")["path"] == "/api"


def test_the_root_path_ends_at_the_border_of_a_segment(below_api):
    assert scope_of(below_api, "/apix/items")["path"] == "/api/apix/items"


def test_a_web_socket_below_a_root_path_has_the_path_of_a_request(below_api):
    scope = websocket_scope(below_api, "/chat")
    assert (scope["root_path"], scope["path"]) == ("/api", "/api/chat")


# --- method, version, headers ---


def test_the_scope_of_a_request_has_every_key_of_asgi(server):
    scope = scope_of(server, "/x", "X-One: 1")
    expected = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/x",
        "raw_path": {"bytes": "/x"},
        "query_string": {"bytes": ""},
        "root_path": "",
    }
    assert {key: scope[key] for key in expected} == expected
    # oxicorn gives each request an id, in the header that the log names too.
    assert [pair for pair in headers_of(scope) if pair[0] != "x-request-id"] == [("host", "test"), ("x-one", "1")]


def test_a_method_is_upper_case_even_one_that_is_not_known(server):
    with Raw(server) as connection:
        assert connection.request("PROPFIND", "/x").response().json()["method"] == "PROPFIND"


def test_a_client_of_http_1_0_is_told_as_1_0(server):
    with Raw(server) as connection:
        assert connection.send("GET /x HTTP/1.0\r\n\r\n").response().json()["http_version"] == "1.0"


def test_header_names_are_lower_case_bytes_and_values_stay(server):
    headers = headers_of(scope_of(server, "/", "X-MiXed: Some Value"))
    assert ("x-mixed", "Some Value") in headers


def test_equal_headers_stay_apart_in_their_order(server):
    headers = headers_of(scope_of(server, "/", "X-A: 1", "X-B: 2", "X-A: 3"))
    assert [value for name, value in headers if name == "x-a"] == ["1", "3"]
    assert [value for name, value in headers if name == "x-b"] == ["2"]


def test_a_header_value_with_bytes_above_127_arrives_as_it_was_sent(server):
    headers = headers_of(scope_of(server, "/", "X-Latin: caf\xe9"))
    assert ("x-latin", "caf\xe9") in headers


def test_two_cookie_lines_of_http_1_1_are_not_joined(server):
    headers = headers_of(scope_of(server, "/", "Cookie: a=1", "Cookie: b=2"))
    assert [value for name, value in headers if name == "cookie"] == ["a=1", "b=2"]


# --- versions of ASGI ---


def test_http_is_asgi_2_3(server):
    assert scope_of(server)["asgi"] == {"version": "3.0", "spec_version": "2.3"}


def test_web_sockets_are_asgi_2_4(server):
    assert websocket_scope(server)["asgi"] == {"version": "3.0", "spec_version": "2.4"}


@pytest.mark.differs_under_uvicorn("says 2.0 for the lifespan")
def test_the_lifespan_is_asgi_2_3(server):
    scope = scope_of(server, "/lifespan")
    assert scope["type"] == "lifespan"
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.3"}


@pytest.mark.needs_oxicorn
def test_http_is_asgi_2_5_where_the_settings_ask_for_it(launch):
    server = launch("scope:app_with_scope", settings={"python.asgi_spec": "2.5"})
    assert scope_of(server)["asgi"] == {"version": "3.0", "spec_version": "2.5"}


# --- state ---


def test_a_key_that_a_request_adds_to_the_state_stays_its_own(server):
    assert scope_of(server, "/change-state")["state"]["of this request"] is True
    assert "of this request" not in scope_of(server)["state"]


def test_objects_in_the_state_are_shared_by_requests(server):
    scope_of(server, "/change-state?shared")
    assert "shared" in scope_of(server)["state"]["shared"]


def test_a_key_that_the_app_adds_to_its_state_later_reaches_later_requests(launch):
    server = launch("scope:app_with_scope")
    assert scope_of(server)["state"]["number"] == 1
    assert "added later" not in scope_of(server)["state"]
    scope_of(server, "/refresh")
    assert scope_of(server)["state"]["added later"] is True


def test_a_web_socket_has_the_state_of_the_lifespan(server):
    assert websocket_scope(server)["state"]["number"] == 1


# --- extensions ---


def test_http_1_1_offers_no_extension_that_cannot_work_there(server):
    extensions = scope_of(server).get("extensions") or {}
    assert not {"websocket.http.response", "http.response.push", "tls", "http.response.trailers"} & set(extensions)


@pytest.mark.needs_oxicorn
def test_http_1_1_offers_pathsend(server):
    assert scope_of(server)["extensions"]["http.response.pathsend"] == {}


@pytest.mark.needs_oxicorn
def test_trailers_are_offered_to_a_client_that_takes_them(server):
    extensions = scope_of(server, "/", "TE: trailers", "Connection: TE")["extensions"]
    assert extensions["http.response.trailers"] == {}


def test_a_web_socket_is_offered_a_denial_response_and_nothing_of_http(server):
    extensions = websocket_scope(server)["extensions"]
    assert extensions["websocket.http.response"] == {}
    assert not [name for name in extensions if name.startswith("http.response.")]


@pytest.mark.needs_oxicorn
def test_the_scope_names_the_worker_and_the_request(server):
    own = scope_of(server, "/", "X-Request-Id: abc-123")["extensions"]["oxicorn"]
    assert (own["slot"], own["generation"], own["request_id"], own["stopping"]) == (0, 1, "abc-123", False)


# --- addresses ---


def test_client_and_server_are_pairs_of_a_text_and_a_number(server):
    with Raw(server) as connection:
        scope = connection.get("/").json()
        assert scope["client"] == {"tuple": list(connection.socket.getsockname())}
        assert scope["server"] == {"tuple": list(connection.socket.getpeername())}


def test_a_web_socket_has_the_addresses_too(server):
    with RawWebSocket(server) as websocket:
        scope = json.loads(websocket.receive().data)
        assert scope["client"] == {"tuple": list(websocket.wire.socket.getsockname())}
        assert scope["server"] == {"tuple": list(websocket.wire.socket.getpeername())}
        assert (scope["scheme"], scope["http_version"]) == ("ws", "1.1")


def test_over_a_unix_socket_there_is_no_client_and_the_server_is_the_path(launch):
    server = launch("scope:app_with_scope", bind=["unix:{dir}/web.sock"])
    scope = scope_of(server)
    assert scope["client"] is None
    assert scope["server"] == {"tuple": [str(server.path("web.sock")), None]}


def test_a_socket_that_was_passed_has_its_own_addresses(launch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        prepared = launch.prepare(
            "scope:app_with_scope", bind=[f"fd://{listener.fileno()}"], pass_fds=[listener.fileno()]
        )
        if UVICORN:
            # Uvicorn says "Uvicorn running on socket ('127.0.0.1', 1234)".
            prepared.addresses = ["{}:{}".format(*listener.getsockname())]
        prepared.serving()
        with socket.create_connection(listener.getsockname(), 20) as connection:
            scope = Raw(connection=connection).get("/").json()
            assert scope["server"] == {"tuple": list(listener.getsockname())}
            assert scope["client"] == {"tuple": list(connection.getsockname())}


# --- behind a proxy ---

FORWARDED = ("X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https")


def test_a_trusted_proxy_says_scheme_and_client(server):
    scope = scope_of(server, "/", *FORWARDED)
    assert scope["scheme"] == "https"
    address, port = scope["client"]["tuple"]
    assert address == "203.0.113.9"
    assert isinstance(port, int)


def test_a_trusted_proxy_says_the_scheme_of_a_web_socket(server):
    assert websocket_scope(server, "/", *FORWARDED)["scheme"] == "wss"


@pytest.mark.needs_oxicorn
def test_a_peer_that_is_not_trusted_says_neither(launch):
    server = launch("scope:app_with_scope", settings={"http.forwarded_allow_ips": []})
    scope = scope_of(server, "/", *FORWARDED)
    assert scope["scheme"] == "http"
    assert scope["client"]["tuple"][0] == "127.0.0.1"
    assert not [name for name, _ in headers_of(scope) if name.startswith("x-forwarded")]


# --- TLS ---


def test_over_tls_the_scheme_is_https_and_a_tls_extension_is_whole(launch, certificate):
    settings = {"tls.certfile": certificate.chain, "tls.keyfile": certificate.key}
    server = launch("scope:app_with_scope", settings=settings)
    with certificate.connect(server) as connection:
        scope = Raw(connection=connection).get("/").json()
    assert scope["scheme"] == "https"
    offered = (scope.get("extensions") or {}).get("tls")
    if offered is not None:
        keys = {"server_cert", "client_cert_chain", "client_cert_name", "client_cert_error", "tls_version"}
        assert keys | {"cipher_suite"} <= set(offered)
        assert offered["tls_version"] in (0x0303, 0x0304)
        assert offered["client_cert_chain"] in ([], {"tuple": []})


# --- HTTP/2 ---


@pytest.mark.needs_oxicorn
def test_http_2_is_told_as_2_with_the_authority_as_first_header(server):
    with Http2(server) as connection:
        stream = connection.start("GET", "/a%20b?q=1", [("x-a", "1"), ("x-b", "2")], authority="shop.example")
        scope = connection.response(stream).json()
    assert (scope["http_version"], scope["method"], scope["scheme"]) == ("2", "GET", "http")
    assert (scope["path"], text_of(scope["raw_path"]), text_of(scope["query_string"])) == ("/a b", "/a%20b", "q=1")
    assert headers_of(scope)[0] == ("host", "shop.example")
    assert [name for name, _ in headers_of(scope)].count("host") == 1
    assert ("x-a", "1") in headers_of(scope) and ("x-b", "2") in headers_of(scope)


@pytest.mark.needs_oxicorn
def test_the_cookie_fields_of_http_2_are_joined(server):
    with Http2(server) as connection:
        scope = connection.get("/", [("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]).json()
    assert [value for name, value in headers_of(scope) if name == "cookie"] == ["a=1; b=2; c=3"]


@pytest.mark.needs_oxicorn
def test_http_2_offers_trailers_and_never_a_thing_of_web_sockets(server):
    with Http2(server) as connection:
        extensions = connection.get("/").json()["extensions"]
    assert extensions["http.response.trailers"] == {}
    assert "websocket.http.response" not in extensions
