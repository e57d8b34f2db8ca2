"""Starts and stops the servers that are compared, and reads what the kernel knows of their processes.

Owns: the command of each server, its temporary folder, and the figures of its processes. Refuses: to end a process that
it did not start, and to tune one server more than another.
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VENV = ROOT / "target/bench-python"
# A server imports FastAPI within a second. A machine that also compiles takes several times as long.
PATIENCE = 60


class Broken(Exception):
    """Says why something cannot be measured."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(ask, what, seconds=PATIENCE, pause=0.02):
    end = time.monotonic() + seconds
    while not (answer := ask()):
        if time.monotonic() > end:
            raise Broken(f"not within {seconds} s: {what}")
        time.sleep(pause)
    return answer


def parents():
    """Returns the parent of every process."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                stat = pathlib.Path(f"/proc/{name}/stat").read_text()
                state, parent = stat[stat.rindex(")") + 2 :].split()[:2]
                if state != "Z":
                    found[int(name)] = int(parent)
    return found


def descendants(pid):
    """Returns the process and all processes below it, the oldest first."""
    tree, of = [pid], parents()
    for one in tree:
        tree += sorted(child for child, parent in of.items() if parent == one)
    return tree


def cpu_ns(pid):
    """Returns the CPU time of a process, in nanoseconds: of all its threads, and also of those that have ended.

    This is the CPU-time clock of another process (clock_getcpuclockid). Its value is the sum of the first numbers in
    /proc/PID/task/*/schedstat, but the files of a thread are gone when the thread has ended.
    """
    return time.clock_gettime_ns((~pid << 3) | 2)


def memory(pid):
    """Returns figures of a process's memory in KiB: Pss, Rss, and more of /proc/PID/smaps_rollup."""
    text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(size) for name, size in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}


def settings(folder, port, workers, **tables):
    """Writes oxicorn's settings into the folder, and returns the path. `python__asgi_spec='"2.5"'` sets one more."""
    tables = {"server__bind": f'["127.0.0.1:{port}"]', "workers__count": workers} | tables
    tables |= {"control__socket": f'"{folder}/control.sock"'}
    path = folder / "supervisor.toml"
    path.write_text("".join(f"{key.replace('__', '.')} = {value}\n" for key, value in tables.items()))
    return path


class Server:
    """A running server: `name` is uvicorn, granian, gunicorn, gunicorn-uvicorn, oxicorn, or a name from `custom`.

    `pid` is its first process, which is `process` until Gunicorn is upgraded. `custom` has the commands of more
    servers, with {app} and {port} in them. `words` are more words of the command. With `threads` the app is one of
    WSGI.
    """

    def __init__(
        self,
        name,
        app,
        *,
        venv=VENV,
        workers=1,
        threads=0,
        words=(),
        environment=None,
        custom=None,
        paths=(HERE,),
        **toml,
    ):
        self.name, self.app, self.port = name, app, free_port()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="oxicorn-bench-"))
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("OXICORN_")}
        self.environment |= {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"}
        self.environment |= environment or {}
        bind, port, program = f"127.0.0.1:{self.port}", str(self.port), str(venv / "bin" / name.split("-")[0])
        uvicorn = [program, app, "--port", port, "--loop", "uvloop", "--http", "httptools", "--no-access-log"]
        granian = [program, "--interface", "asgi", "--port", port, "--loop", "uvloop", "--http", "1", app]
        gunicorn = [program, app, "-b", bind, "-w", str(workers), "--no-control-socket"]
        if threads:
            granian[1:7] = ["--interface", "wsgi", "--port", port, "--blocking-threads", str(threads)]
            toml |= {"python__threads": threads}
        if custom and name in custom:
            self.command = [word.format(app=app, port=port) for word in custom[name].split()]
        elif name == "uvicorn":
            self.command = [*uvicorn, "--log-level", "warning", "--workers", str(workers)]
        elif name == "granian":
            self.command = [*granian, "--log-level", "warning", "--workers", str(workers)]
        elif name == "gunicorn" and threads:
            self.command = [*gunicorn, "-k", "gthread", "--threads", str(threads)]
        elif name == "gunicorn":
            self.command = [*gunicorn, "-k", "asgi", "--asgi-loop", "uvloop"]
        elif name == "gunicorn-uvicorn":
            self.command = [*gunicorn, "-k", "uvicorn_worker.UvicornWorker"]
        elif name.startswith("oxicorn"):
            self.command = [program, app]
            self.environment["OXICORN_CONFIG"] = str(settings(self.folder, port, workers, **toml))
        else:
            raise Broken(f"there is no server {name}")
        self.command += words

    def __enter__(self):
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self.process.pid
        try:
            eventually(self.answers, f"{self.name} answers")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.folder)

    def log(self):
        return (self.folder / "log").read_text(errors="replace")

    def answers(self):
        if self.process.poll() is not None and self.pid == self.process.pid:
            raise Broken(f"{self.name} ended with {self.process.returncode}:\n{self.log()[-2000:]}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def processes(self):
        """Returns the pids of the server, the first process first, without multiprocessing's resource tracker."""
        return [pid for pid in descendants(self.pid) if not self.is_tracker(pid)]

    @staticmethod
    def is_tracker(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return "resource_tracker" in pathlib.Path(f"/proc/{pid}/cmdline").read_text()
        return True

    def cpu(self):
        """Returns the CPU time in nanoseconds of each process of the server."""
        return {pid: cpu_ns(pid) for pid in self.processes()}

    def stop(self):
        """Ends the server by SIGTERM, and what is left of its session after ten seconds by SIGKILL."""
        with contextlib.suppress(ProcessLookupError, Broken):
            os.kill(self.pid, signal.SIGTERM)
            eventually(lambda: self.process.poll() is not None and self.pid not in parents(), "it ends", 10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
