#!/usr/bin/env bash
# A chunked request body does not reach a Flask or Werkzeug application under
# hypercorn, tornado, a2wsgi and asgiref.
#
# Expected: each server or adapter that runs a WSGI application has decoded the
#   chunks and knows where the body ends, so the application reads the body.
# Happens: with no Content-Length, Werkzeug reads a body only if the server set
#   wsgi.input_terminated, and takes it for empty otherwise. gunicorn sets it.
#   hypercorn, tornado's WSGIContainer, a2wsgi and asgiref's WsgiToAsgi do not,
#   though each of them hands over a stream that ends where the body ends. The
#   application answers 200 to an empty body, and nothing is logged.
# Why it matters: curl with data from a pipe, Go and Java clients with streamed
#   bodies, and nginx with proxy_request_buffering off send such requests. A WSGI
#   application behind an ASGI worker and an adapter loses their bodies. A worker that decodes chunks has to set the key
#   or the length.
# Seen: hypercorn 0.18.0, tornado 6.6.1, a2wsgi 1.10.10 and asgiref 3.13.0 under
#   uvicorn 0.54.0, gunicorn 27.0.1 to compare, Werkzeug 3.1.9, CPython 3.11.7,
#   2026-11-27.
set -eu
dir=$(mktemp -d)
pid=
trap 'if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; fi; rm -rf "$dir"' EXIT
python3 -m pip install -q --no-input --target "$dir/lib" Werkzeug==3.1.9 hypercorn==0.18.0 tornado==6.6.1 a2wsgi==1.10.10 asgiref==3.13.0 uvicorn==0.54.0 gunicorn==27.0.1 2>"$dir/pip.log" || { cat "$dir/pip.log"; exit 1; }
export PYTHONPATH=$dir/lib:$dir
cd "$dir"
cat > app.py <<'E'
import asyncio, sys
from a2wsgi import WSGIMiddleware
from asgiref.wsgi import WsgiToAsgi
from werkzeug.wrappers import Request, Response

@Request.application
def wsgi(request):
    return Response(f"read {len(request.get_data())} bytes")

by_a2wsgi = WSGIMiddleware(wsgi)
by_asgiref = WsgiToAsgi(wsgi)

async def by_tornado(port):
    from tornado.httpserver import HTTPServer
    from tornado.wsgi import WSGIContainer
    HTTPServer(WSGIContainer(wsgi)).listen(port, "127.0.0.1")
    await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(by_tornado(int(sys.argv[1])))
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
c.request("POST", "/", body=iter([b"hel", b"lo"]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
r = c.getresponse()
print(r.status, r.read().decode())
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
echo "Werkzeug 3.1.9, hypercorn 0.18.0, tornado 6.6.1, a2wsgi 1.10.10, asgiref 3.13.0, uvicorn 0.54.0, gunicorn 27.0.1, $(python3 --version)"
echo "guess: 200 read 5 bytes, everywhere"
try gunicorn "200 read 5 bytes" gunicorn app:wsgi -b 127.0.0.1:PORT --no-control-socket
try hypercorn "200 read 0 bytes" hypercorn -b 127.0.0.1:PORT wsgi:app:wsgi
try tornado "200 read 0 bytes" app PORT
try a2wsgi "200 read 0 bytes" uvicorn --port PORT app:by_a2wsgi
try asgiref "200 read 0 bytes" uvicorn --port PORT --lifespan off app:by_asgiref
[ "$changed" = 0 ] || { echo "the behaviour has changed"; exit 1; }
echo "as described"
