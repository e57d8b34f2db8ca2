"""Shared by the Python clients: threads or tasks that ask until the time is over, and the line with the results."""
import collections
import json
import os
import random
import sys
import threading
import time

_, URL, METHOD, SIZE, VERSION, THREADS, SECONDS, PAUSE, SOCKET, *_ = [*sys.argv, "", ""]
THREADS, SECONDS, PAUSE = int(THREADS), float(SECONDS), float(PAUSE)
BODY = None if METHOD == "GET" else os.urandom(int(SIZE))
CA, WANTED = os.environ.get("CA_FILE"), int(os.environ.get("WANTED", 200))

tried, errors, longest = 0, collections.Counter(), 0.0


def judge(status, body):
    """Raises if the status is not `WANTED`, or if a 200 to a POST does not contain the body that was sent."""
    if status != WANTED:
        raise RuntimeError(f"status {status}")
    if BODY is not None and body != BODY and WANTED == 200:
        raise RuntimeError(f"{len(body)} other bytes than were sent")


def count(began, error):
    global tried, longest
    tried += 1
    longest = max(longest, time.monotonic() - began)
    if error:
        errors[f"{type(error).__name__}: {error}"[:200]] += 1


def said():
    print(json.dumps({"tried": tried, "lost": sum(errors.values()), "errors": errors, "longest_ms": longest * 1000}))


def threads(make):
    """Runs the clients, each in a thread. `make()` is called once for each and returns a function that asks once."""
    asks = [make() for _ in range(THREADS)]
    lock, end = threading.Lock(), time.monotonic() + SECONDS

    def client(ask):
        time.sleep(random.uniform(0, PAUSE))
        while time.monotonic() < end:
            began, error = time.monotonic(), None
            try:
                judge(*ask())
            except Exception as lost:
                error = lost
            with lock:
                count(began, error)
            # Pauses after a failure: otherwise refused connections, after a stop, would be tried without end.
            time.sleep(PAUSE or 0.05 * bool(error))

    running = [threading.Thread(target=client, args=[ask], daemon=True) for ask in asks]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(max(0, end + PAUSE + 40 - time.monotonic()))
    if any(thread.is_alive() for thread in running):
        count(end, TimeoutError("a request that never ended"))
    said()


async def tasks(ask):
    """Runs the clients as tasks in one thread, which share one client object of the library."""
    import asyncio

    end = time.monotonic() + SECONDS

    async def client():
        await asyncio.sleep(random.uniform(0, PAUSE))
        while time.monotonic() < end:
            began, error = time.monotonic(), None
            try:
                judge(*await ask())
            except Exception as lost:
                error = lost
            count(began, error)
            await asyncio.sleep(PAUSE or 0.05 * bool(error))

    _, waiting = await asyncio.wait([asyncio.create_task(client()) for _ in range(THREADS)], timeout=SECONDS + PAUSE + 40)
    if waiting:
        count(end, TimeoutError("a request that never ended"))
    said()
