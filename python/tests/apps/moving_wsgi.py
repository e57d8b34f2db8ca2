"""A WSGI app that says what it sees of its process and of its request. It is copied into the folder of a server."""

import json
import os
import sys
import time

from toolkit import record

record("imported")


def create_app(colour="none"):
    def app(environ, start_response):
        path = environ["PATH_INFO"]
        status, data, fields = "200 OK", b"page", [("Content-Type", "text/plain")]
        if path == "/pid":
            time.sleep(0.03)
            data = str(os.getpid()).encode()
        elif path == "/facts":
            data = json.dumps(facts(environ, colour)).encode()
        elif path == "/echo":
            data = environ["wsgi.input"].read()
        elif path == "/none":
            start_response("204 No Content", [])
            return []
        elif path == "/missing":
            status = "404 Not Found"
        elif path == "/raise":
            raise RuntimeError("as asked")
        elif path == "/stream":
            start_response("200 OK", [*fields, ("X-Multi", "1"), ("X-Multi", "2")])
            return iter([b"one ", b"two ", b"three"])
        elif path == "/sleep":
            time.sleep(float(environ["QUERY_STRING"]))
        start_response(status, [*fields, ("Content-Length", str(len(data)))])
        return [data]

    return app


def facts(environ, colour):
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "colour": colour,
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "scheme": environ["wsgi.url_scheme"],
        "client": environ.get("REMOTE_ADDR"),
        "path": environ["PATH_INFO"],
        "root_path": environ["SCRIPT_NAME"],
        "multiprocess": environ["wsgi.multiprocess"],
        "modules": sorted(name for name in sys.modules if name.startswith("mine_")),
        "umask": umask(),
    }


def umask():
    with open("/proc/self/status") as status:
        return next(line.split()[1] for line in status if line.startswith("Umask"))


application = app = create_app()
