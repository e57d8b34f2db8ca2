"""Promise: Flask, Django, Bottle and Pyramid work as they are: sessions, forms, uploads in constant memory, static
files, the admin; no request is lost through reloads, and a request that blocks holds only its thread.

With SERVER=gunicorn the same tests run under Gunicorn, to prove that they say what the frameworks need.
"""

import hashlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clients import Ended, Http2, Raw
from harness import PATIENCE, eventually, is_alive
from peers import Run, app_file, settled

pytestmark = pytest.mark.needs_oxicorn

PROGRAM = os.environ.get("SERVER", "oxicorn")
only_oxicorn = pytest.mark.skipif(PROGRAM != "oxicorn", reason="a promise that Gunicorn does not make")

UPLOAD = 100 * 1024 * 1024
PIECE = hashlib.sha1(b"seed").digest() * 52_429
"""About a mebibyte."""


@pytest.fixture(scope="module")
def begin():
    """Starts servers that end with the file of tests; tests share those that they do not change."""
    mine: dict[str, Run] = {}

    def server(name, words, files, *, environment=None, before=None, own=None) -> Run:
        if name not in mine:
            fresh = mine[name] = Run(PROGRAM, words, files=files, environment=environment, own=own)
            if before:
                before(fresh)
            fresh.serving()
        return mine[name]

    yield server
    for one in mine.values():
        one.close()


THREADS = "--threads 8 -w 1 --keep-alive 30 --timeout 60 -b 127.0.0.1:{port}"


@pytest.fixture
def flask(begin):
    return begin("flask", f"flask_app:app {THREADS}", {"flask_app.py": app_file("flask_app.py")})


