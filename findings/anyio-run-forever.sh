#!/usr/bin/env bash
# Under loop.run_forever(), anyio makes a new thread for each task that calls
# to_thread.run_sync().
#
# Expected: anyio keeps its worker threads for the next call, as it says of them,
#   whichever way the loop was started.
# Happens: anyio ties idle threads to a root task and ends them when that task
#   ends. It finds the root task by the done callback that run_until_complete()
#   leaves on it. A loop that run_forever() drives has no such task, so the root is
#   the outermost task of the call: each request of a server is one, and its
#   thread ends with it. The same calls share one thread under asyncio.run().
# Why it matters: Starlette and FastAPI run each `def` endpoint, and each open()
#   and read() of a FileResponse, through anyio. A server that runs the loop by
#   run_forever() pays for a new thread in each such request; 2.3 times the CPU
#   time of a FileResponse of 50 kB was seen. A task that waits for ever and has
#   the callback of run_until_complete() mends it.
# Seen: anyio 4.16.0, CPython 3.11.7, 2026-11-28.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install -q --no-input --target "$dir/lib" anyio==4.16.0 2>"$dir/pip.log" || { cat "$dir/pip.log"; exit 1; }
export PYTHONPATH=$dir/lib
cat > "$dir/calls.py" <<'E'
import asyncio, sys, threading
import anyio.to_thread

REQUESTS = 20
threads = set()

async def request():
    # A thread keeps this object for its whole life, so two threads never have the same one.
    threads.add(await anyio.to_thread.run_sync(threading.current_thread))

async def main():
    for _ in range(REQUESTS):
        await asyncio.create_task(request())

if sys.argv[1] == "run":
    asyncio.run(main())
else:
    loop = asyncio.new_event_loop()
    def next_request(done=None, left=[REQUESTS]):
        if done is not None:
            done.result()
        if not left[0]:
            loop.stop()
            return
        left[0] -= 1
        loop.create_task(request()).add_done_callback(next_request)
    loop.call_soon(next_request)
    loop.run_forever()
print(len(threads))
E
echo "anyio 4.16.0, $(python3 --version); 20 requests, one after the other"
echo "guess: 1 thread, either way"
run=$(python3 "$dir/calls.py" run)
forever=$(python3 "$dir/calls.py" forever)
echo "seen: asyncio.run(): $run thread, loop.run_forever(): $forever threads"
[ "$run" = 1 ] && [ "$forever" = 20 ] || { echo "the behaviour has changed"; exit 1; }
echo "as described"
