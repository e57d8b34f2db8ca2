"""Promise: web sockets do what RFC 6455 and ASGI say, and a drain ends each with 1012 so that its handler ends."""

import asyncio
import signal
import time
import zlib

import pytest
import websockets
import websockets.sync.client

from clients import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Http2, Raw, RawWebSocket, get
from harness import eventually

KIB = 1024


@pytest.fixture(scope="module")
def shared(launch_for_module):
    return launch_for_module("sockets:app")


@pytest.fixture
def server(shared):
    shared.clear_records()
    return shared


def connect(server, target, **options):
    """Connects with the library `websockets`, as an app's own client would."""
    return websockets.sync.client.connect(f"ws://127.0.0.1:{server.port}{target}", **options)


# --- the handshake ---


def test_the_handshake_answers_the_key_of_the_client(server):
    # The key and its answer are those of RFC 6455, section 1.3.
    with RawWebSocket(server, "/echo", key="dGhlIHNhbXBsZSBub25jZQ==") as websocket:
        answer = websocket.answer
        assert answer.status == 101
        assert answer.get("sec-websocket-accept") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert answer.get("upgrade").lower() == "websocket"
        assert answer.get("connection").lower() == "upgrade"


def test_the_subprotocols_reach_the_app_and_its_choice_the_client(server):
    with connect(server, "/subprotocol", subprotocols=["chat.v1", "chat.v2"]) as websocket:
        assert websocket.subprotocol == "chat.v2"
    assert server.wait_record("offered")[0]["names"] == ["chat.v1", "chat.v2"]


def test_headers_of_the_accept_reach_the_client(server):
    with RawWebSocket(server, "/subprotocol", "Sec-WebSocket-Protocol: chat.v2") as websocket:
        assert websocket.answer.get("x-from-app") == "yes"
        assert websocket.answer.get("set-cookie") == "a=1"


@pytest.mark.parametrize("line", ["Sec-WebSocket-Version: 12", "Sec-WebSocket-Version: 14"])
def test_an_unknown_version_is_refused(server, line):
    with Raw(server) as connection:
        key = "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg=="
        connection.request("GET", "/echo", "Upgrade: websocket", "Connection: Upgrade", line, key)
        answer = connection.response()
        assert answer.status in (400, 426)
        assert server.records("finally") == []