def make_site(server) -> None:
    done = subprocess.run(
        [sys.executable, "django_site.py"],
        cwd=server.dir,
        env={name: value for name, value in server.environment.items() if not name.startswith("OXICORN_")},
        capture_output=True,
        text=True,
        timeout=PATIENCE + 20,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def site(begin):
    files = {"django_site.py": app_file("django_site.py")}
    # Workers must not write the files of Python beside the app: the folder is the home of the project.
    return begin("django", f"django_site -k gthread {THREADS}", files, before=make_site)


@pytest.fixture
def bottle(begin):
    return begin("bottle", f"bottle_app:app {THREADS}", {"bottle_app.py": app_file("bottle_app.py")})


@pytest.fixture
def pyramid(begin):
    return begin("pyramid", f"'pyramid_app:main()' {THREADS}", {"pyramid_app.py": app_file("pyramid_app.py")})


class Browser:
    """A client that keeps cookies, over one connection."""

    def __init__(self, server) -> None:
        self.server = server
        self.wire = Raw(server)
        self.cookies: dict[str, str] = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wire.close()

    def ask(self, method, target, *fields, body=b""):
        if self.cookies:
            fields = (*fields, "Cookie: " + "; ".join(f"{name}={value}" for name, value in self.cookies.items()))
        answer = self.wire.request(method, target, *fields, body=body).response(method)
        for line in answer.all("set-cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value
        if answer.closes:
            self.wire.close()
            self.wire = Raw(self.server)
        return answer

    def get(self, target, *fields):
        return self.ask("GET", target, *fields)

    def post(self, target, fields: dict[str, str], *headers):
        from urllib.parse import urlencode

        body = urlencode(fields).encode()
        return self.ask("POST", target, "Content-Type: application/x-www-form-urlencoded", *headers, body=body)


def multipart(parts: dict[str, str | tuple[str, bytes]]) -> tuple[str, bytes]:
    """Returns the header and the body of a form with files."""
    body = b""
    for name, value in parts.items():
        name_of_file, data = value if isinstance(value, tuple) else (None, value.encode())
        body += f'--edge\r\nContent-Disposition: form-data; name="{name}"'.encode()
        body += f'; filename="{name_of_file}"\r\n\r\n'.encode() if name_of_file else b"\r\n\r\n"
        body += data + b"\r\n"
    return "Content-Type: multipart/form-data; boundary=edge", body + b"--edge--\r\n"


def send_form(server, target):
    header, body = multipart({"name": "Zo\u00eb", "file": ("a.txt", b"of the file")})
    with Raw(server) as wire:
        return wire.request("POST", target, header, body=body).response("POST").json()


# --- the frameworks ---


def test_flask_sessions_and_forms(flask):
    with Browser(flask) as browser:
        assert [browser.get("/session").json()["times"] for _ in range(3)] == [1, 2, 3]
    assert send_form(flask, "/form") == {"name": "Zo\u00eb", "files": {"file": "of the file"}}


def test_flask_streams_files_and_errors(flask):
    assert flask.get("/stream?name=a%20b").text == "".join(f"a b {number}\n" for number in range(5))
    whole = flask.get("/file")
    source = app_file("flask_app.py").encode()
    assert whole.body == source and whole.get("content-length") == str(len(source))
    part = flask.get("/file", "Range: bytes=5-14")
    assert (part.status, part.body) == (206, source[5:15])
    assert flask.get("/file", f"If-None-Match: {whole.get('etag')}").status == 304
    assert (flask.get("/nowhere").status, flask.get("/nowhere").json()) == (404, {"error": "missing"})
    assert flask.get("/raise").status == 500
    assert flask.get("/address").json() == {
        "url": "http://test/address",
        "root": "",
        "client": "127.0.0.1",
        "secure": False,
    }


def test_bottle(bottle):
    answer = bottle.get("/hello/ann?q=%C3%A9")
    assert answer.json() == {"name": "ann", "query": "\u00e9"} and answer.get("set-cookie").startswith("seen=ann")
    assert send_form(bottle, "/form") == {"name": "Zo\u00eb", "file": "of the file"}
    with Raw(bottle) as wire:
        answer = wire.request("POST", "/json", "Content-Type: application/json", body=b'{"a": [1]}').response()
        assert answer.json() == {"a": [1]}
    assert bottle.get("/file").body == app_file("bottle_app.py").encode()
    assert bottle.get("/file", "Range: bytes=0-3").body == app_file("bottle_app.py").encode()[:4]
    assert bottle.get("/items").text == "one two"
    assert bottle.get("/nowhere").status == 404


def test_pyramid(pyramid):
    assert pyramid.get("/hello/ann?q=x").json() == {"name": "ann", "query": "x", "url": "http://test/hello/ann?q=x"}
    assert send_form(pyramid, "/form") == {"name": "Zo\u00eb", "file": "of the file"}
    assert pyramid.get("/file").body == app_file("pyramid_app.py").encode()
    assert pyramid.get("/items").text == "one two"
    assert (pyramid.get("/away").status, pyramid.get("/away").get("location")) == (302, "http://test/hello/there")
    with Raw(pyramid) as wire:
        assert wire.request("HEAD", "/hello/ann").response("HEAD").status == 200


def test_django_sessions_streams_and_addresses(site):
    with Browser(site) as browser:
        assert [browser.get("/session").json()["times"] for _ in range(3)] == [1, 2, 3]
    assert site.get("/stream").text == "0\n1\n2\n3\n4\n"
    assert site.get("/download").body == app_file("django_site.py").encode()
    assert site.get("/address/caf%C3%A9%2Fx?y").json() == {
        "url": "http://test/address/caf%C3%A9/x?y",
        "secure": False,
        "path": "/address/caf\u00e9/x",
    }


def test_djangos_static_files_by_whitenoise(site):
    css = site.path("static/admin/css/base.css").read_bytes()
    whole = site.get("/static/admin/css/base.css")
    assert (whole.status, whole.body) == (200, css)
    assert whole.get("content-type").startswith("text/css") and whole.get("content-length") == str(len(css))
    assert site.get("/static/admin/css/base.css", f"If-Modified-Since: {whole.get('last-modified')}").status == 304
    part = site.get("/static/admin/css/base.css", "Range: bytes=10-19")
    assert (part.status, part.body) == (206, css[10:20])
    with Raw(site) as wire:
        head = wire.request("HEAD", "/static/admin/css/base.css").response("HEAD")
        assert (head.status, head.get("content-length")) == (200, str(len(css)))
        # The connection has nothing of a body.
        assert wire.get("/pid").status == 200
    assert site.get("/static/admin/nothing.css").status == 404


def test_djangos_admin_lets_a_user_in(site):
    with Browser(site) as browser:
        page = browser.get("/admin/")
        assert (page.status, page.get("location")) == (302, "/admin/login/?next=/admin/")
        page = browser.get("/admin/login/?next=/admin/")
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text).group(1)
        form = {"username": "ann", "password": "a password", "next": "/admin/", "csrfmiddlewaretoken": token}
        refused = Browser(site).post("/admin/login/", form)
        assert refused.status == 403, "without the cookie of CSRF"
        wrong = browser.post("/admin/login/?next=/admin/", {**form, "password": "wrong"})
        assert wrong.status == 200 and "errornote" in wrong.text
        right = browser.post("/admin/login/?next=/admin/", form)
        assert (right.status, right.get("location")) == (302, "/admin/")
        assert "ann" in browser.get("/admin/").text
        users = browser.get("/admin/auth/user/")
        assert users.status == 200 and "ann" in users.text
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', users.text).group(1)
        assert browser.post("/admin/logout/", {"csrfmiddlewaretoken": token}).status == 200
        assert browser.get("/admin/").status == 302


@only_oxicorn
def test_flask_over_http_2(flask):
    with Http2(flask) as wire:
        assert wire.get("/stream?name=a").text == "".join(f"a {number}\n" for number in range(5))
        streams = [wire.start("POST", "/upload", [("content-length", "70000")], end=False) for _ in range(3)]
        for stream in streams:
            for at in range(0, 70_000, 10_000):
                wire.data(stream, b"x" * 10_000, end=at == 60_000)
        assert [wire.response(stream).json()["length"] for stream in streams] == [70_000] * 3
        assert wire.get("/nowhere").status == 404


# --- uploads ---


def peak(pid) -> int:
    """Returns the largest resident size that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) * 1024


def forget_peak(pid) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def send_upload(wire, before=b"", after=b"") -> str:
    """Sends the bytes of an upload, and returns their digest."""
    digest = hashlib.sha1()
    wire.send(before)
    left = UPLOAD
    while left:
        piece = PIECE[:left]
        digest.update(piece)
        wire.send(piece)
        left -= len(piece)
    wire.send(after)
    return digest.hexdigest()


def growth(server, upload) -> int:
    """Uploads, and returns by how much the worker had grown at most. The master must not grow at all."""
    worker = int(server.get("/pid").body)
    forget_peak(worker)
    before = peak(worker)
    upload()
    return peak(worker) - before


def test_flask_reads_100_mb_in_constant_memory(flask):
    def upload():
        with Raw(flask) as wire:
            wire.send(f"POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: {UPLOAD}\r\n\r\n")
            digest = send_upload(wire)
            assert wire.response("POST").json() == {"length": UPLOAD, "sha1": digest}

    assert growth(flask, upload) < 16 * 1024 * 1024


def test_django_stores_100_mb_in_constant_memory(site):
    header, form = multipart({"note": "large", "file": ("large.bin", b"FILE")})
    before, after = form.split(b"FILE")

    def upload():
        with Raw(site) as wire:
            length = len(before) + UPLOAD + len(after)
            wire.send(f"POST /upload HTTP/1.1\r\nHost: test\r\n{header}\r\nContent-Length: {length}\r\n\r\n")
            digest = send_upload(wire, before, after)
            assert wire.response("POST").json() == {"length": UPLOAD, "sha1": digest, "note": "large"}

    assert growth(site, upload) < 24 * 1024 * 1024


# --- reloads ---


def test_no_request_is_lost_through_ten_reloads(begin):
    server = begin("reloads", "flask_app:app --threads 4 -w 1 --keep-alive 30 -b 127.0.0.1:{port}", {
        "flask_app.py": app_file("flask_app.py"),
    })  # fmt: skip
    over = threading.Event()
    counts: dict[str, int] = {}
    lost: list[str] = []
    lock = threading.Lock()

    def client(keep: bool) -> None:
        """Asks on and on; with `keep` over one connection, until an answer says that it ends."""
        wire = None
        while not over.is_set():
            try:
                wire = wire or Raw(server)
                answer = wire.get("/pid", *([] if keep else ["Connection: close"]))
                assert answer.status == 200 and answer.complete, answer
                with lock:
                    counts[answer.text] = counts.get(answer.text, 0) + 1
                if answer.closes or not keep:
                    wire.close()
                    wire = None
            except (OSError, Ended, AssertionError, ValueError) as error:
                lost.append(f"keep={keep}: {error!r}")
                wire = None
            time.sleep(0.002)

    clients = [threading.Thread(target=client, args=(keep,)) for keep in (True, True, False, False)]
    for thread in clients:
        thread.start()
    try:
        eventually("the first worker answers", lambda: counts)
        for number in range(10):
            before = set(counts)
            os.kill(server.pid, signal.SIGHUP)
            eventually(f"reload {number + 1} is done", lambda before=before: set(counts) - before)
    finally:
        over.set()
        for thread in clients:
            thread.join()
    assert lost == []
    assert len(counts) >= 11 and sum(counts.values()) > 500


# --- threads ---


def test_blocked_threads_leave_the_health_check_quick(flask):
    """Seven of eight threads block. The median is the server's; a few may fall to a busy machine."""
    with ThreadPoolExecutor(7) as pool:
        blocked = [pool.submit(flask.get, "/block?seconds=2") for _ in range(7)]
        time.sleep(0.3)
        times = []
        while not any(future.done() for future in blocked) and len(times) < 60:
            began = time.perf_counter()
            assert flask.get("/health").text == "ok"
            times.append(time.perf_counter() - began)
        assert [future.result().text for future in blocked] == ["blocked"] * 7
    assert len(times) > 20
    ranked = sorted(times)
    assert statistics.median(ranked) < 0.02 and ranked[int(len(ranked) * 0.95)] < 0.05, ranked[-5:]


def test_as_many_requests_block_at_once_as_there_are_threads(flask):
    began = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: flask.get("/block?seconds=0.5").text, range(16)))
    took = time.monotonic() - began
    assert answers == ["blocked"] * 16
    assert 0.95 < took < 2.5, "sixteen by eight threads: two rounds, and those that wait are served then"


