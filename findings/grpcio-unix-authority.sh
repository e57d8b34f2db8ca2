#!/usr/bin/env bash
# Over a Unix socket grpcio gives the socket's path as the host, and a server
# built on the h2 crate refuses each of its calls.
#
# Expected: a Unix socket has no host name, so the :authority is "localhost", and
#   each gRPC server that listens on the socket answers.
# Happens: the :authority is the path with "/" as "%2F": "tmp%2Fa%2Fsocket". The
#   grammar of RFC 3986, 3.2.2, allows such a name, but Rust's http crate does
#   not, so the h2 crate resets the stream with PROTOCOL_ERROR. The application
#   is not called, and grpcio says INTERNAL. Shown with granian.
# Why it matters: the calls work over TCP and with another server, and each of
#   them fails over the Unix socket of this one; nothing is logged. A server that
#   accepts the name shows the path to the application as the host. The option
#   grpc.default_authority=localhost of the channel helps in both cases, so docs
#   that offer a Unix socket for gRPC should name it.
# Seen: grpcio 1.85.3, granian 2.8.9, the Python package h2 4.4.1, CPython 3.11.7,
#   2026-11-27.
set -eu
dir=$(mktemp -d)
pid=
trap 'if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; fi; rm -rf "$dir"' EXIT
python3 -m pip install -q --no-input --target "$dir/lib" grpcio==1.85.3 granian==2.8.9 h2==4.4.1 2>"$dir/pip.log" || { cat "$dir/pip.log"; exit 1; }
export PYTHONPATH=$dir/lib:$dir
cd "$dir"
cat > app.py <<'E'
async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/grpc"), (b"grpc-status", b"12")]})
    await send({"type": "http.response.body", "body": b""})
E
cat > try.py <<'E'
import os, platform, socket, sys, threading, time
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived
import grpc

authorities = []

def stand_in(listener):
    """Notes each :authority and answers as the application does: 12 is UNIMPLEMENTED."""
    while True:
        connection, _ = listener.accept()
        h2 = H2Connection(H2Configuration(client_side=False))
        h2.initiate_connection()
        connection.sendall(h2.data_to_send())
        while data := connection.recv(65536):
            for event in h2.receive_data(data):
                if isinstance(event, RequestReceived):
                    authorities.append(dict(event.headers)[b":authority"].decode())
                    h2.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "12")], end_stream=True)
            connection.sendall(h2.data_to_send())

def call(path, options):
    with grpc.insecure_channel(f"unix:{path}", options=options) as channel:
        try:
            channel.unary_unary("/a/b")(b"", timeout=10)
        except grpc.RpcError as e:
            return f"{e.code().name} {e.details()}".strip()

folder, granian = sys.argv[1:]
listener = socket.socket(socket.AF_UNIX)
listener.bind(f"{folder}/stand-in")
listener.listen()
threading.Thread(target=stand_in, args=[listener], daemon=True).start()
while not os.path.exists(granian):
    time.sleep(0.1)
print("grpcio 1.85.3, granian 2.8.9, h2 4.4.1, CPython", platform.python_version())
print("guess: UNIMPLEMENTED, as the application says, with :authority localhost")
seen = []
for options in ([], [("grpc.default_authority", "localhost")]):
    answers = [call(f"{folder}/stand-in", options), call(granian, options)]
    seen.append((authorities[-1].replace(folder[1:].replace("/", "%2F"), "FOLDER"), *answers))
    print(f"seen: options {options}: :authority {seen[-1][0]}; stand-in: {answers[0]}; granian: {answers[1]}")
reset = "INTERNAL Stream removed (RST_STREAM (Received RST_STREAM with error code 1))"
same = seen == [("FOLDER%2Fstand-in", "UNIMPLEMENTED", reset), ("localhost", "UNIMPLEMENTED", "UNIMPLEMENTED")]
sys.exit(None if same else "the behaviour has changed")
E
python3 -m granian --interface asgi --http 2 --uds "$dir/granian" app:asgi >granian.log 2>&1 & pid=$!
timeout 60 python3 try.py "$dir" "$dir/granian"
echo "as described"
