"""A Flask app with sessions, uploads, streams and files, as small ones have them."""

import hashlib
import os
import time

from flask import Flask, Response, jsonify, request, send_file, session, stream_with_context

app = Flask(__name__, static_folder=None)
app.secret_key = "for tests"


@app.get("/health")
def health():
    return "ok"


@app.get("/pid")
def pid():
    return str(os.getpid())


@app.get("/block")
def block():
    time.sleep(float(request.args["seconds"]))
    return "blocked"


@app.get("/session")
def count():
    session["times"] = session.get("times", 0) + 1
    return jsonify(times=session["times"])


@app.post("/form")
def form():
    files = {name: file.read().decode() for name, file in request.files.items()}
    return jsonify(name=request.form["name"], files=files)


@app.post("/upload")
def upload():
    digest, length = hashlib.sha1(), 0
    while piece := request.stream.read(65536):
        digest.update(piece)
        length += len(piece)
    return jsonify(length=length, sha1=digest.hexdigest())


@app.get("/stream")
def stream():
    def items():
        for number in range(5):
            yield f"{request.args['name']} {number}\n"

    return Response(stream_with_context(items()), mimetype="text/plain")


@app.get("/file")
def file():
    return send_file(__file__, conditional=True)


@app.get("/address")
def address():
    return jsonify(url=request.url, root=request.script_root, client=request.remote_addr, secure=request.is_secure)


@app.errorhandler(404)
def missing(error):
    return jsonify(error="missing"), 404


@app.get("/raise")
def fail():
    raise RuntimeError("as asked")
