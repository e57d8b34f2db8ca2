"""What apps and their libraries do with asyncio's loop: one path for each."""

import asyncio
import concurrent.futures
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading

from toolkit import Routes, answer, record, text

app = Routes()


@app.route("/hello")
async def hello(scope, receive, send):
    await text(send, "hello")


@app.route("/timers")
async def timers(scope, receive, send):
    """Timers run in the order of their times, and none of them early."""
    loop = asyncio.get_running_loop()
    began, seen, over = loop.time(), [], loop.create_future()
    for delay in (0.09, 0.03, 0.06, 0.0):
        loop.call_later(delay, lambda delay=delay: seen.append((delay, loop.time() - began >= delay - 0.001)))
    loop.call_at(began + 0.12, over.set_result, None)
    cancelled = loop.call_later(0.05, seen.append, "cancelled timer")
    cancelled.cancel()
    await over
    await answer(send, seen)


@app.route("/sleep-in-the-first-step")
async def sleep_in_the_first_step(scope, receive, send):
    await asyncio.sleep(0.01)
    await text(send, "woke")


@app.route("/sleep-0")
async def sleep_0(scope, receive, send):
    for _ in range(1000):
        await asyncio.sleep(0)
    await text(send, "1000 turns")


@app.route("/threadsafe")
async def threadsafe(scope, receive, send):
    """Threads wake the loop while it has nothing else to do."""
    loop = asyncio.get_running_loop()
    woken = loop.create_future()
    threading.Timer(0.05, loop.call_soon_threadsafe, (woken.set_result, "woken")).start()
    first = await woken

    async def coroutine():
        await asyncio.sleep(0.01)
        return "coroutine"

    def from_a_thread():
        return asyncio.run_coroutine_threadsafe(coroutine(), loop).result(10)

    second = await asyncio.to_thread(from_a_thread)
    await answer(send, [first, second])


@app.route("/asyncio-run-in-a-thread")
async def run_in_a_thread(scope, receive, send):
    async def inner():
        await asyncio.sleep(0.01)
        return asyncio.get_running_loop() is not outer

    outer = asyncio.get_running_loop()
    await answer(send, await asyncio.to_thread(lambda: asyncio.run(inner())))


@app.route("/asyncio-run-inside")
async def run_inside(scope, receive, send):
    """A mistake that apps make: it must be asyncio's own error, and must not harm the worker."""
    coroutine = asyncio.sleep(0)
    try:
        asyncio.run(coroutine)
    except RuntimeError as error:
        coroutine.close()
        await text(send, str(error))


@app.route("/readers")
async def readers(scope, receive, send):
    """add_reader and add_writer, as psycopg and others use them."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    got, told, over = bytearray(), [], loop.create_future()

    def read_one():
        # Only one byte of what is there: a reader is told again as long as something is left.
        told.append(1)
        got.extend(ours.recv(1))
        if len(got) == 6:
            over.set_result(None)

    loop.add_reader(ours, read_one)
    for delay, piece in ((0.02, b"one"), (0.06, b"two")):
        loop.call_later(delay, theirs.send, piece)
    await asyncio.wait_for(over, 5)
    loop.remove_reader(ours)
    writable = asyncio.Event()
    loop.add_writer(ours, writable.set)
    await asyncio.wait_for(writable.wait(), 5)
    loop.remove_writer(ours)
    theirs.setblocking(False)
    sending = asyncio.create_task(loop.sock_sendall(ours, b"x" * 500_000))
    total = 0
    while total < 500_000:
        total += len(await loop.sock_recv(theirs, 65536))
    await sending
    ours.close()
    theirs.close()
    await answer(send, [got.decode(), len(told), total])


@app.route("/streams")
async def streams(scope, receive, send):
    """Sixty connections to a server of the app's own, on the same loop."""

    async def serve(reader, writer):
        writer.write((await reader.readexactly(100_000))[::-1])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)

    async def ask(number):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(bytes([number]) * 100_000)
        await writer.drain()
        got = await reader.read()
        writer.close()
        return got == bytes([number]) * 100_000

    results = await asyncio.gather(*(ask(number) for number in range(60)))
    server.close()
    await answer(send, results.count(True))


@app.route("/datagrams")
async def datagrams(scope, receive, send):
    loop = asyncio.get_running_loop()
    got = loop.create_future()

    class Receiver(asyncio.DatagramProtocol):
        def datagram_received(self, data, address):
            got.set_result(data)

    receiver, _ = await loop.create_datagram_endpoint(Receiver, local_addr=("127.0.0.1", 0))
    sender, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, remote_addr=receiver.get_extra_info("sockname")
    )
    sender.sendto(b"datagram")
    await text(send, await asyncio.wait_for(got, 5))
    sender.close()
    receiver.close()


