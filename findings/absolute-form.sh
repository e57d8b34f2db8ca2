#!/usr/bin/env bash
# A request line with a whole URL gives the application a whole URL as its path.
#
# Expected: "GET http://example.com/a HTTP/1.1" reaches the application with the
#   path "/a". A client may send this form to any server, and RFC 9112, 3.2.2
#   says that a server must accept it.
# Happens: gunicorn's asgi worker and daphne put "http://example.com/a" into
#   scope["path"], so each router answers 404. uvicorn gives "/a", but answers
#   400 when the URL ends after the host, which is valid too. granian is right
#   in both cases.
# Why it matters: clients that think they speak to a proxy send this form, and
#   so do some health checkers. A check that answers 200 under one server
#   answers 404 or 400 under another. A supervisor or worker should test both.
# Seen: gunicorn 27.0.1, daphne 4.2.3, uvicorn 0.54.0 with httptools 0.9.0,
#   granian 2.8.9, CPython 3.11.7, 2026-11-27.
set -eu
dir=$(mktemp -d)
pid=
trap 'if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; fi; rm -rf "$dir"' EXIT
python3 -m pip install -q --no-input --target "$dir/lib" gunicorn==27.0.1 daphne==4.2.3 uvicorn==0.54.0 httptools==0.9.0 granian==2.8.9 2>"$dir/pip.log" || { cat "$dir/pip.log"; exit 1; }
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
    body = scope["path"].encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})
E
cat > client.py <<'E'
import http.client, sys, time
port, answers = int(sys.argv[1]), []
for target in ("http://example.com/a", "http://example.com"):
    for _ in range(300):
        c = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            c.connect()
            break
        except OSError:
            time.sleep(0.1)
    c.putrequest("GET", target, skip_host=True)
    c.putheader("Host", "example.com")
    c.endheaders()
    r = c.getresponse()
    body = r.read().decode()
    answers.append(f"{r.status} {body}" if r.status == 200 else str(r.status))
    c.close()
print("; ".join(answers))
E
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
changed=0
try() {
  name=$1 expected=$2; shift 2
  p=$(port)
  python3 -m "${@//PORT/$p}" >"$name.log" 2>&1 & pid=$!
  seen=$(python3 client.py "$p")
  kill "$pid"; wait "$pid" || true; pid=
  echo "seen: $name: $seen"
  [ "$seen" = "$expected" ] || { echo "  before: $expected"; changed=1; }
}
echo "gunicorn 27.0.1, daphne 4.2.3, uvicorn 0.54.0, httptools 0.9.0, granian 2.8.9, $(python3 --version)"
echo "sent: GET http://example.com/a; GET http://example.com"
echo "guess: 200 /a; 200 /"
try gunicorn "200 http://example.com/a; 200 http://example.com" gunicorn app:asgi -k asgi -b 127.0.0.1:PORT --no-control-socket
try daphne "200 http://example.com/a; 200 http://example.com" daphne -p PORT app:asgi
try uvicorn "200 /a; 400" uvicorn app:asgi --http httptools --port PORT
try granian "200 /a; 200 /" granian --interface asgi --port PORT app:asgi
[ "$changed" = 0 ] || { echo "the behaviour has changed"; exit 1; }
echo "as described"
