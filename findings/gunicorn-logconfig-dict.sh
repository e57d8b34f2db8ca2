#!/usr/bin/env bash
# A logconfig_dict of Gunicorn that names its own handlers and only the root
# logger ends the start.
#
# Expected: Gunicorn merges the dictionary into its defaults, so a configuration
#   that adds a handler and sets the root logger is complete. logging.config
#   accepts the same dictionary.
# Happens: the merge replaces each key of the top level as a whole. `handlers` then
#   lacks `console` and `error_console`, which the default `loggers`, still there,
#   refer to: "Unable to configure logger 'gunicorn.error'", exit 1. With a key
#   `loggers` of its own, even an empty one, the same file starts.
# Why it matters: a dictionary that works with logging.config.dictConfig and under
#   Uvicorn has to repeat a key that it does not need.
# Seen: gunicorn 27.0.1, CPython 3.11.7, 2026-11-28.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install -q --no-input --target "$dir/lib" gunicorn==27.0.1 2>"$dir/pip.log" || { cat "$dir/pip.log"; exit 1; }
export PYTHONPATH=$dir/lib
cd "$dir"
cat > root.py <<'E'
bind = "127.0.0.1:0"
logconfig_dict = {
    "version": 1,
    "handlers": {"mine": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["mine"], "level": "INFO"},
}
E
sed 's/    "version": 1,/    "version": 1, "loggers": {},/' root.py > loggers.py
cat > app.py <<'E'
def application(environ, start_response):
    start_response("200 OK", [])
    return []
E
cat > plain.py <<'E'
import logging.config, root
logging.config.dictConfig(root.logconfig_dict)
print("configured")
E
try() {
  timeout 4 python3 -m gunicorn --no-control-socket -c "$1" app >"$1.log" 2>&1 && code=0 || code=$?
  [ "$code" = 124 ] && echo "runs" || echo "exit $code: $(grep -m 1 -o "Unable to configure.*" "$1.log")"
}
echo "gunicorn 27.0.1, $(python3 --version)"
echo "guess: every one of them starts"
plain=$(python3 plain.py)
root=$(try root.py)
loggers=$(try loggers.py)
echo "seen: logging.config.dictConfig: $plain"
echo "seen: gunicorn, handlers and root: $root"
echo "seen: gunicorn, with an empty key loggers too: $loggers"
[ "$plain" = configured ] && [ "$root" = "exit 1: Unable to configure logger 'gunicorn.error'" ] && [ "$loggers" = runs ] ||
  { echo "the behaviour has changed"; exit 1; }
echo "as described"
