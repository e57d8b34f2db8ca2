"""Promise: a WSGI app gets from oxicorn what PEP 3333 says and what Gunicorn gives. Each rule is put to both servers in
the same test; where they differ, docs/reference/wsgi-differences.md says so, and says why.

Each rule returns what it saw, by name. A name whose two values differ needs a row in the table with just these values;
a row whose values were not seen fails, too.
"""

import json
import re
import socket
from pathlib import Path

import pytest

from clients import Ended, Raw
from harness import eventually
from peers import Run, app_file, settled

pytestmark = pytest.mark.needs_oxicorn

TABLE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "wsgi-differences.md"
WORDS = "wsgi_pep -k gthread --threads 4 --keep-alive 10 --bind 127.0.0.1:{port}"

PROGRAMS = "gunicorn", "oxicorn"
RULES = []


def rule(function):
    RULES.append(function)
    return function


@pytest.fixture(scope="module")
def servers():
    files = {"wsgi_pep.py": app_file("wsgi_pep.py"), "toolkit.py": app_file("toolkit.py")}
    environment = {"SECRET_OF_THE_PROCESS": "yes"}
    pair = [Run(program, WORDS, files=files, environment=environment) for program in PROGRAMS]
    for server in pair:
        server.start()
    for server in pair:
        server.wait_serving()
    yield pair
    for server in pair:
        server.close()


def answers(server) -> bool:
    assert server.process.poll() is None, f"the server ended with {server.process.returncode}"
    try:
        return server.get("/unread").status == 200
    except (OSError, Ended):
        return False


def rows() -> dict[tuple[str, str], tuple[str, str]]:
    """Returns the rows of the table, by rule and by what was seen: Gunicorn's value and oxicorn's."""
    found = {}
    for line in TABLE.read_text().splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 5 and cells[0].startswith("`"):
            assert cells[4], f"a row without a reason: {line}"
            found[cells[0].strip("`"), cells[1].strip("`")] = (cells[2].strip("`"), cells[3].strip("`"))
    return found


def written(value) -> str:
    """Writes a value as the table has it."""
    return (value or "empty") if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def compare(rule: str, theirs: dict, ours: dict) -> None:
    """Asserts that what was seen differs just as the table says."""
    seen = {
        (rule, name): (written(theirs.get(name, "nothing")), written(ours.get(name, "nothing")))
        for name in sorted({*theirs, *ours})
        if theirs.get(name, "nothing") != ours.get(name, "nothing")
    }
    said = {key: value for key, value in rows().items() if key[0] == rule}
    assert seen == said, "the two servers differ in other ways than the table says"


@pytest.mark.parametrize("look", RULES, ids=lambda look: look.__name__)
def test_both_servers_keep_the_rule_or_the_table_says_how_they_differ(look, servers):
    compare(look.__name__, *(look(server) for server in servers))


OTHER_STARTS = {
    "one_worker_of_one_thread": ("-w 1 -k sync --bind 127.0.0.1:{port}", {}, None),
    "two_workers_of_one_thread": ("-w 2 --bind 127.0.0.1:{port} --log-file -", {}, None),
    "two_workers_of_two_threads": ("-w 2 --threads 2 --bind 127.0.0.1:{port}", {}, None),
    "unix_socket": ("-k gthread --threads 2 --bind unix:{dir}/app.sock", {}, "{dir}/app.sock"),
}


@pytest.mark.parametrize("name", OTHER_STARTS)
def test_the_environ_of_other_starts(name):
    words, environment, uds = OTHER_STARTS[name]
    files = {"wsgi_pep.py": app_file("wsgi_pep.py"), "toolkit.py": app_file("toolkit.py")}
    pair = [Run(program, f"wsgi_pep {words}", files=files, environment=environment, uds=uds) for program in PROGRAMS]
    try:
        for server in pair:
            server.start()
        compare(name, *(environ_of_start(server) for server in pair))
    finally:
        for server in pair:
            server.close()


def environ_of_start(server) -> dict:
    server.wait_serving()
    flags = server.get("/prefix/types").json() if "SCRIPT_NAME" in server.environment else server.get("/types").json()
    seen = server.get("/prefix/environ").json()
    names = ("SCRIPT_NAME", "PATH_INFO", "REMOTE_ADDR", "SERVER_NAME", "SERVER_PORT")
    found = {name: seen.get(name, "absent").replace(str(server.port), "PORT") for name in names}
    found["REMOTE_PORT"] = "a number" if seen.get("REMOTE_PORT", "").isdigit() else seen.get("REMOTE_PORT", "absent")
    return {**found, **{name: flags[name] for name in ("multithread", "multiprocess", "run_once")}}


def test_the_table_has_only_rules_that_are_tested():
    assert {name for name, _ in rows()} <= {look.__name__ for look in RULES} | set(OTHER_STARTS)


# --- looks that several rules share ---


