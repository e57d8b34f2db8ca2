"""The app that Gunicorn serves in the crash storm. Its routes are named as in oxicorn's reference service."""
import os

KEPT = []


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/debug/abort":
        os.abort()
    if path.startswith("/debug/allocate/"):
        KEPT.append(b"x" * (int(path.rsplit("/", 1)[1]) << 20))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"alive\n"]
