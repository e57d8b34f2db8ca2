"""The Flask app of the guides, with the answers of `main`."""

import os

from flask import Flask, request

app = Flask(__name__)


@app.get("/")
def root():
    return {"hello": "world"}


@app.get("/pid")
def pid():
    return str(os.getpid())


@app.get("/client")
def client():
    return {"client": request.remote_addr, "scheme": request.scheme, "host": request.host}


@app.post("/echo")
def echo():
    return {"body": request.get_data(as_text=True), "query": request.query_string.decode()}


def create_app():
    return app