def ask(server, *lines, body=b"", method="GET", wire=None):
    """Sends exactly these lines and this body, and returns what came back."""
    data = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
    if wire is not None:
        return wire.send(data).response(method)
    with Raw(server) as fresh:
        return fresh.send(data).response(method)


def seen_of(answer, *names) -> dict:
    """Returns what an answer shows: its status line, its body, and these headers."""
    seen = {"status": f"{answer.status} {answer.reason}".strip(), "body": answer.body.decode("latin-1")}
    if not answer.complete:
        seen["complete"] = False
    for name in names:
        seen[name] = ", ".join(answer.all(name)) if answer.all(name) else "none"
    return seen


def framing(answer) -> str:
    if answer.get("transfer-encoding"):
        return answer.get("transfer-encoding")
    return f"length {answer.get('content-length')}" if answer.get("content-length") else "end of connection"


def stays_open(wire, path="/unread") -> bool:
    """Returns true if the connection serves another request, and false if it ends or what comes is no answer."""
    try:
        return wire.get(path).status == 200
    except (Ended, OSError, ValueError):
        return False


def fetch(server, target, *fields, method="GET", body=b"", names=()):
    """Sends one request, and returns what is seen of the answer, its framing, and the life of its connection."""
    with Raw(server) as wire:
        answer = wire.request(method, target, *fields, body=body).response(method)
        seen = seen_of(answer, *names)
        seen["framing"] = framing(answer)
        seen["stays open"] = answer.complete and not answer.closes and stays_open(wire)
        return seen


def error_of(server, target, *fields, method="GET", body=b""):
    """As `fetch`, for answers of the server itself: each server has its own words for them."""
    seen = fetch(server, target, *fields, method=method, body=body)
    seen["tells what was raised"] = "secret" in seen.pop("body")
    seen.pop("framing")
    return seen


def input_of(server, steps, body=b"one\ntwo\nthree", *fields):
    with Raw(server) as wire:
        return wire.request("POST", f"/input?{steps}", *fields, body=body).response("POST").json()


