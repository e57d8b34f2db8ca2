"""Runs a load generator as a client program: `tools.py wrk|ab|hey|h2load URL METHOD …`. ab uses HTTP/1.0 and -k."""
import json
import math
import os
import re
import subprocess
import sys
import tempfile

_, TOOL, URL, METHOD, SIZE, VERSION, THREADS, SECONDS, PAUSE, *_ = sys.argv
SECONDS = str(math.ceil(float(SECONDS)))  # wrk and h2load take complete seconds only
# The body is text, because wrk's script puts it in quotes.
BODY = "" if METHOD == "GET" else "x" * int(SIZE)


def run(*words):
    # The exit code is ignored: a tool ends with an error when nothing listens any more, and its output still counts.
    return subprocess.run([*words, URL], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=float(SECONDS) + 60).stdout


def number(pattern, text):
    return sum(int(found) for found in re.findall(pattern, text))


def wrk(file):
    script = f"{file}.lua"
    with open(script, "w") as lua:
        lua.write(f"wrk.method = '{METHOD}'\nwrk.body = {BODY!r}\n")
    said = run("wrk", "-t", "1", "-c", THREADS, "-d", f"{SECONDS}s", "--timeout", "30s", "-s", script)
    os.remove(script)
    kinds = re.search(r"Socket errors: (.*)", said)
    errors = {f"socket {kind}": int(n) for kind, n in re.findall(r"(\w+) (\d+)", kinds[1] if kinds else "")}
    return said, number(r"(\d+) requests in", said), errors | {"status": number(r"Non-2xx or 3xx responses: (\d+)", said)}


def ab(file):
    body = ["-p", file, "-T", "text/plain"] if BODY else []
    # -t would set -n to 50,000, so -n follows it. Without -r, ab ends at the first connection that is refused or reset.
    # With -r it would continue, but count such a connection several times.
    said = run("ab", "-k", "-q", "-s", "30", "-c", THREADS, "-t", SECONDS, "-n", "9999999", *body)
    done = number(r"Complete requests: +(\d+)", said) or number(r"Total of (\d+) requests completed", said)
    errors = {"failed": number(r"Failed requests: +(\d+)", said), "status": number(r"Non-2xx responses: +(\d+)", said)}
    return said, done, errors | {"reset": said.count("apr_socket_recv")}


def hey(file):
    body = ["-D", file] if BODY else []
    rate = ["-q", f"{1 / float(PAUSE)}"] if float(PAUSE) else []
    # hey sends the Host header as the server's name in TLS. A name with a port is invalid there: the handshake fails
    # with "illegal parameter". So -host gives a name without a port.
    version = ["-h2", "-host", "localhost"] if VERSION == "2" else []
    said = run("hey", *version, "-c", THREADS, "-z", f"{SECONDS}s", "-t", "30", "-m", METHOD, *body, *rate)
    errors = {text: int(n) for n, text in re.findall(r"^  \[(\d+)\]\s+(\S+ \".*)", said, re.MULTILINE)}
    statuses = {f"status {status}": int(n) for status, n in re.findall(r"^  \[(\d+)\]\s+(\d+) responses", said, re.MULTILINE)}
    right = statuses.pop("status 200", 0)
    return said, right + sum((errors | statuses).values()), errors | statuses


def h2load(file):
    body = ["-d", file] if BODY else []
    said = run("h2load", *(["-m", "8"] if VERSION == "2" else ["--h1"]), "-t", "1", "-c", THREADS, "-D", SECONDS, *body)
    errors = {kind: number(rf"(\d+) {kind}", said) for kind in ("failed", "errored", "timeout", "3xx", "4xx", "5xx")}
    return said, number(r"(\d+) total", said), errors


with tempfile.NamedTemporaryFile("w") as body:
    body.write(BODY)
    body.flush()
    said, tried, errors = {"wrk": wrk, "ab": ab, "hey": hey, "h2load": h2load}[TOOL](body.name)
if not tried:
    sys.exit(said)
errors = {text: n for text, n in errors.items() if n}
print(json.dumps({"tried": tried, "lost": sum(errors.values()), "errors": errors, "longest_ms": 0}))
