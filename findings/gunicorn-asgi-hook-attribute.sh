#!/usr/bin/env bash
# A pre_request hook of Gunicorn that keeps a value on the request makes each
# answer of the asgi worker a 500.
#
# Expected: `req.begun = time.monotonic()` in pre_request, read again in
#   post_request, works with every worker class, as it does with sync.
# Happens: the asgi worker gives the hooks a request object that takes no new
#   attributes (`__slots__`). The hook raises AttributeError, and the client gets a
#   500 that the app never saw.
# Why it matters: this is how configuration files measure requests. A service that
#   moves from -k sync to -k asgi answers nothing any more.
# Seen: gunicorn 27.0.1, CPython 3.11.7, 2026-11-28.
set -eu
dir=$(mktemp -d)
pid=
trap 'if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; fi; rm -rf "$dir"' EXIT
python3 -m pip install -q --no-input --target "$dir/lib" gunicorn==27.0.1 2>"$dir/pip.log" || { cat "$dir/pip.log"; exit 1; }
export PYTHONPATH=$dir/lib
cd "$dir"
cat > conf.py <<'E'
import time

def pre_request(worker, req):
    req.begun = time.monotonic()

def post_request(worker, req, environ, resp):
    worker.log.info("took %.3f s", time.monotonic() - req.begun)
E
cat > app.py <<'E'
def sync(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})
E
cat > client.py <<'E'
import http.client, sys, time
for _ in range(300):
    c = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=20)
    try:
        c.connect()
        break
    except OSError:
        time.sleep(0.1)
c.request("GET", "/")
print(c.getresponse().status)
E
try() {
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  python3 -m gunicorn --no-control-socket -c conf.py -k "$1" -b "127.0.0.1:$port" "app:$1" >"$1.log" 2>&1 & pid=$!
  status=$(python3 client.py "$port")
  kill "$pid"; wait "$pid" || true; pid=
  echo "seen: -k $1: $status, measured $(grep -c "took [0-9]" "$1.log" || true) times"
}
echo "gunicorn 27.0.1, $(python3 --version)"
echo "guess: 200 from both, one time measured"
try sync
sync=$status
try asgi
asgi=$status
error=$(grep -m 1 -o "AttributeError: .*" asgi.log || true)
echo "seen: in the log of -k asgi: ${error:-no error}"
[ "$sync" = 200 ] && [ "$asgi" = 500 ] && [ -n "$error" ] || { echo "the behaviour has changed"; exit 1; }
echo "as described"
