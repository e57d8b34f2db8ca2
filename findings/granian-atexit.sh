#!/usr/bin/env bash
# A granian worker that stops in good order runs no atexit function.
#
# Expected: SIGTERM stops granian gracefully, so Python's atexit functions of
#   the application run in each worker, after lifespan.shutdown.
# Happens: lifespan.shutdown runs, the master exits with 0, and no atexit
#   function runs. gunicorn's asgi worker runs both. (uvicorn runs none
#   either, but says so by its exit status: it ends itself by the same signal.)
# Why it matters: many libraries send what they still hold from atexit: error
#   reporters, tracing exporters, log queues. Under granian each worker loses
#   its last batch at each deploy, and nothing says so. A supervisor that embeds
#   Python has to run these functions itself.
# Seen: granian 2.8.9, gunicorn 27.0.1 to compare, CPython 3.11.7, 2026-11-27.
set -eu
dir=$(mktemp -d)
pid=
trap 'if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; fi; rm -rf "$dir"' EXIT
python3 -m pip install -q --no-input --target "$dir/lib" granian==2.8.9 gunicorn==27.0.1 2>"$dir/pip.log" || { cat "$dir/pip.log"; exit 1; }
export PYTHONPATH=$dir/lib:$dir
cd "$dir"
cat > app.py <<'E'
import atexit, os

def note(word):
    with open(os.environ["NOTES"], "a") as f:
        f.write(word + "\n")

atexit.register(note, "atexit")

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                note("startup")
            else:
                note("shutdown")
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
E
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
changed=0
try() {
  name=$1 expected=$2; shift 2
  export NOTES=$dir/$name.notes
  : >"$NOTES"
  python3 -m "${@//PORT/$(port)}" >"$name.log" 2>&1 & pid=$!
  for _ in $(seq 300); do [ "$(grep -c startup "$NOTES" || true)" = 2 ] && break; sleep 0.1; done
  sleep 1
  kill "$pid"; rc=0; wait "$pid" || rc=$?; pid=
  seen="exit $rc; shutdown $(grep -c shutdown "$NOTES" || true); atexit $(grep -c atexit "$NOTES" || true)"
  echo "seen: $name, 2 workers: $seen"
  [ "$seen" = "$expected" ] || { echo "  before: $expected"; cat "$name.log"; changed=1; }
}
echo "granian 2.8.9, gunicorn 27.0.1, $(python3 --version)"
echo "guess: exit 0; shutdown 2; atexit 2"
try gunicorn "exit 0; shutdown 2; atexit 2" gunicorn app:asgi -k asgi -w 2 -b 127.0.0.1:PORT --no-control-socket
try granian "exit 0; shutdown 2; atexit 0" granian --interface asgi --workers 2 --port PORT app:asgi
[ "$changed" = 0 ] || { echo "the behaviour has changed"; exit 1; }
echo "as described"
