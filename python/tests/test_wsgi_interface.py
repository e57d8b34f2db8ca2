"""Promise: oxicorn tells ASGI from WSGI by the app itself, and says what is neither."""

from __future__ import annotations

import json

import httpx
import pytest

from harness import Server

pytestmark = pytest.mark.needs_oxicorn

WSGI, ASGI = "WSGI", "ASGI"


@pytest.mark.parametrize("code, found", [
    ("def app(environ, start_response): ...", WSGI),
    ("async def app(scope, receive, send): ...", ASGI),
    ("def app(scope, receive, send): ...", ASGI),
    ("class App:\n    def __call__(self, environ, start_response): ...\napp = App()", WSGI),
    ("class App:\n    async def __call__(self, scope, receive, send): ...\napp = App()", ASGI),
    ("class app:\n    def __init__(self, environ, start_response): ...", WSGI),
    ("def app(environ, start_response, extra=None): ...", WSGI),
    ("def app(env, start): ...", WSGI),
    ("import functools\ndef wrapped(environ, start_response): ...\n"
     "@functools.wraps(wrapped)\ndef app(*args, **more): ...", WSGI),
    ("import functools\nasync def wrapped(scope, receive, send): ...\n"
     "@functools.wraps(wrapped)\ndef app(*args, **more): ...", ASGI),
    ("import functools\ndef make(kind, environ, start_response): ...\napp = functools.partial(make, 1)", WSGI),
    ("async def app(*args): ...", ASGI),
    ("class Middleware:\n    def __init__(self, app): self.app = app\n    def __call__(self, *args): ...\n"
     "def inner(environ, start_response): ...\napp = Middleware(Middleware(inner))", WSGI),
    ("class Middleware:\n    def __init__(self, app): self.app = app\n    def __call__(self, *args): ...\n"
     "async def inner(scope, receive, send): ...\napp = Middleware(Middleware(inner))", ASGI),
    ("from a2wsgi import WSGIMiddleware\nfrom flask import Flask\napp = WSGIMiddleware(Flask('x'))", ASGI),
    ("from a2wsgi import ASGIMiddleware\n"
     "async def inner(scope, receive, send): ...\napp = ASGIMiddleware(inner)", WSGI),
    ("from flask import Flask\nfrom werkzeug.middleware.proxy_fix import ProxyFix\n"
     "app = Flask('x')\napp.wsgi_app = ProxyFix(app.wsgi_app)", WSGI),
    ("from flask import Flask\nfrom werkzeug.middleware.proxy_fix import ProxyFix\napp = ProxyFix(Flask('x'))", WSGI),
])  # fmt: skip
def test_check_tells_the_interface(code, found):
    server = Server("main:app", files={"main.py": code})
    server.write_settings()
    try:
        done = server.ctl("check", "main:app")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].endswith(f", {found})"), done.stdout
    finally:
        server.close()


@pytest.mark.parametrize("interface, code, said", [
    ("asgi", "def app(environ, start_response): ...", 'main:app is a WSGI app, and python.interface is "asgi"'),
    ("wsgi", "async def app(scope, receive, send): ...", 'main:app is an ASGI app, and python.interface is "wsgi"'),
    ("auto", "def app(one): ...", "main:app takes neither the arguments of an ASGI 3 app"),
    ("auto", "def app(): ...", "if it is a factory, write main:app()"),
])  # fmt: skip
def test_what_is_no_such_app_is_told(interface, code, said):
    server = Server("main:app", files={"main.py": code}, settings={"python.interface": interface})
    server.write_settings()
    try:
        done = server.ctl("check", "main:app", "--json")
        assert done.returncode != 0
        assert said in json.loads(done.stdout)["app"]["reason"]
    finally:
        server.close()


def test_an_app_that_takes_anything_is_what_the_settings_say(launch):
    code = "def app(*args):\n    args[1]('200 OK', [])\n    return [args[0]['PATH_INFO'].encode()]\n"
    server = launch("main:app", files={"main.py": code}, settings={"python.interface": "wsgi"})
    assert httpx.get(f"{server.url}/some/path").text == "/some/path"


def test_asyncio_at_the_import_of_a_wsgi_app(launch):
    """The loop that the import finds works later too, as in a thread of Flask under Gunicorn."""
    code = (
        "import asyncio\nloop = asyncio.get_event_loop_policy().get_event_loop()\n"
        "async def work():\n    await asyncio.sleep(0.01)\n    return b'worked'\n"
        "import threading\nlock = threading.Lock()\n"
        "def app(environ, start_response):\n    start_response('200 OK', [])\n"
        "    with lock:\n        return [loop.run_until_complete(work()) + asyncio.run(work())]\n"
    )
    server = launch("main:app", files={"main.py": code}, settings={"python.threads": 2})
    for _ in range(3):
        assert httpx.get(server.url).text == "workedworked"