def chunked(*pieces: bytes, last=b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + last


def chunked_input(server, steps, body, *fields):
    head = f"POST /input?{steps} HTTP/1.1", "Host: test", "Transfer-Encoding: chunked", *fields
    return ask(server, *head, body=body, method="POST")


def environ_of(server, target, *fields, names):
    seen = ask(server, f"GET {target} HTTP/1.1", "Host: test", *fields).json()
    return {name: seen.get(name, "absent") for name in names}


def closed(server, name) -> int:
    """Returns how often `close()` was called for a name, once at least once and nothing more came."""

    def times() -> int:
        return sum(1 for entry in server.records("closed") if entry["name"] == name)

    eventually(f"close() of {name} is called", times)
    return settled(times, 0.1)


# --- the environment ---


@rule
def types_in_environ(server):
    seen = server.get("/types").json()
    names = seen.pop("names")
    return seen | {name: "there" for name in names if not name.startswith("oxicorn.")}


@rule
def path_and_query(server):
    names = ("PATH_INFO", "QUERY_STRING", "RAW_URI", "SCRIPT_NAME", "REQUEST_METHOD", "SERVER_PROTOCOL")
    targets = {
        "plain": "/environ/a/b?x=1&y=%20",
        "percent": "/environ/a%2Fb%20c%25?q=%2F",
        "utf-8": "/environ/caf%C3%A9",
        "latin-1": "/environ/%FF%80",
        "dots": "/environ/a/../b/./c",
        "slashes": "/environ//a///b",
        "slashes first": "//environ/a",
        "parameters": "/environ/a;v=1,2/b",
        "empty query": "/environ?",
        "question marks": "/environ?a?b=c?",
        "bad percent": "/environ/100%/%zz",
        "plus": "/environ/a+b?c+d",
        "nul": "/environ/a%00b",
    }
    seen = {}
    for what, target in targets.items():
        for name, value in environ_of(server, target, names=names).items():
            seen[f"{what}: {name}"] = value
    return seen


@rule
def absolute_target(server):
    names = ("PATH_INFO", "RAW_URI", "HTTP_HOST", "QUERY_STRING")
    with Raw(server) as wire:
        answer = wire.request("GET", "http://test/environ/x?y").response()
        seen = {name: answer.json().get(name, "absent") for name in names}
    with Raw(server) as wire:
        answer = wire.request("GET", "http://other.example:81/environ/x?y").response()
        return seen | {"another host than Host": answer.status}


@rule
def options_of_the_server(server):
    seen = ask(server, "OPTIONS * HTTP/1.1", "Host: test", method="OPTIONS").json()
    return {name: seen.get(name, "absent") for name in ("PATH_INFO", "RAW_URI", "REQUEST_METHOD")}


@rule
def headers_of_the_request(server):
    fields = (
        "X-One: 1",
        "X-Two: a",
        "X-Two: b",
        "x-two: c",
        "Cookie: a=1",
        "Cookie: b=2",
        "X-Blanks:    both sides \t ",
        "X-Latin: caf\xe9",
        "X-Empty:",
        "Proxy: evil",
        "Content-Type: text/x-test",
        "X-Under_Score: dropped",
        "Content_Length: 99",
        "Authorization: Basic dTpw",
    )
    names = "HTTP_X_ONE HTTP_X_TWO HTTP_COOKIE HTTP_X_BLANKS HTTP_X_LATIN HTTP_X_EMPTY HTTP_PROXY CONTENT_TYPE"
    names += " HTTP_CONTENT_TYPE HTTP_X_UNDER_SCORE CONTENT_LENGTH HTTP_CONTENT_LENGTH HTTP_HOST HTTP_AUTHORIZATION"
    return environ_of(server, "/environ", *fields, names=names.split())


@rule
def length_and_type_in_environ(server):
    names = ("CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_TRANSFER_ENCODING", "HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE")
    with Raw(server) as wire:
        sized = wire.request("POST", "/environ", "Content-Type: a/b", body=b"12345").response("POST").json()
    head = "POST /environ HTTP/1.1", "Host: test", "Transfer-Encoding: chunked"
    pieces = ask(server, *head, body=chunked(b"12345"), method="POST").json()
    empty = ask(server, "POST /environ HTTP/1.1", "Host: test", "Content-Length: 0", method="POST").json()
    none = ask(server, "GET /environ HTTP/1.1", "Host: test").json()
    seen = {}
    for what, environ in {"sized": sized, "chunked": pieces, "empty": empty, "none": none}.items():
        for name in names:
            seen[f"{what}: {name}"] = environ.get(name, "absent")
    return seen


@rule
def addresses_in_environ(server):
    with Raw(server) as wire:
        address, port = wire.socket.getsockname()
        seen = wire.get("/environ").json()
    return {
        "REMOTE_ADDR is the client": seen["REMOTE_ADDR"] == address,
        "REMOTE_PORT is the client's": seen.get("REMOTE_PORT") == str(port),
        "SERVER_NAME": seen["SERVER_NAME"],
        "SERVER_PORT is the port": seen["SERVER_PORT"] == str(server.port),
    }


@rule
def name_of_the_server(server):
    software = server.get("/environ").json()["SERVER_SOFTWARE"]
    return {"SERVER_SOFTWARE": re.sub(r"\d+(\.\d+)+\S*", "VERSION", software)}


@rule
def no_host_over_http_1_0(server):
    seen = ask(server, "GET /environ HTTP/1.0").json()
    names = ("HTTP_HOST", "SERVER_NAME", "SERVER_PROTOCOL", "PATH_INFO")
    return {name: seen.get(name, "absent") for name in names}


@rule
def nothing_of_the_process_in_environ(server):
    seen = server.get("/environ").json()
    return {name: seen.get(name, "absent") for name in ("SECRET_OF_THE_PROCESS", "PATH", "HOME", "RECORD", "LANG")}


@rule
def environ_is_fresh_for_each_request(server):
    with Raw(server) as wire:
        wire.get("/environ", "X-Before: 1")
        seen = wire.get("/environ").json()
    return {name: seen.get(name, "absent") for name in ("left.behind", "HTTP_X_BEFORE")}


@rule
def prefix_by_script_name(server):
    names = ("SCRIPT_NAME", "PATH_INFO", "RAW_URI", "HTTP_SCRIPT_NAME")
    return environ_of(server, "/prefix/environ", "SCRIPT_NAME: /prefix", names=names)


@rule
def what_a_trusted_proxy_says(server):
    names = ("wsgi.url_scheme", "REMOTE_ADDR", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO")
    names += ("HTTP_X_FORWARDED_HOST", "HTTP_HOST", "SERVER_NAME", "HTTP_FORWARDED")
    fields = "X-Forwarded-Proto: https", "X-Forwarded-For: 203.0.113.9", "X-Forwarded-Host: shop.example"
    return environ_of(server, "/environ", *fields, names=names)


@rule
def other_words_for_https(server):
    seen = {}
    for words in ("Ssl: on", "Protocol: ssl", "Proto: http", "Ssl: off"):
        field = f"X-Forwarded-{words}"
        seen[field] = environ_of(server, "/environ", field, names=["wsgi.url_scheme"])["wsgi.url_scheme"]
    return seen


@rule
def contradiction_of_a_proxy(server):
    answer = server.get("/environ", "X-Forwarded-Proto: https", "X-Forwarded-Ssl: off")
    return {"status": answer.status}


@rule
def stream_for_errors(server):
    server.get("/errors?mark")
    eventually("the lines are in the log", lambda: "mark four" in server.log())
    log = server.log()
    return {word: f"mark {word}" in log for word in ("one", "two", "thrée", "four")}


# --- the input ---


@rule
def input_with_length(server):
    return {"read": input_of(server, "read")}


@rule
def input_without_body(server):
    seen = ask(server, "GET /input?read&readline&lines&read=5 HTTP/1.1", "Host: test").json()
    return {"GET": seen}


@rule
def input_after_its_end(server):
    return {"read": input_of(server, "read&read&read=3&readline&lines&readlines")}


@rule
def input_by_sizes(server):
    return {
        steps: input_of(server, steps)
        for steps in ("read=0&read=3&read=100", "read=-1", "read=None", "read=4&read=4&read=4&read=4", "read=3&read")
    }


@rule
def input_by_lines(server):
    return {
        steps: input_of(server, steps)
        for steps in (
            "readline&readline&readline&readline",
            "readline=2&readline=2&readline=100&readline",
            "readline=0&readline",
            "readline=-1&readline",
            "readline=None&readline",
            "lines",
            "next&next&read",
            "readline&read",
            "next&readline&lines",
            "readlines",
            "readlines=1",
            "readlines=5&read",
            "read=1&readline&lines",
        )
    }


@rule
def input_with_other_ends_of_line(server):
    body = b"\r\none\r\n\n\nlast\r"
    return {"lines": input_of(server, "lines", body), "readline": input_of(server, "readline&readline&readline", body)}


@rule
def input_of_one_long_line(server):
    body = b"x" * 200_000 + b"\n" + b"y" * 70_000
    return {"lengths": [len(line) for line in input_of(server, "readline&readline&readline", body)]}


@rule
def input_that_comes_slowly(server):
    with Raw(server) as wire:
        wire.send("POST /input?readline&read HTTP/1.1\r\nHost: test\r\nContent-Length: 13\r\n\r\none")
        assert wire.is_silent(0.1)
        wire.send("\ntwo")
        assert wire.is_silent(0.1)
        return {"read": wire.send("\nthree").response("POST").json()}


@rule
def input_chunked(server):
    body = chunked(b"one", b"\ntwo\n", b"three")
    return {
        steps: chunked_input(server, steps, body).json()
        for steps in ("read", "lines", "readline&read", "read=2&read=4&read", "read&read&lines", "readlines")
    }


@rule
def input_chunked_with_extension_and_trailer(server):
    body = b'3;name="v";x\r\none\r\nA\r\n0123456789\r\n0\r\nX-After: yes\r\n\r\n'
    with Raw(server) as wire:
        head = "POST /input?read HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\nTrailer: X-After\r\n\r\n"
        answer = wire.send(head.encode() + body).response("POST")
        return {"read": answer.json(), "stays open": stays_open(wire)}


@rule
def input_chunked_in_single_bytes(server):
    head = "POST /input?read HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
    with Raw(server) as wire:
        for byte in head.encode() + chunked(b"one", b"two"):
            wire.send(bytes([byte]))
        return {"read": wire.response("POST").json()}


@rule
def input_chunked_and_large(server):
    body = chunked(*[b"z" * 10_000] * 40)
    return {"length": chunked_input(server, "length&read", body).json()}


@rule
def input_large(server):
    return {"length": input_of(server, "length&read", b"z" * 1_500_000)}


@rule
def input_with_a_broken_chunk(server):
    answer = chunked_input(server, "read", b"zz\r\none\r\n0\r\n\r\n")
    return {"status": answer.status, "read": answer.json() if answer.status == 200 else "nothing"}


@rule
def input_of_a_client_that_leaves(server):
    before = len(server.records("read"))
    with Raw(server) as wire:
        wire.send("POST /read-and-record HTTP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n\r\n" + "x" * 70_000)
        eventually("the app reads", lambda: len(server.records("reading")) > 0)
        wire.half_close()
        eventually("the app got an end", lambda: len(server.records("read")) > before)
        entry = server.records("read")[-1]
    return {"raised": entry["error"], "read": entry["length"]}


@rule
def input_that_the_app_does_not_read(server):
    seen = {}
    for what, size in {"small": 100, "64 KiB": 65_536}.items():
        with Raw(server) as wire:
            answer = wire.request("POST", "/unread", body=b"x" * size).response("POST")
            seen[f"{what}: status"] = answer.status
            seen[f"{what}: stays open"] = not answer.closes and stays_open(wire)
    return seen


@rule
def large_input_that_the_app_does_not_read(server):
    with Raw(server) as wire:
        wire.send("POST /unread HTTP/1.1\r\nHost: test\r\nContent-Length: 20000000\r\n\r\n")
        wire.send(b"x" * 100_000)
        return {"status": wire.response("POST").status}


# --- Expect ---


@rule
def expect_continue(server):
    with Raw(server) as wire:
        wire.send("POST /input?read HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        interim = wire.head()
        final = wire.send("one").response("POST") if interim.status == 100 else interim
        return {"interim": interim.status, "status": final.status, "read": final.json(), "again": stays_open(wire)}


@rule
def expect_continue_that_the_app_does_not_read(server):
    with Raw(server) as wire:
        wire.send("POST /unread HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        first = wire.head()
        final = wire.response("POST") if first.status == 100 else first
        return {"first": first.status, "status": final.status}


@rule
def expect_continue_with_the_body_at_once(server):
    with Raw(server) as wire:
        wire.send("POST /input?read HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\none")
        final = wire.response("POST")
        return {"status": final.status, "read": final.json()}


@rule
def expect_over_http_1_0(server):
    with Raw(server) as wire:
        wire.send("POST /input?read HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\none")
        first = wire.head()
        return {"first": first.status}


@rule
def expect_something_else(server):
    return {"status": server.get("/environ", "Expect: the-unexpected").status}


# --- connections ---


@rule
def pipelined_requests(server):
    with Raw(server) as wire:
        wire.send("GET /environ/1 HTTP/1.1\r\nHost: t\r\n\r\nGET /environ/2 HTTP/1.1\r\nHost: t\r\n\r\n")
        return {"paths": [wire.response().json()["PATH_INFO"] for _ in range(2)]}


@rule
def pipelined_after_a_body(server):
    with Raw(server) as wire:
        wire.send(
            b"POST /input?read HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\none"
            b"POST /input?read HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"
            b"POST /unread HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\nthree"
            b"GET /environ/4 HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
        )
        bodies = [wire.response("POST").json() for _ in range(4)]
        return {"bodies": [*bodies[:3], bodies[3]["PATH_INFO"]], "ends": wire.rest() == b""}


@rule
def keep_alive_of_http_1_1(server):
    with Raw(server) as wire:
        answer = wire.get("/list-of-one")
        seen = {"connection header": answer.get("connection") or "none", "stays open": stays_open(wire)}
    with Raw(server) as wire:
        answer = wire.get("/list-of-one", "Connection: close")
        return seen | {"asked to close": answer.get("connection"), "ends": wire.rest() == b""}


@rule
def connection_words_in_other_cases(server):
    seen = {}
    for value in ("Close", "CLOSE", "keep-alive, close", "close, x"):
        with Raw(server) as wire:
            seen[value] = wire.get("/unread", f"Connection: {value}").closes
    return seen


@rule
def http_1_0_closes(server):
    with Raw(server) as wire:
        answer = wire.send("GET /unread HTTP/1.0\r\n\r\n").response()
        return {**seen_of(answer, "connection"), "version": answer.version, "ends": wire.rest() == b""}


@rule
def http_1_0_with_keep_alive(server):
    with Raw(server) as wire:
        answer = wire.send("GET /unread HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").response()
        seen = {"status": answer.status, "connection": answer.get("connection"), "version": answer.version}
        return seen | {"stays open": stays_open(wire)}


@rule
def http_1_0_and_a_stream(server):
    with Raw(server) as wire:
        answer = wire.send("GET /generator HTTP/1.0\r\n\r\n").response()
        return {**seen_of(answer, "transfer-encoding", "content-length"), "ends": wire.rest() == b""}


@rule
def http_1_0_with_keep_alive_and_a_stream(server):
    with Raw(server) as wire:
        answer = wire.send("GET /generator HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").response()
        return {**seen_of(answer, "transfer-encoding", "content-length"), "ends": wire.rest() == b""}


@rule
def app_says_connection_close(server):
    with Raw(server) as wire:
        fields = json.dumps([["Connection", "close"], ["Content-Length", "7"]])
        answer = wire.get("/headers", f"X-Fields: {fields}")
        return {"header": answer.get("connection") or "none", "stays open": not answer.closes and stays_open(wire)}


@rule
def half_closed_client_gets_its_answer(server):
    with Raw(server) as wire:
        wire.send("GET /list-of-one HTTP/1.1\r\nHost: t\r\n\r\n").half_close()
        try:
            return {"body": wire.response().body.decode()}
        except Ended:
            return {"body": "none"}


# --- the answer ---


@rule
def body_of_one_piece(server):
    return fetch(server, "/list-of-one")


@rule
def body_of_two_pieces(server):
    return fetch(server, "/list-of-two")


@rule
def body_of_no_piece(server):
    return fetch(server, "/list-of-none")


@rule
def body_of_a_generator(server):
    return fetch(server, "/generator")


@rule
def body_of_a_generator_with_length(server):
    return fetch(server, "/generator-with-length")


def piece_by_piece(server, target):
    flag = server.path(f"go{target.replace('/', '-')}")
    with Raw(server) as wire:
        wire.request("GET", f"{target}?{flag}")
        head = wire.head()
        first = wire.chunk()
        flag.touch()
        rest = wire.body_of(head)
        return {"first": first.decode(), "rest": rest.body.decode()}


@rule
def pieces_are_sent_as_they_are_iterated(server):
    return piece_by_piece(server, "/as-iterated")


@rule
def pieces_are_sent_as_they_are_written(server):
    return piece_by_piece(server, "/write-at-once")


@rule
def body_beyond_its_length(server):
    return {
        f"{target}: {name}": value
        for target in ("/too-long", "/too-long-in-one")
        for name, value in fetch(server, target).items()
    }


@rule
def body_below_its_length(server):
    with Raw(server) as wire:
        head = wire.request("GET", "/too-short").head()
        seen = {"status": head.status, "body": wire.exactly(5).decode()}
        return seen | {"then": "nothing, and the client waits" if wire.is_silent(0.5) else "the end"}


@rule
def head_of_a_list(server):
    return fetch(server, "/list-of-two", method="HEAD")


@rule
def head_of_one_piece(server):
    return fetch(server, "/list-of-one", method="HEAD")


@rule
def head_of_a_body_with_length(server):
    return fetch(server, "/generator-with-length", method="HEAD")


@rule
def head_of_a_generator(server):
    return fetch(server, "/generator", method="HEAD")


@rule
def statuses_without_a_body(server):
    seen = {}
    for status in ("204%20No%20Content", "304%20Not%20Modified", "205%20Reset%20Content"):
        for body in ("", "body"):
            for name, value in fetch(server, f"/respond?{status}|{body}").items():
                seen[f"{status[:3]} {'with' if body else 'without'} body: {name}"] = value
    return seen


@rule
def statuses_without_a_body_and_a_length(server):
    seen = {}
    for status in ("204%20No%20Content", "304%20Not%20Modified"):
        for name, value in fetch(server, f"/respond-with-length?{status}|body").items():
            seen[f"{status[:3]}: {name}"] = value
    return seen


@rule
def phrases_of_the_status(server):
    seen = {}
    for status in ("200%20Fine%20By%20Me", "299%20Strange", "404%20Gone", "418%20", "599%20X", "200%20Tr%C3%A8s"):
        answer = server.get(f"/respond?{status}|x")
        seen[status] = f"{answer.status} {answer.reason}".strip()
    return seen


@rule
def statuses_of_other_kinds(server):
    return {what: server.get(f"/status-kind?{what}").status for what in ("number", "bytes", "word", "code", "long")}


@rule
def start_response_within_the_generator(server):
    return fetch(server, "/late-start", names=["x-late"])


@rule
def start_response_after_an_empty_piece(server):
    try:
        answer = server.get("/start-after-empty-chunk")
    except ValueError:
        return {"answer": "a status line without a number"}
    return {"answer": f"{answer.status} {answer.text if answer.status == 200 else ''}".strip()}


@rule
def start_response_never(server):
    return error_of(server, "/start-never")


@rule
def start_response_twice(server):
    return error_of(server, "/start-twice")


@rule
def start_response_twice_with_exc_info(server):
    return fetch(server, "/start-twice-with-exc-info", names=["x-which"])


@rule
def start_response_with_exc_info_after_the_head(server):
    answer = server.get("/exc-info-after-the-head")
    raised = eventually("the app went on", lambda: server.records("raised again") or server.records("not raised"))
    return {"status": answer.status, "complete": answer.complete, "app saw": raised[0]["what"]}


@rule
def write_before_the_iterable(server):
    return fetch(server, "/write", names=["x-by"])


@rule
def write_with_a_length(server):
    return fetch(server, "/write-with-length")


@rule
def write_and_then_an_exception(server):
    answer = server.get("/write-then-raise")
    return {"status": answer.status, "body": answer.body.decode(), "complete": answer.complete}


@rule
def pieces_that_are_no_bytes(server):
    seen = {}
    for target in ("/text-chunk", "/bytearray-chunk", "/plain-bytes", "/returns-none"):
        answer = server.get(target)
        seen[target] = f"{answer.status}, {'whole' if answer.complete else 'cut'}"
    return seen


@rule
def app_headers(server):
    fields = [["X-A", "1"], ["Set-Cookie", "a=1"], ["Set-Cookie", "b=2"], ["X-Blanks", " in and out "], ["x-A", "2"]]
    fields += [["X-Latin", "café"], ["X-Empty", ""], ["Content-Length", "7"]]
    answer = server.get("/headers", f"X-Fields: {json.dumps(fields)}")
    names = ("x-a", "set-cookie", "x-blanks", "x-latin", "x-empty")
    return {name: answer.all(name) for name in names}


@rule
def case_of_app_headers(server):
    answer = server.get("/headers", f"X-Fields: {json.dumps([['X-MiXed', '1'], ['Content-Length', '7']])}")
    return {"name": [name for name, _ in answer.fields if name.lower() == "x-mixed"][0]}


@rule
def headers_that_belong_to_the_server(server):
    seen = {}
    for name, value in (
        ("Transfer-Encoding", "gzip"),
        ("Keep-Alive", "timeout=9"),
        ("TE", "trailers"),
        ("Upgrade", "h2c"),
        ("Proxy-Authenticate", "Basic"),
        ("Trailer", "X-T"),
    ):
        answer = server.get("/headers", f"X-Fields: {json.dumps([[name, value], ['Content-Length', '7']])}")
        seen[f"{name}: status"] = answer.status
        seen[f"{name}: sent"] = ", ".join(answer.all(name.lower())) or "none"
    return seen


@rule
def date_and_server_of_the_app(server):
    fields = [["Date", "yesterday"], ["Server", "mine/1"], ["Content-Length", "7"]]
    answer = server.get("/headers", f"X-Fields: {json.dumps(fields)}")
    return {
        "dates": len(answer.all("date")),
        "date is the app's": "yesterday" in answer.all("date"),
        "server": re.sub(r"/[\d.]+$", "", ", ".join(answer.all("server"))) or "none",
    }


@rule
def date_and_server(server):
    answer = server.get("/list-of-one")
    return {"date": len(answer.all("date")), "server": ", ".join(answer.all("server")) or "none"}


@rule
def headers_that_would_break_the_answer(server):
    seen = {}
    cases = {
        "CR LF in value": ["X-A", "1\r\nX-Evil: yes"],
        "LF in value": ["X-A", "1\nX-Evil: yes"],
        "CR in value": ["X-A", "1\rX-Evil: yes"],
        "NUL in value": ["X-A", "1\0"],
        "blank in name": ["X A", "1"],
        "colon in name": ["X-A:", "1"],
        "LF in name": ["X-A\nX-Evil", "1"],
        "empty name": ["", "1"],
        "number as value": ["X-A", 1],
        "null as value": ["X-A", None],
        "beyond latin-1": ["X-A", "\u20ac"],
    }
    for what, pair in cases.items():
        answer = server.get("/headers", f"X-Fields: {json.dumps([pair])}")
        seen[what] = answer.status
        seen[f"{what}: injected"] = "x-evil" in str(answer.fields).lower()
    return seen


@rule
def headers_in_a_tuple(server):
    return {"status": server.get("/headers-in-tuple").status}


@rule
def length_that_is_no_number(server):
    seen = {}
    for value in ("seven", "-7", "7, 7", "+7", " 7"):
        seen[repr(value)] = server.get("/headers", f"X-Fields: {json.dumps([['Content-Length', value]])}").status
    return seen


# --- errors and ends ---


@rule
def exception_at_once(server):
    return error_of(server, "/raise-at-once")


@rule
def exception_with_an_unread_body(server):
    answer = error_of(server, "/raise-at-once", method="POST", body=b"x" * 1000)
    return answer


@rule
def exception_is_logged_once_with_its_traceback(server):
    def lines() -> list[str]:
        return [line for line in server.log().splitlines() if "RuntimeError: a secret of the app" in line]

    before = len(settled(lines, 0.1))
    server.get("/raise-at-once")
    eventually("it is in the log", lambda: len(lines()) > before)
    return {"lines": len(settled(lines, 0.1)) - before, "traceback": "in raise_at_once" in server.log()}


@rule
def exception_after_start_response(server):
    return error_of(server, "/raise-after-start")


@rule
def exception_before_the_first_piece(server):
    seen = error_of(server, "/raise-before-the-first-chunk?before")
    return {**seen, "close() calls": closed(server, "before")}


@rule
def exception_after_the_first_piece(server):
    answer = server.get("/raise-after-the-first-chunk?after")
    seen = {"status": answer.status, "body": answer.body.decode(), "complete": answer.complete}
    return {**seen, "close() calls": closed(server, "after")}


@rule
def exception_within_the_length(server):
    answer = server.get("/raise-with-length")
    return {"status": answer.status, "body": answer.body.decode(), "complete": answer.complete}


@rule
def exception_in_close(server):
    with Raw(server) as wire:
        answer = wire.get("/raise-in-close?bad")
        seen = {"status": answer.status, "body": answer.body.decode(), "complete": answer.complete}
        return {**seen, "close() calls": closed(server, "bad")}


@rule
def close_once(server):
    seen = {}
    for what, target, method in (
        ("GET", "/closing?get", "GET"),
        ("HEAD", "/closing?head", "HEAD"),
        ("204", "/closing-nothing?nothing", "GET"),
        ("list", "/close-attribute-of-list?list", "GET"),
    ):
        with Raw(server) as wire:
            wire.request(method, target).response(method)
        seen[what] = closed(server, target.partition("?")[2])
    return seen


@rule
def close_once_when_the_client_leaves(server):
    with Raw(server) as wire:
        wire.request("GET", "/closing-endless?left").head()
        wire.exactly(100_000)
        wire.reset()
    seen = {"reset": closed(server, "left")}
    with Raw(server) as wire:
        wire.request("GET", "/closing-endless?slow").head()
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.exactly(1000)
    return {**seen, "close": closed(server, "slow")}


# --- wsgi.file_wrapper ---


def file(server, query, *fields, method="GET"):
    return fetch(server, f"/file?{query}", *fields, method=method)


@rule
def file_whole(server):
    return file(server, "kind=file")


@rule
def file_with_length(server):
    return file(server, "kind=file&length=10")


@rule
def file_from_an_offset(server):
    return file(server, "offset=7")


@rule
def file_from_an_offset_with_length(server):
    return file(server, "offset=2&length=5")


@rule
def file_read_in_part_before(server):
    """The buffered file is at 3, the descriptor at its end."""
    return file(server, "readfirst=3")


@rule
def file_with_a_length_that_is_too_long(server):
    answer = server.get("/file?length=20")
    return {"status": answer.status, "body": answer.body.decode(), "complete": answer.complete}


@rule
def file_at_its_end(server):
    return file(server, "offset=10")


@rule
def file_by_head(server):
    return file(server, "length=10", method="HEAD")


@rule
def file_with_a_status_without_body(server):
    return file(server, "status=304%20Not%20Modified")


@rule
def file_that_is_large(server):
    with Raw(server) as wire:
        answer = wire.get("/file?times=300000")
        return {"length": len(answer.body), "right": answer.body == b"0123456789" * 300_000, "again": stays_open(wire)}


@rule
def file_in_memory(server):
    return file(server, "kind=memory&offset=4")


@rule
def file_with_only_read(server):
    seen = file(server, "kind=reader&times=3&block=7&name=reader")
    size = eventually("it is closed", lambda: [e for e in server.records("closed") if e["name"] == "reader"])[0]["size"]
    return {**seen, "block": size, "close() calls": closed(server, "reader")}


@rule
def file_is_closed_once(server):
    file(server, "kind=raw&name=raw")
    file(server, "kind=raw&name=raw-head", method="HEAD")
    return {"GET": closed(server, "raw"), "HEAD": closed(server, "raw-head")}


@rule
def file_of_text(server):
    try:
        answer = server.get("/file?kind=text")
    except Ended:
        return {"status": "cut"}
    return {"status": answer.status}


@rule
def file_wrapper_is_an_iterable(server):
    """A middleware may iterate what the app wrapped."""
    return file(server, "iterate=1&block=4")


@rule
def file_over_http_1_0(server):
    with Raw(server) as wire:
        answer = wire.send("GET /file?offset=5 HTTP/1.0\r\n\r\n").response()
        return {**seen_of(answer, "transfer-encoding"), "ends": wire.rest() == b""}


# --- requests that are no HTTP ---


@rule
def bad_requests(server):
    host, te = "Host: t\r\n", "Transfer-Encoding"
    requests = {
        "two lengths": f"POST /unread HTTP/1.1\r\n{host}Content-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        "different lengths": f"POST /unread HTTP/1.1\r\n{host}Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        "length and chunked": f"POST /unread HTTP/1.1\r\n{host}Content-Length: 1\r\n{te}: chunked\r\n\r\n0\r\n\r\n",
        "length with sign": f"POST /unread HTTP/1.1\r\n{host}Content-Length: +1\r\n\r\nx",
        "chunked over 1.0": "POST /unread HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "unknown coding": f"POST /unread HTTP/1.1\r\n{host}Transfer-Encoding: strange, chunked\r\n\r\n0\r\n\r\n",
        "two hosts": "GET /unread HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "no host": "GET /unread HTTP/1.1\r\n\r\n",
        "blank before colon": f"GET /unread HTTP/1.1\r\n{host}X : 1\r\n\r\n",
        "folded": f"GET /unread HTTP/1.1\r\n{host}X: 1\r\n 2\r\n\r\n",
        "bare LF": "GET /unread HTTP/1.1\nHost: t\n\n",
        "small method": f"get /unread HTTP/1.1\r\n{host}\r\n",
        "version 2": f"GET /unread HTTP/2.0\r\n{host}\r\n",
        "no version": f"GET /unread\r\n{host}\r\n",
        "raw UTF-8": f"GET /caf\xc3\xa9 HTTP/1.1\r\n{host}\r\n",
        "NUL in value": f"GET /unread HTTP/1.1\r\n{host}X: a\0b\r\n\r\n",
        "long line": f"GET /{'x' * 9000} HTTP/1.1\r\n{host}\r\n",
        "many headers": f"GET /unread HTTP/1.1\r\n{host}" + "X-N: 1\r\n" * 150 + "\r\n",
        "long header": f"GET /unread HTTP/1.1\r\n{host}X: {'x' * 9000}\r\n\r\n",
    }
    seen = {}
    for what, request in requests.items():
        with Raw(server) as wire:
            try:
                answer = wire.send(request).response()
                seen[what] = answer.status
            except (Ended, OSError):
                seen[what] = "cut"
    return seen


@rule
def exit_in_the_app(server):
    """The app calls sys.exit(): the server must serve on. The last rule, as the worker may be replaced after it."""
    try:
        with Raw(server) as wire:
            status = wire.get("/exit").status
    except Ended:
        status = "cut"
    eventually("it serves on", lambda: answers(server))
    return {"status": status}