@app.route("/processes")
async def processes(scope, receive, send):
    """Programs of the app's own: output, exit code, a signal, and many at once."""
    done = await asyncio.create_subprocess_exec("sh", "-c", "cat; exit 3", stdin=-1, stdout=-1)
    out, _ = await done.communicate(b"piped")
    slow = await asyncio.create_subprocess_exec("sleep", "30")
    slow.terminate()
    many = await asyncio.gather(*(asyncio.create_subprocess_exec("true") for _ in range(10)))
    codes = await asyncio.gather(*(process.wait() for process in many))
    plain = subprocess.run(["sh", "-c", "exit 4"], check=False).returncode
    await answer(send, [out.decode(), done.returncode, await slow.wait(), codes, plain])


def square(number):
    return number * number


@app.route("/pools")
async def pools(scope, receive, send):
    """Pools of processes, by fork and by spawn. A spawned one starts an interpreter of its own and imports the app."""
    loop = asyncio.get_running_loop()
    results = []
    for method in ("spawn", "fork"):
        context = multiprocessing.get_context(method)
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            results.append(await loop.run_in_executor(pool, square, 7))
    await answer(send, results)


@app.route("/signal")
async def own_signal(scope, receive, send):
    """A handler of the app's own for a signal that oxicorn leaves to it."""
    loop = asyncio.get_running_loop()
    seen = asyncio.Event()
    loop.add_signal_handler(signal.SIGRTMIN + 3, seen.set)
    os.kill(os.getpid(), signal.SIGRTMIN + 3)
    await asyncio.wait_for(seen.wait(), 5)
    loop.remove_signal_handler(signal.SIGRTMIN + 3)
    await text(send, "seen")


@app.route("/python-signal")
async def python_signal(scope, receive, send):
    """`signal.signal` and no loop: the handler runs although the loop has nothing to do."""
    seen = asyncio.Event()
    loop = asyncio.get_running_loop()
    previous = signal.signal(signal.SIGALRM, lambda *_: loop.call_soon_threadsafe(seen.set))
    began = loop.time()
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    await asyncio.wait_for(seen.wait(), 5)
    signal.signal(signal.SIGALRM, previous)
    took = loop.time() - began
    await text(send, "seen" if took < 2 else f"seen after {took} s")


@app.route("/task-factory")
async def task_factory(scope, receive, send):
    """A factory of tasks, as Sentry installs one at its first request. The next request goes through it."""
    loop = asyncio.get_running_loop()

    def factory(loop, coroutine, **more):
        record("factory", name=getattr(coroutine, "__name__", ""))
        return asyncio.Task(coroutine, loop=loop, **more)

    loop.set_task_factory(factory if scope["query_string"] == b"on" else None)
    await text(send, "set")


@app.route("/current-task")
async def current_task(scope, receive, send):
    """`current_task()` is the same before and after a wait, and asyncio.timeout works in the first step."""
    first = asyncio.current_task()
    async with asyncio.timeout(5):
        await asyncio.sleep(0.01)
    try:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(5)
    except TimeoutError:
        timed_out = True
    await answer(send, [first is asyncio.current_task(), timed_out, first in asyncio.all_tasks()])


@app.route("/cancel-itself")
async def cancel_itself(scope, receive, send):
    asyncio.current_task().cancel()
    await asyncio.sleep(1)


@app.route("/unhandled-in-a-task")
async def unhandled(scope, receive, send):
    """A task of the app fails and nothing waits for it: asyncio's own handler tells it."""

    async def failing():
        raise ValueError("nobody waits for this")

    asyncio.create_task(failing())
    await asyncio.sleep(0.01)
    import gc

    gc.collect()
    await text(send, "hello")


@app.route("/busy")
async def busy(scope, receive, send):
    """Never waits for longer than a turn of the loop: the server must get its turns, too."""
    record("busy")
    path = os.path.join(os.path.dirname(os.environ["RECORD"]), "enough")
    turns = 0
    while not os.path.exists(path):
        turns += 1
        await asyncio.sleep(0)
    await text(send, str(turns > 10))


@app.route("/loop")
async def which_loop(scope, receive, send):
    loop = asyncio.get_running_loop()
    await answer(send, [f"{type(loop).__module__}.{type(loop).__name__}", loop.get_debug(), loop.is_running()])


@app.route("/flags")
async def flags(scope, receive, send):
    """What a program that the app starts would inherit, and what it sees of its own interpreter."""
    main = sys.modules["__main__"]
    await answer(send, {
        "executable": sys.executable,
        "argv": sys.argv,
        "main": getattr(main, "__file__", None),
        "no_site": sys.flags.no_site,
        "environment": sorted(name for name in os.environ if name.startswith(("LISTEN_", "NOTIFY_"))),
        "threads": threading.active_count(),
        "main_thread": threading.current_thread() is threading.main_thread(),
    })
