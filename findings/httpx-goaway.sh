#!/usr/bin/env bash
# httpx repeats a GET that a GOAWAY did not accept, but lets a POST fail.
#
# Expected: a GOAWAY with the last stream id 1 says that streams 3, 5, ... were
#   not processed and may be sent again (RFC 9113, 6.8), whatever their method.
#   httpcore has code for it, so it repeats them all on a new connection.
# Happens: it does so for requests that wait for their answer when they see the
#   GOAWAY. One that still has to write, or that waits for room in the window,
#   raises RemoteProtocolError without a look at the last id. So GETs are
#   repeated, one of a few small POSTs (or PUTs) at once fails, and a POST of
#   more than 65,535 bytes, the window, fails even alone.
# Why it matters: a server that restarts or closes idle connections sends a
#   correct GOAWAY while the next requests are on their way. It has done nothing
#   with them, and the application gets an error that does not say so. A server
#   can only choose a moment at which no request is likely to be on its way.
# Seen: httpx 0.28.1, httpcore 1.0.9, h2 4.4.1, CPython 3.11.7, 2026-11-27.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install -q --no-input --target "$dir/lib" httpx==0.28.1 httpcore==1.0.9 h2==4.4.1 2>"$dir/pip.log" || { cat "$dir/pip.log"; exit 1; }
cat > "$dir/try.py" <<'E'
import asyncio, platform, sys
from importlib.metadata import version
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded
import httpx

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

async def ask(method, count, size):
    server = Server()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    url = "http://127.0.0.1:%d/" % listener.sockets[0].getsockname()[1]
    async with httpx.AsyncClient(http1=False, http2=True, timeout=10) as client:
        await client.get(url)
        content = {"content": b"x" * size} if size else {}
        answers = await asyncio.gather(*(client.request(method, url, **content) for _ in range(count)), return_exceptions=True)
    listener.close()
    errors = [a for a in answers if isinstance(a, Exception)]
    print(f"seen: {count} {method} at once of {size} bytes: {len(errors)} failed", *{repr(e) for e in errors})
    right = all(isinstance(e, httpx.RemoteProtocolError) and "last_stream_id:1" in str(e) for e in errors)
    return len(errors) if right else None

async def main():
    gets, small, large = await ask("GET", 6, 0), await ask("POST", 6, 10), await ask("POST", 1, 100_000)
    return gets == 0 and small and large == 1

print(", ".join(f"{name} {version(name)}" for name in ("httpx", "httpcore", "h2")), "CPython", platform.python_version())
print("guess: 0 failed, three times")
sys.exit(None if asyncio.run(main()) else "the behaviour has changed")
E
PYTHONPATH=$dir/lib python3 "$dir/try.py"
echo "as described"
