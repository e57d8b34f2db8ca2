#!/usr/bin/env bash
# Varnish answers 503 when a server sends 103 Early Hints before its answer.
#
# Expected: a proxy passes on the 103 and then the answer, as RFC 9110, 15.2, asks
#   of it, or at least the answer: each client has to understand 1xx responses
#   before the answer, also those that it did not ask for.
# Happens: Varnish takes the 103 for the answer, finds it wrong, and sends its own
#   503 "Backend fetch failed", though a correct 200 follows. A 100 and a 102 do
#   the same. HAProxy passes all three on.
# Why it matters: a framework sends hints for some of its routes, for example by
#   the ASGI extension http.response.early_hint. Without Varnish all of them
#   work; behind it these routes answer 503, and the server counts a 200. The
#   server cannot know what it speaks to, so the hints have to be turned off where
#   Varnish is in front.
# Seen: varnish 7.1.1-2+deb12u1 and haproxy 2.6.12-1+deb12u4 of Debian 12, CPython
#   3.11.7, 2026-11-27. Varnish needs a C compiler when it starts.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -q -o APT::Sandbox::User=root download varnish=7.1.1-2+deb12u1 libvarnishapi3=7.1.1-2+deb12u1 libjemalloc2 haproxy=2.6.12-1+deb12u4 liblua5.3-0 libopentracing-c-wrapper0 libopentracing1 >apt.log 2>&1 || { cat apt.log; exit 1; }
for package in *.deb; do dpkg -x "$package" root; done
cat > try.py <<'E'
import os, platform, socket, subprocess, sys, threading, time

FINAL = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
BEFORE = {
    "nothing": b"",
    "100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "102": b"HTTP/1.1 102 Processing\r\n\r\n",
    "103": b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n",
}

def serve(listener):
    while True:
        connection, _ = listener.accept()
        with connection:
            head = b""
            while b"\r\n\r\n" not in head and (more := connection.recv(65536)):
                head += more
            path = head.split(b" ")[1].decode() if head else "/"
            connection.sendall(BEFORE.get(path[1:], b"") + FINAL)

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

def get(port, path):
    for _ in range(300):
        try:
            s = socket.create_connection(("127.0.0.1", port), 20)
            break
        except OSError:
            time.sleep(0.1)
    with s:
        s.sendall(f"GET /{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while more := s.recv(65536):
            answer += more
    return " ".join(line.split()[1] for line in answer.decode().split("\r\n") if line.startswith("HTTP/1.1 "))

listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=serve, args=[listener], daemon=True).start()
behind, varnish, haproxy = listener.getsockname()[1], free_port(), free_port()
folder = os.getcwd()
with open("haproxy.cfg", "w") as f:
    times = "timeout connect 9s\n timeout client 1h\n timeout server 1h"
    f.write(f"listen a\n mode http\n {times}\n bind 127.0.0.1:{haproxy}\n server a 127.0.0.1:{behind}\n")
log = open("proxies.log", "w")
proxies = [
    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    for command in (
        ["root/usr/sbin/varnishd", "-F", "-n", f"{folder}/varnish", "-j", "none", "-a", f"127.0.0.1:{varnish}", "-b", f"127.0.0.1:{behind}", "-s", "malloc,16m"],
        ["root/usr/sbin/haproxy", "-db", "-f", "haproxy.cfg"],
    )
]
print("varnish 7.1.1-2+deb12u1, haproxy 2.6.12-1+deb12u4, CPython", platform.python_version())
print("guess: 200, or the 1xx and 200, always")
try:
    seen = {name: {first: get(port, first) for first in BEFORE} for name, port in (("haproxy", haproxy), ("varnish", varnish))}
finally:
    for proxy in proxies:
        proxy.terminate()
        proxy.wait()
for name, answers in seen.items():
    print(f"seen: {name}:", "; ".join(f"server sends {first} first: {answer}" for first, answer in answers.items()))
same = list(seen["haproxy"].values()) == ["200", "100 200", "102 200", "103 200"] and list(seen["varnish"].values()) == ["200", "503", "503", "503"]
sys.exit(None if same else "the behaviour has changed")
E
LD_LIBRARY_PATH=$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/usr/lib/x86_64-linux-gnu/varnish python3 try.py || { cat proxies.log; exit 1; }
echo "as described"