def test_a_request_without_a_key_is_refused(server):
    with Raw(server) as connection:
        connection.request("GET", "/echo", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
        assert connection.response().status == 400


def test_a_request_that_is_no_upgrade_is_plain_http(server):
    assert get(server, "/plain-http-to-a-socket").status == 426


def test_a_close_before_the_accept_is_403(server):
    with RawWebSocket(server, "/close-before-accept") as websocket:
        assert websocket.answer.status == 403


def test_a_denial_response_is_the_answer_of_the_app(server):
    with RawWebSocket(server, "/deny") as websocket:
        answer = websocket.answer
        assert (answer.status, answer.text, answer.get("x-why")) == (418, "short and stout", "teapot")
        assert answer.get("upgrade") is None, "an answer that refuses has no header of an upgrade"
        assert answer.get("sec-websocket-accept") is None


@pytest.mark.parametrize("target", ["/return-before-accept", "/raise-before-accept"])
def test_an_app_that_ends_before_its_accept_is_a_500(server, target):
    with RawWebSocket(server, target) as websocket:
        assert websocket.answer.status == 500
    assert get(server, "/hello").status == 200


# --- messages ---


def test_text_and_bytes_are_echoed(server):
    with connect(server, "/echo") as websocket:
        for message in ("grüße", "", b"\x00\xff", b"", "x" * 200, b"y" * 70_000):
            websocket.send(message)
            assert websocket.recv(20) == message


def test_a_message_is_a_str_or_bytes_and_never_both(server):
    with RawWebSocket(server, "/messages") as websocket:
        assert websocket.send(TEXT, "a").receive().data == b"('a', None)"
        assert websocket.send(BINARY, b"b").receive().data == b"(None, b'b')"
        assert websocket.send(TEXT, "").receive().data == b"('', None)"


def test_fragments_are_one_message(server):
    with RawWebSocket(server, "/messages") as websocket:
        websocket.send(TEXT, "one ", final=False).send(CONTINUATION, "two ", final=False)
        websocket.send(CONTINUATION, "three")
        assert websocket.receive().data == b"('one two three', None)"


def test_a_character_may_be_split_between_fragments(server):
    with RawWebSocket(server, "/messages") as websocket:
        whole = "ü".encode()
        websocket.send(TEXT, whole[:1], final=False).send(CONTINUATION, whole[1:])
        assert websocket.receive().data == "('ü', None)".encode()


def test_a_ping_between_fragments_is_answered_at_once(server):
    with RawWebSocket(server, "/messages") as websocket:
        websocket.send(TEXT, "one ", final=False).send(PING, "are you there")
        pong = websocket.receive()
        assert (pong.opcode, pong.data) == (PONG, b"are you there")
        websocket.send(CONTINUATION, "two")
        assert websocket.receive().data == b"('one two', None)"


def test_messages_that_come_together_are_all_delivered_in_order(server):
    with RawWebSocket(server, "/echo") as websocket:
        websocket.wire_bytes(b"".join(websocket.frame(TEXT, f"number {number}") for number in range(500)))
        assert [websocket.receive().data for _ in range(500)] == [b"number %d" % number for number in range(500)]


def test_a_cancelled_receive_loses_no_message(server):
    with RawWebSocket(server, "/poll") as websocket:
        server.wait_record("open")
        time.sleep(0.1)  # so that the app has cancelled its receive() several times
        for number in range(20):
            assert websocket.send(TEXT, str(number)).receive().data == b"%d True" % number


def test_a_message_of_one_byte_less_than_the_limit_passes_and_a_larger_one_ends_with_1009(launch):
    server = launch("sockets:app", settings={"python.ws_max_size": 100_000})
    with RawWebSocket(server, "/length") as websocket:
        assert websocket.send(BINARY, b"x" * 99_999).receive().data == b"99999"
        websocket.send(BINARY, b"x" * 100_001)
        assert websocket.receive().code == 1009
    assert server.wait_record("disconnect")[0]["code"] in (1006, 1009)


def test_the_size_of_a_message_in_fragments_counts_as_a_whole(launch):
    server = launch("sockets:app", settings={"python.ws_max_size": 100_000})
    with RawWebSocket(server, "/length") as websocket:
        websocket.send(BINARY, b"x" * 60_000, final=False).send(CONTINUATION, b"x" * 60_000)
        assert websocket.receive().code == 1009


def test_a_message_of_16_mib_passes_by_default(server):
    with connect(server, "/length", max_size=None) as websocket:
        websocket.send(b"x" * (16 * KIB * KIB))
        assert websocket.recv(20) == str(16 * KIB * KIB)


# --- what is no web socket any more ---


BROKEN = [
    ("a frame without a mask", RawWebSocket.frame(TEXT, "x", mask=False), 1002),
    ("a reserved bit", RawWebSocket.frame(TEXT | 0x20, "x"), 1002),
    ("an unknown opcode", RawWebSocket.frame(3, "x"), 1002),
    ("a ping in fragments", RawWebSocket.frame(PING, "x", final=False), 1002),
    ("a ping of 126 bytes", RawWebSocket.frame(PING, b"x" * 126), 1002),
    ("a continuation of nothing", RawWebSocket.frame(CONTINUATION, "x"), 1002),
    ("a text that is no UTF-8", RawWebSocket.frame(TEXT, b"\xff\xfe"), 1007),
    ("a close of one byte", RawWebSocket.frame(CLOSE, b"x"), 1002),
    ("a close with a reserved code", RawWebSocket.frame(CLOSE, b"\x03\xed"), 1002),
]


# The frames have random masks, which must not become part of the names of the tests.
@pytest.mark.parametrize("what, data, code", BROKEN, ids=[what for what, _, _ in BROKEN])
def test_what_breaks_the_protocol_ends_with_its_code(server, what, data, code):
    with RawWebSocket(server, "/wait") as websocket:
        websocket.wire_bytes(data)
        frame = websocket.receive()
        assert (frame.opcode, frame.code) == (CLOSE, code), what
    server.wait_record("disconnect")
    server.wait_record("finally")


# --- ends ---


def test_the_close_of_the_client_brings_code_and_reason_and_is_answered(server):
    with RawWebSocket(server, "/wait") as websocket:
        frame = websocket.close(4321, "good bye").receive()
        assert (frame.opcode, frame.code) == (CLOSE, 4321)
        assert websocket.wire.rest() == b""
    [seen] = server.wait_record("disconnect")
    assert (seen["code"], seen["reason"]) == (4321, "good bye")


def test_a_close_without_a_code_is_1005(server):
    with RawWebSocket(server, "/wait") as websocket:
        assert websocket.close(None).receive().opcode == CLOSE
    assert server.wait_record("disconnect")[0]["code"] == 1005


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.differs_under_uvicorn("says 1005")
def test_an_end_without_a_close_is_1006(server, how):
    websocket = RawWebSocket(server, "/wait")
    server.wait_record("open")
    websocket.wire.close() if how == "FIN" else websocket.wire.reset()
    assert server.wait_record("disconnect")[0]["code"] == 1006
    server.wait_record("finally")


def test_the_close_of_the_app_reaches_the_client_with_code_and_reason(server):
    with RawWebSocket(server, "/close") as websocket:
        frame = websocket.receive()
        assert (frame.opcode, frame.code, frame.reason) == (CLOSE, 4001, "enough")
        websocket.close(4001)
        assert websocket.wire.rest() == b""


def test_a_close_of_the_app_without_a_code_is_1000(server):
    with RawWebSocket(server, "/close-without-a-code") as websocket:
        assert websocket.receive().code == 1000


@pytest.mark.differs_under_uvicorn("cuts the connection")
def test_an_app_that_raises_after_its_accept_ends_with_1011(server):
    with RawWebSocket(server, "/raise") as websocket:
        frame = websocket.receive()
        assert (frame.opcode, frame.code) == (CLOSE, 1011)
        websocket.close(1011)
        assert websocket.wire.rest() == b""


@pytest.mark.needs_oxicorn
def test_an_app_that_raises_in_a_web_socket_is_one_event(server):
    before = len(server.events("app_error"))
    with RawWebSocket(server, "/raise") as websocket:
        websocket.receive()
    server.wait_event("app_error", before + 1)
    [said] = server.events("app_error")[before:]
    assert said["path"] == "/raise"
    assert "ValueError: after the accept" in str(said)


@pytest.mark.differs_under_uvicorn("leaves the connection open")
def test_an_app_that_returns_without_a_close_ends_its_web_socket(server):
    with RawWebSocket(server, "/return") as websocket:
        assert websocket.receive().opcode == CLOSE
        websocket.close()
        assert websocket.wire.rest(5) == b""


def test_a_send_to_a_client_that_left_raises_an_oserror(server):
    websocket = RawWebSocket(server, "/send-after-the-client-left")
    server.wait_record("open")
    websocket.close()
    websocket.wire.close()
    [seen] = server.wait_record("late send")
    assert seen["oserror"], seen


def test_a_send_after_the_apps_own_close_raises(server):
    with RawWebSocket(server, "/send-after-close") as websocket:
        assert websocket.receive().opcode == CLOSE
        websocket.close()
        assert server.wait_record("send after close")[0]["raised"] is not None


def test_a_client_that_leaves_never_cancels_the_handler(server):
    websocket = RawWebSocket(server, "/never-reads")
    server.wait_record("open")
    websocket.wire.reset()
    # The worker has noticed the end of this one when a later one, which ended after it, has.
    later = RawWebSocket(server, "/wait")
    later.wire.reset()
    server.wait_record("disconnect")
    assert server.records("cancelled") == []


# --- pings of the server ---


@pytest.mark.differs_under_uvicorn("tells the app 1005")
def test_the_server_pings_a_silent_client_and_keeps_one_that_answers(launch):
    settings = {"python.ws_ping_interval": "1s", "python.ws_ping_timeout": "1s"}
    server = launch("sockets:app", settings=settings)
    with RawWebSocket(server, "/echo") as websocket:
        for _ in range(2):
            ping = websocket.receive()
            assert ping.opcode == PING
            websocket.send(PONG, ping.data)
        websocket.send(TEXT, "still here")
        assert websocket.receive().data == b"still here"
        # Now it says nothing any more: the next ping is answered by no pong.
        while (frame := websocket.receive()).opcode == PING:
            pass
        assert (frame.opcode, frame.code) == (CLOSE, 1011)
    assert server.wait_record("disconnect")[0]["code"] in (1006, 1011)
    server.wait_record("finally")


# --- permessage-deflate ---

DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"


def deflate(data, compressor=None):
    compressor = compressor or zlib.compressobj(wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflate(data, decompressor=None):
    decompressor = decompressor or zlib.decompressobj(wbits=-15)
    return decompressor.decompress(data + b"\x00\x00\xff\xff")


def test_a_client_that_offers_deflate_gets_it(server):
    with RawWebSocket(server, "/echo", DEFLATE) as websocket:
        assert "permessage-deflate" in websocket.answer.get("sec-websocket-extensions")
        text = b"the same words again and again, " * 100
        frame = websocket.send(TEXT, deflate(text), compressed=True).receive()
        assert frame.compressed and len(frame.data) < len(text) // 4
        assert inflate(frame.data) == text


def test_the_window_is_kept_from_message_to_message(server):
    with RawWebSocket(server, "/echo", DEFLATE) as websocket:
        compressor, decompressor = zlib.compressobj(wbits=-15), zlib.decompressobj(wbits=-15)
        for number in range(5):
            text = b"a message that repeats, number %d " % number * 20
            frame = websocket.send(TEXT, deflate(text, compressor), compressed=True).receive()
            data = inflate(frame.data, decompressor) if frame.compressed else frame.data
            assert data == text


def test_a_client_may_send_without_compression_after_it_offered_it(server):
    with RawWebSocket(server, "/messages", DEFLATE) as websocket:
        frame = websocket.send(TEXT, "plain").receive()
        assert (inflate(frame.data) if frame.compressed else frame.data) == b"('plain', None)"


def test_compressed_fragments_are_one_message(server):
    with RawWebSocket(server, "/length", DEFLATE) as websocket:
        data = deflate(b"0123456789" * 1000)
        half = len(data) // 2
        websocket.send(TEXT, data[:half], final=False, compressed=True).send(CONTINUATION, data[half:])
        frame = websocket.receive()
        assert (inflate(frame.data) if frame.compressed else frame.data) == b"10000"


def test_a_client_that_offers_no_deflate_gets_none(server):
    with RawWebSocket(server, "/echo") as websocket:
        assert websocket.answer.get("sec-websocket-extensions") is None
        frame = websocket.send(TEXT, "x" * 5000).receive()
        assert (frame.compressed, frame.data) == (False, b"x" * 5000)


def test_a_small_message_that_grows_beyond_the_limit_ends_with_1009(launch):
    server = launch("sockets:app", settings={"python.ws_max_size": 100_000})
    with RawWebSocket(server, "/length", DEFLATE) as websocket:
        bomb = deflate(b"\x00" * 5_000_000)
        assert len(bomb) < 100_000
        websocket.send(BINARY, bomb, compressed=True)
        assert websocket.receive().code == 1009


@pytest.mark.needs_oxicorn
def test_deflate_can_be_switched_off(launch):
    server = launch("sockets:app", settings={"python.ws_per_message_deflate": False})
    with RawWebSocket(server, "/echo", DEFLATE) as websocket:
        assert websocket.answer.status == 101
        assert websocket.answer.get("sec-websocket-extensions") is None


def test_the_library_websockets_talks_compressed(server):
    with connect(server, "/echo", compression="deflate") as websocket:
        for message in ("words " * 1000, b"\x00" * 50_000, "short"):
            websocket.send(message)
            assert websocket.recv(20) == message


# --- back-pressure ---


def test_an_app_waits_in_send_while_its_client_reads_nothing(server):
    with RawWebSocket(server, "/flood"):
        [seen] = eventually("send() waits", lambda: server.records("send waits") or server.records("never waited"))
        assert seen["what"] == "send waits", "512 MiB were taken for a client that reads nothing"


def test_a_client_is_held_back_while_the_app_reads_nothing(server):
    with RawWebSocket(server, "/slow-reader") as websocket:
        server.wait_record("open")
        piece = websocket.frame(BINARY, b"x" * 65_000)
        websocket.wire.socket.settimeout(0.5)
        sent = 0
        try:
            for _ in range(2000):
                websocket.wire.socket.sendall(piece)
                sent += 1
        except TimeoutError:
            pass
        server.write("read-on", "")
        assert sent < 2000, "130 MB were taken for an app that reads nothing"
        websocket.wire.socket.settimeout(20)
        assert websocket.receive().opcode == TEXT


# --- the end of the worker ---


def test_a_stop_ends_a_web_socket_with_1012_and_its_handler_with_the_same(launch):
    server = launch("sockets:app")
    with RawWebSocket(server, "/wait") as websocket:
        server.wait_record("open")
        server.signal(signal.SIGTERM)
        frame = websocket.receive()
        assert (frame.opcode, frame.code) == (CLOSE, 1012)
        websocket.close(1012)
        server.wait_record("finally")
    assert server.records("disconnect")[0]["code"] == 1012
    began = time.monotonic()
    server.wait_exit()
    assert time.monotonic() - began < 5


def test_a_handler_that_never_reads_is_cancelled_at_the_end_of_the_grace(launch):
    settings = {"workers.graceful_timeout": "2s"}
    server = launch("sockets:app", settings=settings)
    with RawWebSocket(server, "/never-reads") as websocket:
        server.wait_record("open")
        server.signal(signal.SIGTERM)
        assert websocket.receive().code == 1012
        server.wait_exit()
    assert server.records("cancelled")


@pytest.mark.needs_oxicorn
def test_five_hundred_web_sockets_get_1012_at_a_reload_and_their_handlers_end(launch):
    many = 500
    server = launch("sockets:app", workers=2, settings={"http.worker_connections": 2000})
    old = set(server.serving_pids())

    async def hold(number):
        uri = f"ws://127.0.0.1:{server.port}/wait"
        async with websockets.connect(uri, open_timeout=30, close_timeout=10, ping_interval=None) as websocket:
            await websocket.wait_closed()
            return websocket.close_code

    async def all_of_them():
        holders = [asyncio.create_task(hold(number)) for number in range(many)]
        await asyncio.to_thread(server.wait_record, "open", many, 40)
        server.signal(signal.SIGHUP)
        return await asyncio.wait_for(asyncio.gather(*holders), 40)

    codes = asyncio.run(all_of_them())
    assert codes == [1012] * many
    server.wait_record("finally", many)
    assert [entry["code"] for entry in server.records("disconnect")] == [1012] * many
    server.wait_event("reloaded")
    assert server.events("reload_rolled_back") == []
    eventually("the old workers are gone", lambda: not old & set(server.worker_pids()))
    assert get(server, "/hello").status == 200


@pytest.mark.needs_oxicorn
def test_a_web_socket_over_http_2_is_a_connect_with_a_protocol(server):
    """RFC 8441: the server offers it by SETTINGS_ENABLE_CONNECT_PROTOCOL, and answers 200."""
    with Http2(server) as connection:
        connection.wait(lambda: connection.h2.remote_settings.enable_connect_protocol == 1)
        fields = [("sec-websocket-version", "13"), ("sec-websocket-protocol", "chat.v2")]
        stream = connection.start("CONNECT", "/echo", fields, end=False, pseudo=[(":protocol", "websocket")])
        connection.wait(lambda: connection.answers[stream].status)
        assert connection.answers[stream].status == 200
        connection.data(stream, RawWebSocket.frame(TEXT, "over two"))
        connection.wait(lambda: len(connection.answers[stream].body) >= 10)
        assert connection.answers[stream].body == b"\x81\x08over two"
