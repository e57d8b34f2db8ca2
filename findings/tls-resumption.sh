#!/usr/bin/env bash
# One worker of gunicorn (sync, gthread) or daphne never resumes a TLS session.
#
# Expected: a server with one process resumes the session of a client that
#   comes back, as Python's ssl module does by itself for each context.
# Happens: uvicorn resumes each time, and so does gunicorn's asgi worker.
#   gunicorn's sync and gthread workers never do, with TLS 1.3 nor with 1.2:
#   they make a context for each connection, and the key of the tickets lives in
#   the context. They send tickets all the same, and no client can use them.
#   daphne (Twisted) never does either.
# Why it matters: each new connection pays for a whole handshake with a
#   signature. To share a ticket key among workers is of no use to such a
#   worker, and a load test with few long connections does not show the price.
# Seen: gunicorn 27.0.1, daphne 4.2.3 (Twisted 26.10.0), uvicorn 0.54.0, CPython
#   3.11.7, 2026-11-27.
set -eu
dir=$(mktemp -d)
pid=
trap 'if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; fi; rm -rf "$dir"' EXIT
python3 -m pip install -q --no-input --target "$dir/lib" gunicorn==27.0.1 daphne==4.2.3 Twisted==26.10.0 uvicorn==0.54.0 trustme==1.2.1 2>"$dir/pip.log" || { cat "$dir/pip.log"; exit 1; }
export PYTHONPATH=$dir/lib:$dir
cd "$dir"
python3 -c 'import trustme
c = trustme.CA().issue_cert("localhost")
c.private_key_pem.write_to_path("key.pem")
for i, blob in enumerate(c.cert_chain_pems): blob.write_to_path("cert.pem", append=i > 0)'
cat > app.py <<'E'
async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})

def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
E
cat > client.py <<'E'
import socket, ssl, sys, time
port = int(sys.argv[1])
for _ in range(300):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
        break
    except OSError:
        time.sleep(0.1)
resumed = []
for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    session, count = None, 0
    for _ in range(6):
        with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 20), session=session) as s:
            s.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            while s.recv(4096):
                pass
            count += s.session_reused
            session = s.session
    resumed.append(count)
print(*resumed)
E
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
changed=0
# try NAME EXPECTED COMMAND...: PORT in the command is replaced.
try() {
  name=$1 expected=$2; shift 2
  p=$(port)
  python3 -m "${@//PORT/$p}" >"$name.log" 2>&1 & pid=$!
  seen=$(python3 client.py "$p")
  kill "$pid"; wait "$pid" || true; pid=
  echo "seen: $name: resumed of 5 possible with TLS 1.3 and 1.2: $seen"
  [ "$seen" = "$expected" ] || { echo "  before: $expected"; changed=1; }
}
echo "gunicorn 27.0.1, daphne 4.2.3, Twisted 26.10.0, uvicorn 0.54.0, $(python3 --version)"
echo "guess: all of them resume 5 of 5"
tls="--certfile cert.pem --keyfile key.pem --no-control-socket"
try uvicorn "5 5" uvicorn app:asgi --port PORT --ssl-certfile cert.pem --ssl-keyfile key.pem
try gunicorn-asgi "5 5" gunicorn app:asgi -k asgi -b 127.0.0.1:PORT $tls
try gunicorn-sync "0 0" gunicorn app:wsgi -b 127.0.0.1:PORT $tls
try gunicorn-gthread "0 0" gunicorn app:wsgi -k gthread -b 127.0.0.1:PORT $tls
try daphne "0 0" daphne -e ssl:PORT:interface=127.0.0.1:privateKey=key.pem:certKey=cert.pem app:asgi
[ "$changed" = 0 ] || { echo "the behaviour has changed"; exit 1; }
echo "as described"
