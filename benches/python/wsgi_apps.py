"""The WSGI apps that the Python benchmark serves: `bare`, without a framework, and `flask`, with one route."""

from flask import Flask

HELLO = b"Hello, world!"
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", "13")]

flask = Flask(__name__)


def bare(environ, start_response):
    start_response("200 OK", HEADERS)
    return [HELLO]


@flask.get("/")
def hello():
    return "Hello, world!"
