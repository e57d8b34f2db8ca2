#!/usr/bin/env bash
# hey puts the port into the server name of its TLS handshake.
#
# Expected: for https://localhost:8443/ the ClientHello carries the name
#   "localhost", and for https://127.0.0.1:8443/ none: RFC 6066, 3, allows only
#   a DNS name there, and no address. Go's own HTTP client does that by itself.
# Happens: hey sets the name itself, to the Host with its port. So it sends
#   "localhost:8443" and "127.0.0.1:8443", with -h2 and without. A server with
#   rustls (granian) refuses each handshake with the alert illegal_parameter.
# Why it matters: a load test of a TLS server on any port but 443 measures
#   another certificate or virtual host than the one that is meant, or fails
#   with "tls: illegal parameter", which looks like a fault of the server.
#   `-host localhost` helps: it sends the name without the port.
# Seen: hey 0.1.4-2+b4 of Debian 12, granian 2.8.9, CPython 3.11.7, 2026-11-27.
set -eu
dir=$(mktemp -d)
pid=
trap 'if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; fi; rm -rf "$dir"' EXIT
python3 -m pip install -q --no-input --target "$dir/lib" granian==2.8.9 trustme==1.2.1 2>"$dir/pip.log" || { cat "$dir/pip.log"; exit 1; }
export PYTHONPATH=$dir/lib:$dir
cd "$dir"
apt-get -q -o APT::Sandbox::User=root download hey=0.1.4-2+b4 >apt.log 2>&1 || { cat apt.log; exit 1; }
dpkg -x hey_*.deb root
python3 - <<'E'
import trustme
leaf = trustme.CA().issue_cert("localhost")
leaf.private_key_pem.write_to_path("key.pem")
for i, blob in enumerate(leaf.cert_chain_pems):
    blob.write_to_path("cert.pem", append=i > 0)
E
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
E
cat > try.py <<'E'
import platform, re, socket, ssl, subprocess, sys, time

def hey(*args):
    return subprocess.run(["root/usr/bin/hey", "-n", "1", "-c", "1", *args], capture_output=True, text=True, timeout=30).stdout

def name(*args):
    """The server name in the ClientHello of hey, its port written as PORT."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    process = subprocess.Popen(["root/usr/bin/hey", "-n", "1", "-c", "1", *[a.replace("PORT", str(port)) for a in args]], stdout=subprocess.DEVNULL)
    connection, _ = listener.accept()
    hello = connection.recv(65536)
    connection.close()
    process.wait(30)
    return server_name(hello).replace(str(port), "PORT")

def server_name(hello):
    at = 5 + 4 + 2 + 32  # the record's and the message's head, version, random
    at += 1 + hello[at]  # session id
    at += 2 + int.from_bytes(hello[at : at + 2], "big")  # cipher suites
    at += 1 + hello[at]  # compression
    end = at + 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 2
    while at < end:
        kind, size = (int.from_bytes(hello[at + i : at + i + 2], "big") for i in (0, 2))
        if kind == 0:
            return hello[at + 9 : at + 4 + size].decode()
        at += 4 + size
    return "none"

print("hey 0.1.4-2+b4, granian 2.8.9, CPython", platform.python_version())
print("guess: localhost; localhost; none; localhost; granian answers 200")
url, address = "https://localhost:PORT/", "https://127.0.0.1:PORT/"
seen = [name(url), name("-h2", url), name("-h2", address), name("-h2", "-host", "localhost", address)]
print("seen:", "; ".join(seen))
port = int(sys.argv[1])
context = ssl._create_unverified_context()
for _ in range(300):
    try:
        with context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost"):
            break
    except OSError:
        time.sleep(0.1)
for args in (["-h2"], ["-h2", "-host", "localhost"]):
    said = hey(*args, f"https://localhost:{port}/")
    found = re.search(r"\[200\]|remote error.*", said)
    seen.append(found[0] if found else said)
    print(f"seen: granian and hey {' '.join(args)}: {seen[-1]}")
same = seen == ["localhost:PORT", "localhost:PORT", "127.0.0.1:PORT", "localhost", "remote error: tls: illegal parameter", "[200]"]
sys.exit(None if same else "the behaviour has changed")
E
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
python3 -m granian --interface asgi --port "$port" --ssl-certificate cert.pem --ssl-keyfile key.pem app:asgi >granian.log 2>&1 & pid=$!
python3 try.py "$port"
echo "as described"
