#!/usr/bin/env bash
# HAProxy and nghttpx close a client's connection after an early answer of an
# HTTP/2 server, and the answer does not say so.
#
# Expected: a server answers a POST before it has read its body, and asks by
#   RST_STREAM(NO_ERROR) to send no more of it (RFC 9113, 8.1). The proxy passes
#   the answer on. If it then closes the HTTP/1.1 connection of its client, it
#   says so with "Connection: close" (RFC 9112, 9.6), or it reads the rest of the
#   body and keeps the connection.
# Happens: the answer comes without "Connection: close", and the proxy closes
#   while the client still sends. HAProxy does it for this frame only: without it,
#   it reads the rest and keeps the connection. nghttpx does it either way.
# Why it matters: a refusal (401, 404, 413) by a server with HTTP/2 behind the
#   proxy is the usual case of an early answer. A client with a pool puts the
#   connection back, and its next request fails; one that first sends its whole
#   body may get a reset in place of the answer. The server decides: it can read
#   the body to its end before it closes the stream, which helps with HAProxy.
# Seen: haproxy 2.6.12-1+deb12u4 and nghttpx 1.52.0-1+deb12u3 of Debian 12, h2
#   4.4.1, CPython 3.11.7, 2026-11-27.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install -q --no-input --target "$dir/lib" h2==4.4.1 2>"$dir/pip.log" || { cat "$dir/pip.log"; exit 1; }
cd "$dir"
apt-get -q -o APT::Sandbox::User=root download haproxy=2.6.12-1+deb12u4 liblua5.3-0 libopentracing-c-wrapper0 libopentracing1 nghttp2-proxy=1.52.0-1+deb12u3 libnghttp2-14=1.52.0-1+deb12u3 libjemalloc2 libev4 libc-ares2 >apt.log 2>&1 || { cat apt.log; exit 1; }
for package in *.deb; do dpkg -x "$package" root; done
cat > try.py <<'E'
import asyncio, contextlib, platform, socket, sys
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

async def server(reader, writer):
    h2 = H2Connection(H2Configuration(client_side=False))
    h2.initiate_connection()
    writer.write(h2.data_to_send())
    with contextlib.suppress(asyncio.CancelledError):
        while data := await reader.read(65536):
            for event in h2.receive_data(data):
                if isinstance(event, DataReceived):
                    h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, RequestReceived):
                    h2.send_headers(event.stream_id, [(":status", "404"), ("content-length", "2")])
                    h2.send_data(event.stream_id, b"no", end_stream=True)
                    if dict(event.headers)[b":path"] == b"/reset":
                        h2.reset_stream(event.stream_id, 0)
            writer.write(h2.data_to_send())
    writer.close()

async def client(port, path):
    for _ in range(100):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            break
        except OSError:
            await asyncio.sleep(0.1)
    writer.write(b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" % path + b"x" * 500)
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().lower()
    await reader.readexactly(2)
    said = "with" if "connection: close" in head else "without"
    try:
        writer.write(b"x" * 500)
        closed = await asyncio.wait_for(reader.read(1), 2) == b""
    except ConnectionError:
        closed = True
    except TimeoutError:
        closed = False
    writer.close()
    return f"{head.split()[1]} {said} Connection: close, then {'closed' if closed else 'open'}"

async def main():
    listener = await asyncio.start_server(server, "127.0.0.1", 0)
    behind, haproxy, nghttpx = listener.sockets[0].getsockname()[1], free_port(), free_port()
    times = "timeout connect 9s\n timeout client 1h\n timeout server 1h"
    with open("haproxy.cfg", "w") as f:
        f.write(f"listen a\n mode http\n {times}\n bind 127.0.0.1:{haproxy}\n server a 127.0.0.1:{behind} proto h2\n")
    open("nghttpx.conf", "w").close()
    commands = [
        ["haproxy", "-db", "-f", "haproxy.cfg"],
        ["nghttpx", "--conf=nghttpx.conf", f"--frontend=127.0.0.1,{nghttpx};no-tls", f"--backend=127.0.0.1,{behind};;proto=h2"],
    ]
    proxies = [await asyncio.create_subprocess_exec(f"root/usr/sbin/{c[0]}", *c[1:], stderr=log) for c in commands]
    try:
        seen = {(name, path): await client(port, path.encode()) for name, port in (("haproxy", haproxy), ("nghttpx", nghttpx)) for path in ("/reset", "/no-reset")}
    finally:
        for proxy in proxies:
            proxy.terminate()
            await proxy.wait()
    for (name, path), what in seen.items():
        print(f"seen: {name}: {path[1:]}: {what}")
    return list(seen.values())

print("haproxy 2.6.12-1+deb12u4, nghttpx 1.52.0-1+deb12u3, h2 4.4.1, CPython", platform.python_version())
print("guess: with Connection: close, then closed; or without, then open")
log = open("proxies.log", "w")
closed, left_open = "404 without Connection: close, then closed", "404 without Connection: close, then open"
sys.exit(None if asyncio.run(main()) == [closed, left_open, closed, closed] else "the behaviour has changed")
E
LD_LIBRARY_PATH=$dir/root/usr/lib/x86_64-linux-gnu PYTHONPATH=$dir/lib python3 try.py
echo "as described"