@only_oxicorn
def test_slow_clients_hold_no_thread(begin):
    files = {"flask_app.py": app_file("flask_app.py")}
    server = begin("slow", "flask_app:app --threads 2 -w 1 -b 127.0.0.1:{port}", files)
    wires = [Raw(server) for _ in range(12)]
    for wire in wires:
        wire.send("POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: 2000\r\n\r\n" + "x" * 1000)
    began = time.monotonic()
    assert server.get("/health").text == "ok"
    assert time.monotonic() - began < 1
    for wire in wires:
        assert wire.send("y" * 1000).response("POST").json()["length"] == 2000
        wire.close()


@only_oxicorn
def test_a_full_pool_queues_and_beyond_the_limit_answers_503(begin):
    server = begin(
        "full",
        "flask_app:app --threads 1 -w 1 -b 127.0.0.1:{port}",
        {"flask_app.py": app_file("flask_app.py")},
        own={"OXICORN_HTTP__LIMIT_CONCURRENCY": "4"},
    )
    with ThreadPoolExecutor(12) as pool:
        statuses = list(pool.map(lambda _: server.get("/block?seconds=0.3").status, range(12)))
    assert statuses.count(200) >= 4 and set(statuses) == {200, 503}, statuses


def test_a_request_that_hangs_costs_its_worker_and_not_the_service(begin):
    server = begin("hang", "flask_app:app --threads 1 -w 1 --timeout 2 -b 127.0.0.1:{port}", {
        "flask_app.py": app_file("flask_app.py"),
    })  # fmt: skip
    first = int(server.get("/pid").body)
    with Raw(server) as wire:
        wire.request("GET", "/block?seconds=60")
        eventually("the worker is replaced", lambda: not is_alive(first), 15)
        # Gunicorn answers 500, as its worker gets an exception; a cut connection says the same.
        try:
            assert wire.response().status >= 500
        except Ended:
            pass
    assert int(server.get("/pid").body) != first


