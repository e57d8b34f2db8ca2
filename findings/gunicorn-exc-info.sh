#!/usr/bin/env bash
# A WSGI app that replaces its response by start_response(…, exc_info) sends the
# headers of both responses under Gunicorn.
#
# Expected: PEP 3333: with exc_info, and before the headers were sent, the second
#   call replaces the first one's headers.
# Happens: the status is replaced, and the headers of the second call are added to
#   those of the first. The error page has the Content-Type and the cookies of the
#   page that failed, beside its own. wsgiref replaces them.
# Why it matters: this is how middleware answers an exception. A 500 with two
#   Content-Types, or with a cache header of the page that failed, goes out.
# Seen: gunicorn 27.0.1, worker classes sync and gthread, CPython 3.11.7, 2026-11-28.
set -eu
dir=$(mktemp -d)
pid=
trap 'if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; fi; rm -rf "$dir"' EXIT
python3 -m pip install -q --no-input --target "$dir/lib" gunicorn==27.0.1 2>"$dir/pip.log" || { cat "$dir/pip.log"; exit 1; }
export PYTHONPATH=$dir/lib
cd "$dir"
cat > app.py <<'E'
import sys

def application(environ, start_response):
    try:
        start_response("200 OK", [("Content-Type", "text/html"), ("Cache-Control", "max-age=3600")])
        raise ValueError("too late")
    except ValueError:
        start_response("500 Internal Server Error", [("Content-Type", "text/plain")], sys.exc_info())
    return [b"failed"]

if __name__ == "__main__":
    from wsgiref.simple_server import make_server
    make_server("127.0.0.1", int(sys.argv[1]), application).serve_forever()
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
r = c.getresponse()
print(r.status, *(f"{name}: {value}" for name, value in r.getheaders() if name.lower() in ("content-type", "cache-control")), sep="; ")
E
try() {
  name=$1; shift
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  python3 "${@//PORT/$port}" >"$dir/log" 2>&1 & pid=$!
  seen=$(python3 client.py "$port")
  kill "$pid"; wait "$pid" || true; pid=
  echo "seen: $name: $seen"
}
echo "gunicorn 27.0.1, $(python3 --version)"
echo "guess: 500; Content-Type: text/plain"
try wsgiref app.py PORT
wsgiref=$seen
try sync -m gunicorn --no-control-socket -k sync -b 127.0.0.1:PORT app
sync=$seen
try gthread -m gunicorn --no-control-socket -k gthread -b 127.0.0.1:PORT app
gthread=$seen
both="500; Content-Type: text/html; Cache-Control: max-age=3600; Content-Type: text/plain"
[ "$wsgiref" = "500; Content-Type: text/plain" ] && [ "$sync" = "$both" ] && [ "$gthread" = "$both" ] ||
  { echo "the behaviour has changed"; exit 1; }
echo "as described"
