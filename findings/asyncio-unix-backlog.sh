#!/usr/bin/env bash
# asyncio says "connected" to a Unix socket whose backlog is full.
#
# Expected: asyncio.open_unix_connection() waits for room in the backlog, or
#   raises at the connect, as it does for a TCP port that refuses.
# Happens: on Linux a non-blocking connect() to such a socket answers EAGAIN,
#   and the kernel does not go on with it later. asyncio takes EAGAIN for
#   "in progress", finds the socket writable at once and without an error, and
#   returns a connection that is none. The error comes with the first write or
#   read. aiohttp then reports ClientOSError, not ClientConnectorError.
#   uvloop raises BlockingIOError at the connect; trio does as asyncio does.
# Why it matters: busy workers behind a Unix socket fill its backlog. A probe
#   that only connects calls the service healthy. A client that repeats only
#   what failed "at the connect" does not repeat this request, though no worker
#   has seen a byte of it.
# Seen: CPython 3.11.7 and 3.13.0, aiohttp 3.14.5, trio 0.35.0, uvloop 0.23.0,
#   Linux, 2026-11-27.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install -q --no-input --target "$dir/lib" aiohttp==3.14.5 trio==0.35.0 uvloop==0.23.0 2>"$dir/pip.log" || { cat "$dir/pip.log"; exit 1; }
cat > "$dir/try.py" <<'E'
import asyncio, platform, socket, sys
import aiohttp, trio, uvloop

path = sys.argv[1]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(1)
waiting = []
while True:
    s = socket.socket(socket.AF_UNIX)
    s.setblocking(False)
    try:
        s.connect(path)
    except BlockingIOError:
        break
    waiting.append(s)

async def by_asyncio():
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_unix_connection(path), 5)
    except Exception as e:
        return f"the connect raised {e!r}"
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await writer.drain()
        await asyncio.wait_for(reader.read(1), 5)
    except OSError as e:
        return f"connected, then {type(e).__name__}"
    return "connected and written"

async def by_aiohttp():
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session:
        try:
            await session.get("http://a/", timeout=aiohttp.ClientTimeout(total=5))
        except aiohttp.ClientError as e:
            return type(e).__name__

async def by_trio():
    with trio.fail_after(5):
        try:
            await trio.open_unix_socket(path)
        except OSError as e:
            return f"the connect raised {e!r}"
    return "connected"

print("CPython", platform.python_version(), "aiohttp", aiohttp.__version__, "trio", trio.__version__, "uvloop", uvloop.__version__)
print("guess: the connect waits or raises")
seen = {
    "asyncio": asyncio.run(by_asyncio()),
    "uvloop": uvloop.run(by_asyncio()),
    "aiohttp": asyncio.run(by_aiohttp()),
    "trio": trio.run(by_trio),
}
for name, what in seen.items():
    print(f"seen: {name}: {what}")
same = (
    seen["asyncio"].startswith("connected, then ")
    and seen["uvloop"].startswith("the connect raised BlockingIOError")
    and seen["aiohttp"] == "ClientOSError"
    and seen["trio"] == "connected"
)
sys.exit(0 if same else "the behaviour has changed")
E
PYTHONPATH=$dir/lib python3 "$dir/try.py" "$dir/s"
echo "as described"
