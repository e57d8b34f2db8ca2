"""An app that tells what its process is: environment, interpreter, threads; and starts processes of its own."""

import asyncio
import concurrent.futures
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time

from toolkit import Routes, answer, record

app = Routes()
NUMBER = random.getrandbits(64)
record("imported", number=NUMBER, loop=bool(asyncio._get_running_loop()))


def double(number):
    """Runs in a process of a pool."""
    return os.getpid(), number * 2, sys.flags.no_site, "oxicorn._oxicorn" in sys.modules


@app.route("/facts")
async def facts(scope, receive, send):
    await answer(send, {
        "pid": os.getpid(),
        "environment": dict(os.environ),
        "real": subprocess.run(["env", "-0"], capture_output=True, text=True, check=True).stdout.split("\0"),
        "argv": sys.argv,
        "path": sys.path,
        "prefix": sys.prefix,
        "executable": sys.executable,
        "no_site": sys.flags.no_site,
        "dev_mode": sys.flags.dev_mode,
        "optimize": sys.flags.optimize,
        "warnings": sys.warnoptions,
        "modules": sorted(sys.modules),
        "threads": len(threading.enumerate()),
        "cwd": os.getcwd(),
    })


@app.route("/pool")
async def pool(scope, receive, send):
    context = multiprocessing.get_context(scope["query_string"].decode())
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        found = await asyncio.get_running_loop().run_in_executor(executor, double, 21)
    await answer(send, list(found))


@app.route("/terminated-child")
async def terminated_child(scope, receive, send):
    """A fork of the app's own that waits, and is ended by SIGTERM, as the processes of a pool are."""
    lives, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(told, b".")
        time.sleep(60)
        os._exit(0)
    await asyncio.to_thread(os.read, lives, 1)
    os.kill(pid, signal.SIGTERM)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    await answer(send, os.waitstatus_to_exitcode(status))


@app.route("/subprocess")
async def child(scope, receive, send):
    code = "import sys, site; print(sys.prefix); sys.exit(3)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    said, _ = await process.communicate()
    blocking = await asyncio.to_thread(subprocess.run, ["sh", "-c", "exit 4"])
    await answer(send, [said.decode().strip(), process.returncode, blocking.returncode])


@app.route("/fork")
async def fork(scope, receive, send):
    """A fork of the app's own, whose child ends at once."""
    pid = os.fork()
    if pid == 0:
        os._exit(5)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    await answer(send, os.waitstatus_to_exitcode(status))


if os.environ.get("THREAD") == "until told":
    over = threading.Event()

    def work():
        over.wait()
        record("thread ended")

    threading.Thread(target=work, name="until told").start()

    async def lifespan(scope, receive, send):
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                over.set()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return

    app.lifespan = lifespan
elif os.environ.get("THREAD") == "for ever":
    threading.Thread(target=threading.Event().wait, name="for ever").start()