@only_oxicorn
def test_one_late_request_among_threads_is_told_and_the_others_are_served(begin):
    server = begin("late", "flask_app:app --threads 4 -w 1 --timeout 1 -b 127.0.0.1:{port}", {
        "flask_app.py": app_file("flask_app.py"),
    })  # fmt: skip
    first = int(server.get("/pid").body)
    with Raw(server) as wire:
        wire.request("GET", "/block?seconds=4")
        lines = lambda: [
            line for line in server.log().splitlines() if "/block" in line and json.loads(line).get("level") != "INFO"
        ]
        eventually("the log tells of the late request", lines)
        assert int(server.get("/pid").body) == first
        assert wire.response().text == "blocked"
    assert len(settled(lines, 0.2)) == 1, "told once"
    assert int(server.get("/pid").body) == first


# --- ASGI or WSGI ---

KINDS = '''
import functools

class Class:
    """The form of PEP 3333 where the app is a class, and its instances are the answers."""
    def __init__(self, environ, start_response):
        self.start = start_response
    def __iter__(self):
        self.start("200 OK", [("Content-Type", "text/plain")])
        yield b"WSGI class"

class Callable:
    def __call__(self, environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"WSGI instance"]

instance = Callable()

def with_word(word, environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [word]

partial = functools.partial(with_word, b"WSGI partial")

def wrap(app):
    @functools.wraps(app)
    def wrapper(*args, **kwargs):
        return app(*args, **kwargs)
    return wrapper

wrapped = wrap(instance.__call__)

class Asynchronous:
    async def __call__(self, scope, receive, send):
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ASGI instance"})

asynchronous = Asynchronous()
'''


@only_oxicorn
@pytest.mark.parametrize("name, says", [
    ("Class", "WSGI class"),
    ("instance", "WSGI instance"),
    ("partial", "WSGI partial"),
    ("wrapped", "WSGI instance"),
    ("asynchronous", "ASGI instance"),
])  # fmt: skip
def test_the_interface_is_seen_of_the_app(name, says, begin):
    server = begin(name, f"kinds:{name} -w 1 -b 127.0.0.1:{{port}}", {"kinds.py": KINDS})
    assert server.get("/").text == says
