"""Promise: the access log and the logging of a Gunicorn configuration are those that its team knows.

Each test starts Gunicorn, then oxicorn with the same words, and compares.
"""

import re

import pytest

from clients import Raw
from harness import eventually
from moving import SHOP, Line, line_of

pytestmark = pytest.mark.needs_oxicorn

# --- the access log ---

FIELDS = (
    "%(h)s ~ %(l)s ~ %(u)s ~ %(r)s ~ %(m)s ~ %(U)s ~ %(q)s ~ %(H)s ~ %(s)s ~ %(b)s ~ %(B)s ~ %(f)s ~ %(a)s"
    " ~ %({x-trace}i)s ~ %({X-Trace}i)s ~ %({content-type}o)s ~ %({no-such}i)s"
    " ~ %({no-such}o)s ~ %({server_protocol}e)s ~ %({request_method}e)s ~ 100%%"
)
TIMES = "%(t)s ~ %(T)s ~ %(M)s ~ %(D)s ~ %(L)s ~ %(p)s"
TIMES_ARE = (
    r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]",
    r"\d+", r"\d+", r"\d+", r"\d+\.\d{6}", r"<\d+>",
)  # fmt: skip

REQUESTS = {
    "plain": ("GET", "/page", ()),
    "query": ("GET", "/page?x=1&y=%20z", ()),
    "empty query": ("GET", "/page?", ()),
    "HEAD": ("HEAD", "/page", ()),
    "no body": ("GET", "/none", ()),
    "missing": ("GET", "/missing", ()),
    "stream": ("GET", "/stream", ()),
    "user": ("GET", "/page", ("Authorization: Basic YW5uOnNlY3JldA==",)),
    "user of another scheme": ("GET", "/page", ("Authorization: Bearer YW5uOnNlY3JldA==",)),
    "broken user": ("GET", "/page", ("Authorization: Basic ???",)),
    "referer and agent": ("GET", "/page", ("Referer: http://a.example/b?c", "User-Agent: curl/8.1 (x; y)")),
    "quotes": ("GET", "/page", ('User-Agent: a "quoted" \\ agent', 'Referer: "')),
    "tab": ("GET", "/page", ("User-Agent: a\tb",)),
    "latin-1": ("GET", "/page", ("User-Agent: caf\xe9",)),
    "percent": ("GET", "/caf%C3%A9%20x%22y", ()),
    "percent s": ("GET", "/page?%(h)s", ("User-Agent: %(a)s %s",)),
    "header": ("GET", "/page", ("X-Trace: 17",)),
    "empty header": ("GET", "/page", ("X-Trace:",)),
    "exception": ("GET", "/raise", ()),
    "proxy": ("GET", "/page", ("X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https")),
}

# docs/reference/access-log.md says why.
DIFFERING = {
    ("quotes", "%(a)s"): (r"a \"quoted\" \ agent", r"a \"quoted\" \\ agent"),
    ("tab", "%(a)s"): ("a\tb", r"a\x09b"),
    ("latin-1", "%(a)s"): ("caf\xe9", r"caf\xe9"),
    ("percent", "%(U)s"): ('/caf\xc3\xa9 x\\"y', "/caf%C3%A9%20x%22y"),
    ("exception", "%(U)s"): ("None", "/raise"),
    ("exception", "%(b)s"): ("0", "21"),
    ("exception", "%(B)s"): ("0", "21"),
    ("exception", "%({content-type}o)s"): ("-", "text/plain; charset=utf-8"),
    ("proxy", "%(h)s"): ("127.0.0.1", "203.0.113.9"),
}


def access_lines(server) -> dict[str, str]:
    """Sends each request and returns the line that it brought."""
    lines = {}
    for what, (method, target, fields) in REQUESTS.items():
        before = len(server.text_of("access.log").splitlines())
        with Raw(server) as wire:
            wire.request(method, target, *fields, "Connection: close").response(method)
        probe = lambda before=before: server.text_of("access.log").splitlines()[before:]
        found = eventually(f"{server.program} writes a line for {what}", probe)
        assert len(found) == 1, found
        lines[what] = found[0]
    with Raw(server) as wire:
        before = len(server.text_of("access.log").splitlines())
        wire.send("GET /page HTTP/1.0\r\n\r\n").response()
    lines["HTTP/1.0"] = eventually("a line", lambda: server.text_of("access.log").splitlines()[before:])[0]
    with Raw(server) as wire:
        before = len(server.text_of("access.log").splitlines())
        wire.request("POST", "/echo", "Connection: close", body=b"12345").response("POST")
    lines["POST"] = eventually("a line", lambda: server.text_of("access.log").splitlines()[before:])[0]
    return lines


def test_each_field_of_the_access_log_is_gunicorns(both):
    words = "--threads 2 -b 127.0.0.1:{port} --access-logfile access.log"
    words += f" --access-logformat '{FIELDS} ~ {TIMES}' shop:app"
    line = Line("", "gunicorn", words, SHOP)
    theirs, ours = (access_lines(server) for server in both(line))
    names = FIELDS.split(" ~ ")
    differing = {}
    for what in theirs:
        their, our = theirs[what].split(" ~ "), ours[what].split(" ~ ")
        assert len(their) == len(our) == len(names) + len(TIMES_ARE), (theirs[what], ours[what])
        for name, one, other in zip(names, their, our, strict=False):
            if one != other:
                differing[what, name] = (one, other)
        for form, one, other in zip(TIMES_ARE, their[len(names) :], our[len(names) :], strict=True):
            assert re.fullmatch(form, one) and re.fullmatch(form, other), (one, other)
    assert differing == DIFFERING


def test_the_default_form_of_the_access_log_is_gunicorns(both):
    line = Line("", "gunicorn", "-w 1 -b 127.0.0.1:{port} --access-logfile - shop:app", SHOP)
    lines = []
    for server in both(line):
        server.get("/page?mark", "User-Agent: agent", "Referer: http://a.example/")
        probe = lambda server=server: [text for text in server.text_of("stdout.log").splitlines() if "?mark" in text]
        lines.append(re.sub(r"\[.*?\]", "[time]", eventually("a line", probe)[0]))
    assert lines[0] == lines[1] == '127.0.0.1 - - [time] "GET /page?mark HTTP/1.1" 200 4 "http://a.example/" "agent"'


def test_the_access_log_of_a_configuration_is_gunicorns(both):
    line = line_of("formula")
    lines = []
    for server in both(line):
        server.get("/page?mark", "User-Agent: agent", "X-Request-Id: 7")
        probe = lambda server=server: [text for text in server.text_of("access.log").splitlines() if "?mark" in text]
        lines.append(eventually("a line", probe))
        assert server.text_of("error.log"), "the log of errors is in the file, too"
    assert lines[0] == lines[1] == ['127.0.0.1 "GET /page?mark HTTP/1.1" 200 4 "agent" 7']


# --- the logging of the app ---


def test_a_dictionary_of_logging_is_the_apps(both):
    line = line_of("logging")
    for server in both(line):
        server.get("/log?hello")
        wanted = "WARNING shop the shop says hello"
        eventually("the app's line", lambda server=server, wanted=wanted: wanted in server.text_of("app.log"))
        assert server.text_of("app.log").count(wanted) == 1
