"""Promise: what the pages `from-gunicorn.md` and `from-uvicorn.md` show before and after does the same.

Every block of the pages is run as it stands there: before with the real Gunicorn and Uvicorn, after with oxicorn.
Only addresses and folders are those of the test. tests/docker/run.py builds the Dockerfiles and starts the compose
files.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from clients import Raw
from guides import ROOT, Block, block, blocks
from harness import APPS, PATIENCE, children, command, eventually
from peers import Run, free_port, until_gone

pytestmark = pytest.mark.needs_oxicorn

GUNICORN, UVICORN = "from-gunicorn.md", "from-uvicorn.md"

#: Debian's `nobody` and `nogroup`.
NOBODY = 65534


def files_of(project: str) -> dict[str, str]:
    folder = APPS / "guides" / project
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.*")}


def page_text(page: str) -> str:
    return " ".join((ROOT / "docs/guides" / page).read_text().split())


FILES = {**files_of("shop"), **files_of("mysite")}


#: Keeps the commands of a test from the services that run beside it: a folder for the socket, and a name.
APART = {"RUNTIME_DIRECTORY": "{dir}", "OXICORN_PROCESS__NAME": f"guides-{os.getpid()}"}


def words_of(text: str) -> tuple[str, str]:
    """Returns the program of a command and its words, with the addresses and folders of a test."""
    program, _, words = text.strip().partition(" ")
    words = words.replace("0.0.0.0", "127.0.0.1").replace("8000", "{port}").replace("/run/", "{dir}/")
    return program.rpartition("/")[2], words


@contextmanager
def running(text: str, files: dict[str, str] | None = None, environment: dict[str, str] | None = None):
    """Runs a command of a page in a folder with the apps of the guides, until it serves."""
    program, words = words_of(text)
    uds = re.search(r"--uds (\S+)", words)
    files, environment = {**FILES, **(files or {})}, {**APART, **(environment or {})}
    run = Run(program, words, files=files, environment=environment, uds=uds and uds[1])
    try:
        yield run.serving()
    finally:
        run.close()


# --- what is compared ---

ASKED = [
    ("GET", "/", [], b""),
    ("GET", "/client?a=1&b=%20", [], b""),
    ("GET", "/client", ["X-Forwarded-Proto: https"], b""),
    ("HEAD", "/", [], b""),
    ("POST", "/echo?x=%C3%A4", ["Content-Type: text/plain"], b"a body"),
    ("GET", "/missing", [], b""),
]


def ask(run: Run, method: str, target: str, fields: list[str], body: bytes) -> tuple:
    with Raw(run) as wire:
        wire.request(method, target, "User-Agent: guide", "Connection: close", *fields, body=body)
        answer = wire.response(method)
    return method, target, answer.status, answer.get("content-type"), answer.get("content-length"), answer.body


def answers(run: Run) -> list[tuple]:
    return [ask(run, *one) for one in ASKED]


def access_lines(run: Run) -> list[str]:
    """Waits for the lines of the requests of `answers`, and returns them without the time."""

    def probe() -> list[str] | None:
        lines = [line for line in run.text_of("stdout.log").splitlines() if '"guide"' in line]
        return lines if len(lines) == len(ASKED) else None

    return sorted(re.sub(r" \[[^]]+\]", "", line) for line in eventually("the access log is complete", probe))


def workers_of(text: str) -> int:
    given = re.search(r"(?:-w|--workers) (\d+)", text)
    return int(given[1]) if given else 1


def told(run: Run) -> list[str]:
    return [entry["message"] for entry in run.events("compat")]


def compare(before: str, after: str, *, workers: int | None = None, access: bool = False, ends: tuple = (0, 0), **more):
    """Runs both commands, and asserts that they answer alike, with so many workers, and end as they should."""
    workers = workers or workers_of(before)
    seen = []
    for text in (before, after):
        with running(text, **more) as run:
            said = answers(run)
            lines = access_lines(run) if access else []
            pids = run.workers(workers)
            assert len(pids) == workers, text
            seen.append((said, lines))
            code = run.stop()
            assert code == ends[len(seen) - 1], f"{text}: exit code {code}"
    assert seen[1][0] == seen[0][0]
    assert seen[1][1] == seen[0][1]


# --- the commands ---


def commands(page: str, heading: str) -> list[Block]:
    return [one for one in blocks(page) if one.heading == heading and one.language == "diff" and not one.name]


def named(one: Block) -> str:
    return one.before.strip()[:60]


@pytest.mark.parametrize("shown", commands(GUNICORN, "The command"), ids=named)
def test_a_command_of_gunicorn_runs_with_another_first_word(shown):
    assert shown.before.split()[1:] == shown.after.split()[1:]
    compare(shown.before, shown.after, access="--access-logfile" in shown.before)


@pytest.mark.parametrize("shown", commands(UVICORN, "The command"), ids=named)
def test_a_command_of_uvicorn_runs_with_another_first_word(shown):
    assert shown.before.split()[1:] == shown.after.split()[1:]
    # One process of Uvicorn ends by the signal.
    compare(shown.before, shown.after, ends=(0 if workers_of(shown.before) > 1 else -signal.SIGTERM, 0))


def test_fastapi_run_is_a_path_and_a_host():
    (text,) = re.findall(r"`fastapi run main.py` is `([^`]+)`", page_text(UVICORN))
    with running(text) as run:
        assert ask(run, *ASKED[0])[-1] == b'{"hello":"world"}'


# --- gunicorn.conf.py ---

CONF = block(GUNICORN, "gunicorn.conf.py", "gunicorn.conf.py").text
IN_CONF = {"gunicorn.conf.py": CONF.replace("0.0.0.0", "127.0.0.1")}
COUNT = 2 * multiprocessing.cpu_count() + 1


def test_the_configuration_of_gunicorn_stays_as_it_is():
    (shown,) = commands(GUNICORN, "gunicorn.conf.py")
    seen = []
    for text in (shown.before, shown.after, "oxicorn app:app"):
        with running(text, files=IN_CONF, environment={"APP_PORT": "{port}"}) as run:
            seen.append((answers(run), access_lines(run)))
            assert len(run.workers(COUNT)) == COUNT
            assert len(re.findall(r"worker \d+ of \d+ starts", run.log())) == COUNT, "post_fork runs in each worker"
            assert run.stop() == 0
    assert seen[1] == seen[0]
    assert seen[2] == seen[0]


def test_each_value_of_the_configuration_has_its_line():
    (shown,) = re.findall(r"with its line \(`([^`]+)`", (ROOT / "docs/guides" / GUNICORN).read_text())
    run = Run("oxicorn", "", files={**FILES, **IN_CONF}, environment=APART)
    try:
        assert shown.replace("= 5", f"= {COUNT}") in oxicorn(run, "config app:app").splitlines()
    finally:
        run.close()


# --- a service manager starts it ---


def oxicorn(run: Run, words: str, *codes: int) -> str:
    """Runs another command of oxicorn in the folder of a run, and returns what it says."""
    done = subprocess.run(
        [*command(), *shlex.split(run.fill(words))],
        cwd=run.dir,
        env=run.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode in (0, *codes), f"{words}: {done.returncode}\n{done.stdout}"
    return done.stdout


def programs(folder: Path) -> Path:
    """Makes a folder with the three programs, as a virtual environment has them."""
    folder.mkdir(parents=True)
    for name in ("gunicorn", "uvicorn", "oxicorn"):
        words = command() if name == "oxicorn" else [sys.executable, "-m", name]
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


class Unit(Run):
    """The command of a unit, started as systemd starts it: for a user without rights, with a socket for its state."""

    def __init__(self, unit: str) -> None:
        lines = [line.split("=", 1) for line in unit.splitlines() if "=" in line]
        self.keys = dict(lines)
        folder = self.keys["WorkingDirectory"]
        here = lambda text: text.replace(folder, "{dir}").replace("8000", "{port}")
        self.line, self.reload_line = here(self.keys["ExecStart"]), here(self.keys.get("ExecReload", ""))
        super().__init__("sh", "", files=FILES)
        programs(self.dir / ".venv/bin")
        (self.dir / "run").mkdir()
        for path in (self.dir, self.dir / "run"):
            os.chown(path, NOBODY, NOBODY)
        self.state = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.state.bind(str(self.dir / "notify"))
        os.chmod(self.dir / "notify", 0o777)
        self.state.settimeout(PATIENCE)
        self.environment |= {"NOTIFY_SOCKET": str(self.dir / "notify")}
        if self.keys.get("RuntimeDirectory"):
            self.environment |= {"RUNTIME_DIRECTORY": str(self.dir / "run")}

    def confined(self, line: str) -> list[str]:
        """What the unit says of the user, as setpriv(1) says it; one right lets nobody read the Python of root."""
        words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
        words += [f"--{kind}=-all,+dac_read_search" for kind in ("bounding-set", "inh-caps", "ambient-caps")]
        return words + shlex.split(self.fill(line))

    def first_words(self) -> list[str]:
        return self.confined(self.line)

    def is_ready(self) -> None:
        while "READY=1" not in self.state.recv(4096).decode().splitlines():
            pass

    def reload(self) -> int:
        line = self.reload_line.replace("$MAINPID", str(self.pid))
        return subprocess.run(self.confined(line), cwd=self.dir, env=self.environment, timeout=PATIENCE).returncode

    def brings_other_workers(self, count: int) -> None:
        old = self.workers(count)
        self.reload()
        eventually("a reload brings other workers", lambda: not old & self.workers(count))

    def close(self) -> None:
        self.state.close()
        super().close()


def first_word_alone(shown: Block) -> str:
    """Returns the file before, with nothing but the word changed."""
    return re.sub(r"/(gunicorn|uvicorn) ", "/oxicorn ", shown.before)


@pytest.mark.parametrize(
    ("page", "heading", "name"),
    [(GUNICORN, "systemd", "mysite.service"), (UVICORN, "systemd", "shop.service")],
    ids=["gunicorn", "uvicorn"],
)
def test_a_unit_starts_reloads_and_stops(page, heading, name):
    shown = block(page, heading, name)
    said = []
    for text in (shown.before, first_word_alone(shown), shown.after):
        unit = Unit(text)
        try:
            unit.serving()
            if unit.keys["Type"] == "notify":
                unit.is_ready()
            said.append(answers(unit))
            count = workers_of(unit.line)
            assert len(unit.workers(count)) == count
            if unit.reload_line:
                unit.brings_other_workers(count)
            assert unit.stop() == 0
        finally:
            unit.close()
    assert said[1] == said[0]
    assert said[2] == said[0]


def test_a_unit_is_told_when_its_new_code_does_not_start():
    unit = Unit(block(GUNICORN, "systemd", "mysite.service").after)
    try:
        unit.serving()
        good = unit.path("mysite/urls.py").read_text()
        unit.write("mysite/wsgi.py", "def (")
        assert unit.reload() != 0
        assert ask(unit, *ASKED[0])[2] == 200, "the old code serves on"
        assert good == unit.path("mysite/urls.py").read_text()
    finally:
        unit.close()


class Activated(Run):
    """A command that gets a listening socket as systemd passes it."""

    def __init__(self, text: str, listening: socket.socket) -> None:
        program, words = words_of(text)
        super().__init__(program, words, files=FILES)
        self.listening = listening
        self.port = listening.getsockname()[1]

    def first_words(self) -> list[str]:
        with_pid = 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@" 3<&' + str(self.listening.fileno())
        self.pass_fds = (self.listening.fileno(),)
        return ["bash", "-c", with_pid, *super().first_words()]


def test_a_socket_unit_keeps_the_clients_while_the_servers_change():
    """What systemd does with `mysite.socket` at `systemctl restart`, after the word in the unit has changed."""
    (shown,) = commands(GUNICORN, "systemd")
    assert "ListenStream=127.0.0.1:8000" in block(GUNICORN, "systemd", "mysite.socket").text
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        before = Activated(shown.before, listening).serving()
        try:
            said, load = answers(before), Load(listening.getsockname()[1])
            load.has_answers(50)
            assert before.stop() == 0
            after = Activated(shown.after, listening).serving()
            try:
                load.has_answers(50)
                assert load.end() == []
                assert answers(after) == said
                assert len(after.workers(workers_of(shown.after))) == workers_of(shown.after)
                assert after.stop() == 0
            finally:
                after.close()
        finally:
            before.close()


class Load:
    """Clients that ask with one connection for each request, and never again. Returns what was lost at its end."""

    def __init__(self, port: int) -> None:
        self.port, self.answered, self.lost, self.over = port, 0, [], False
        self.threads = [threading.Thread(target=self._client, daemon=True) for _ in range(4)]
        for thread in self.threads:
            thread.start()

    def _client(self) -> None:
        while not self.over:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 30) as connection:
                    connection.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
                    answer = b"".join(iter(lambda: connection.recv(65536), b""))
                if answer.startswith(b"HTTP/1.1 200 ") and b"world" in answer:
                    self.answered += 1
                else:
                    self.lost.append(answer[:100])
            except OSError as error:
                self.lost.append(error)

    def has_answers(self, more: int) -> None:
        wanted = self.answered + more
        eventually(f"{more} more answers", lambda: self.answered >= wanted)

    def end(self) -> list:
        self.over = True
        for thread in self.threads:
            thread.join()
        return self.lost


class Supervised(Run):
    """supervisord, with a section of a page and what it needs around it."""

    def __init__(self, section: str) -> None:
        super().__init__("supervisord", "-n -c supervisord.conf", files=FILES)
        folder = re.search(r"^directory=(.+)$", section, re.M)[1]
        section = section.replace(folder, str(self.dir)).replace("8000", str(self.port))
        section = re.sub(r"^user=.+$", "user=root", section, flags=re.M)
        own = "[supervisord]\nnodaemon=true\nuser=root\nlogfile={dir}/supervisord.log\npidfile={dir}/supervisord.pid\n"
        self.write("supervisord.conf", f"{own}\n{section}\nstdout_logfile={{dir}}/stdout.log\n")
        programs(self.dir / ".venv/bin")

    def first_words(self) -> list[str]:
        return ["/usr/bin/supervisord"]


@pytest.mark.parametrize("page", [GUNICORN, UVICORN])
def test_supervisord_starts_and_stops_it(page):
    shown = block(page, "supervisord and a Procfile", "supervisord.conf")
    said = []
    for text in (shown.before, first_word_alone(shown), shown.after):
        run = Supervised(text)
        try:
            run.serving()
            said.append(answers(run))
            count = workers_of(text)
            assert len(run.workers(count)) == count
            assert run.stop() == 0
            assert "waiting for" in run.text_of("supervisord.log")
            assert "killing" not in run.text_of("supervisord.log")
        finally:
            run.close()
    assert said[1] == said[0]
    assert said[2] == said[0]


@pytest.mark.parametrize("page", [GUNICORN, UVICORN])
def test_a_line_of_a_procfile(page):
    shown = block(page, "supervisord and a Procfile", "Procfile")
    before, after = (text.partition("web: ")[2].replace("$PORT", "{port}") for text in (shown.before, shown.after))
    workers = 2 if page == UVICORN else 3
    environment = {"PORT": "{port}", "WEB_CONCURRENCY": str(workers)}
    compare(before, after, workers=workers, environment=environment)


# --- behind nginx ---


class Nginx:
    """The real nginx with the file of a page, in front of a run."""

    def __init__(self, conf: str, folder: Path, ports: dict[str, int]) -> None:
        self.folder, self.port = folder, free_port()
        folder.mkdir()
        self.use(conf, ports)
        around = "daemon off; pid nginx.pid; error_log error.log; events {} worker_processes 1;\n"
        paths = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in "client_body proxy fastcgi uwsgi scgi".split())
        (folder / "main.conf").write_text(f"{around}http {{ access_log off; {paths} include {folder}/site.conf; }}\n")
        self.process = subprocess.Popen(self._words(), stderr=subprocess.DEVNULL)
        eventually("nginx accepts", self._accepts)

    def use(self, conf: str, ports: dict[str, int]) -> None:
        """Writes the file of the site, with these ports in the place of the addresses that it names."""
        for address, port in ports.items():
            assert f"server {address};" in conf
            conf = conf.replace(f"server {address};", f"server 127.0.0.1:{port};")
        (self.folder / "site.conf").write_text(conf.replace("listen 80;", f"listen 127.0.0.1:{self.port};"))

    def reload(self) -> None:
        """Lets nginx read its file again, and waits until its old workers have ended."""
        old = children(self.process.pid)
        subprocess.run([*self._words(), "-s", "reload"], check=True, stderr=subprocess.DEVNULL, timeout=PATIENCE)
        for pid in old:
            until_gone(pid)

    def connect(self, timeout: float = PATIENCE) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)

    def _words(self) -> list[str]:
        return ["nginx", "-p", str(self.folder), "-c", str(self.folder / "main.conf")]

    def _accepts(self) -> bool:
        try:
            self.connect().close()
        except OSError:
            return False
        return True


def service(compose: str) -> str:
    """Returns the command of the service `web` in a compose file."""
    return re.search(r"^ +command: (.+)$", compose, re.M)[1]


CLAIMS = ["X-Forwarded-For: 203.0.113.9", "X-Forwarded-Host: evil.example", "X-Forwarded-Port: 1"]


@pytest.mark.parametrize("page", [GUNICORN, UVICORN])
def test_the_service_of_a_compose_file_behind_nginx(page, tmp_path):
    shown = block(page, "Compose, with nginx in front", "compose.yaml")
    conf = block(GUNICORN, "Compose, with nginx in front", "nginx.conf").text
    said = []
    for at, text in enumerate((shown.before, shown.after)):
        with running(service(text)) as run:
            nginx = Nginx(conf, tmp_path / str(at), {"web:8000": run.port})
            try:
                said.append((answers(nginx), ask(nginx, "GET", "/client", CLAIMS, b"")))
            finally:
                nginx.close()
            assert run.stop() == 0
    assert said[1] == said[0]
    # With "*" a client may choose its address, under both; it may not choose the host that the app sees.
    assert json.loads(said[1][1][-1]) == {"client": "203.0.113.9", "scheme": "http", "host": "test"}


def lines_of(page: str, heading: str, sign: str = "$ ") -> list[str]:
    """Returns the lines after the prompt, in all blocks under this heading."""
    text = "".join(one.text for one in blocks(page) if one.heading == heading and one.language == "console")
    return [line[2:] for line in text.splitlines() if line.startswith(sign)]


def test_a_move_behind_nginx_loses_no_request(tmp_path):
    conf = block(GUNICORN, "Compose, with nginx in front", "nginx.conf").text.replace("web:8000", "127.0.0.1:8000")
    with running("gunicorn mysite.wsgi -w 3 -b 127.0.0.1:8000 -p gunicorn.pid") as before:
        nginx = Nginx(conf, tmp_path / "nginx", {"127.0.0.1:8000": before.port})
        after = Run("oxicorn", "", files=FILES, environment=APART)
        load = Load(nginx.port)
        try:
            said = answers(nginx)
            for line in lines_of(GUNICORN, "Moving in production"):
                load.has_answers(30)
                line = line.replace("8000", str(before.port)).replace("8001", str(after.port))
                line = line.replace("/etc/nginx/conf.d/mysite.conf", str(nginx.folder / "site.conf"))
                if line.startswith("oxicorn mysite"):
                    after.words = line.partition(" ")[2]
                    after.serving()
                elif line.startswith("oxicorn "):
                    oxicorn(after, line.partition(" ")[2])
                elif line == "nginx -s reload":
                    nginx.reload()
                else:
                    subprocess.run(["bash", "-c", line], cwd=before.dir, check=True, timeout=PATIENCE)
            assert before.wait_exit() == 0, "the last line has stopped Gunicorn"
            load.has_answers(30)
            assert load.end() == []
            assert answers(nginx) == said
            assert after.stop() == 0
        finally:
            after.close()
            nginx.close()


# --- the second step ---


def test_an_imported_configuration_is_what_the_page_shows_and_serves_the_same():
    (line,) = lines_of(GUNICORN, "Second step: supervisor.toml")
    environment = {**APART, "APP_PORT": "8000"}
    with running("gunicorn app:app", files=IN_CONF, environment={"APP_PORT": "{port}"}) as run:
        said = answers(run), access_lines(run)
        run.stop()
    run = Run("oxicorn", "", files={**FILES, "gunicorn.conf.py": CONF}, environment=environment)
    try:
        imported(run, line, block_of_toml(GUNICORN).replace("count = 5", f"count = {COUNT}"))
        assert (answers(run), access_lines(run)) == said
        assert len(run.workers(COUNT)) == COUNT
        assert run.stop() == 0
    finally:
        run.close()


def test_an_imported_command_is_what_the_page_shows_and_serves_the_same():
    (line,) = lines_of(UVICORN, "Second step: supervisor.toml")
    typed = re.search(r"'(.+)'", line)[1]
    with running(typed) as run:
        said = answers(run)
        run.stop()
    run = Run("oxicorn", "", files=FILES, environment=APART)
    try:
        imported(run, line, block_of_toml(UVICORN))
        assert answers(run) == said
        assert len(run.workers(workers_of(typed))) == workers_of(typed)
        assert run.stop() == 0
    finally:
        run.close()


def block_of_toml(page: str) -> str:
    (found,) = (one for one in blocks(page) if one.language == "toml")
    return found.text


def imported(run: Run, line: str, shown: str) -> None:
    """Runs the line of a page, compares the file with the one shown, and starts `oxicorn` alone on this port."""
    oxicorn(run, line.partition(" ")[2])
    assert run.text_of("supervisor.toml") == shown
    run.write("supervisor.toml", shown.replace("0.0.0.0:8000", f"127.0.0.1:{run.port}"))
    oxicorn(run, "check")
    run.serving()


# --- the tables ---


def table(page: str, head: str) -> list[list[str]]:
    """Returns the rows of the table whose first column is called so."""
    lines = (ROOT / "docs/guides" / page).read_text().splitlines()
    at = next(at for at, line in enumerate(lines) if line.startswith(f"| {head} |"))
    rows = []
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_the_table_names_each_command_of_gunicornc():
    from gunicorn.ctl.handlers import CommandHandlers

    commands = set()
    for name in CommandHandlers.help(None)["commands"]:
        name = name.replace("[N]", "N").replace("<PID>", "PID")
        word, several, choice = name.partition(" [")
        commands |= {f"{word} {one}" for one in choice.strip("]").split("|")} if several else {name}
    told = {name for row in table(GUNICORN, "`gunicornc -c …`") for name in quoted(row[0])}
    assert told - {"-s SOCKET", "-j"} == commands


def test_the_commands_of_the_tables_do_what_they_say():
    rows = [*table(GUNICORN, "with Gunicorn"), *table(GUNICORN, "`gunicornc -c …`"), *table(UVICORN, "with Uvicorn")]
    told = {name for row in rows for name in quoted(row[1]) if name.startswith("oxicorn ")}
    done = set()

    with running("oxicorn mysite.asgi -w 2 -b 127.0.0.1:8000") as run:

        def does(line: str) -> str:
            done.add(line)
            words = line.removeprefix("oxicorn ").replace("N", "1")
            # A check reads the words of a start.
            return oxicorn(run, f"{words} mysite.asgi -b 127.0.0.1:{run.port}" if "check" in words else words)

        def serve(count: int) -> bool:
            # The exit code is 1 as long as not all workers serve.
            workers = json.loads(oxicorn(run, "status --json", 1))["workers"]
            return [worker["state"] for worker in workers] == ["serving"] * count

        eventually("both workers serve", lambda: serve(2))
        assert "2 of 2 workers serve" in does("oxicorn status")
        assert "count = 2  # from --workers" in does("oxicorn config --running")
        assert "count = " in does("oxicorn config")
        does("oxicorn check"), does("oxicorn check --deep"), does("oxicorn health")
        assert "Usage:" in does("oxicorn --help")
        for more, fewer in (("oxicorn scale +1", "oxicorn scale -1"), ("oxicorn scale +N", "oxicorn scale -N")):
            does(more)
            assert serve(3)
            does(fewer)
            assert serve(2)
        for number, count in ((signal.SIGTTIN, 3), (signal.SIGTTOU, 2)):
            os.kill(run.pid, number)
            eventually(f"{count} workers serve after {number.name}", lambda count=count: serve(count))
        os.kill(run.pid, signal.SIGUSR1)
        os.kill(run.pid, signal.SIGWINCH)
        old = run.workers(2)
        os.kill(min(old), signal.SIGTERM)
        eventually("another worker takes the slot", lambda: min(old) not in run.workers(2) and serve(2))
        for line, number in (("oxicorn reload", signal.SIGHUP), ("oxicorn upgrade", signal.SIGUSR2)):
            old = run.workers(2)
            does(line)
            assert not old & run.workers(2)
            old = run.workers(2)
            os.kill(run.pid, number)
            eventually(f"{number.name} replaces the workers", lambda old=old: not old & run.workers(2))
        does("oxicorn stop")
        assert run.wait_exit() == 0
    assert told - done == {"oxicorn stop --now"}


@pytest.mark.parametrize("now", ["stop --now", "INT", "QUIT"])
def test_a_quick_stop(now):
    with running("oxicorn mysite.asgi -w 2 -b 127.0.0.1:8000") as run:
        if now.startswith("stop"):
            oxicorn(run, now)
        else:
            os.kill(run.pid, signal.Signals[f"SIG{now}"])
        assert run.wait_exit() == 0


# --- what differs ---


def test_what_differs_from_gunicorn_in_an_answer_and_in_the_log():
    """The paragraphs on the address of the client, the Server header, the access log and the number of workers."""
    proxied = ("GET", "/client", ["X-Forwarded-For: 203.0.113.9"], b"")
    words = "-b 127.0.0.1:8000 --access-logfile - --access-logformat '%(h)s \"%(a)s\" %({x-request-id}i)s'"
    seen, server = [], []
    for program, app in (
        ("gunicorn", "app:app"),
        ("oxicorn", "app:app"),
        ("gunicorn -k uvicorn_worker.UvicornWorker", "main:app"),
        ("oxicorn -k uvicorn_worker.UvicornWorker", "main:app"),
    ):
        with running(f"{program} {app} {words}") as run:
            seen.append(json.loads(ask(run, *proxied)[-1])["client"])
            with Raw(run) as wire:
                server.append(wire.get("/").get("server"))
            lines = lambda run=run: [line for line in run.text_of("stdout.log").splitlines() if "203.0.113.9" in line]
            if "oxicorn" in program:
                (line,) = eventually("the access log has its line", lines)
                assert re.fullmatch(r'203\.0\.113\.9 "guide" [0-9a-f]{24}', line)
            assert run.stop() == 0
            if "gunicorn -k" in program:
                assert not any('"guide"' in line for line in lines()), "Uvicorn's worker has lines of its own"
    assert seen == ["127.0.0.1", "203.0.113.9", "203.0.113.9", "203.0.113.9"]
    assert server == ["gunicorn", None, "uvicorn", None]
    with running("oxicorn app:app", environment={"OXICORN_SERVER__BIND": "127.0.0.1:{port}"}) as run:
        assert len(run.workers(os.cpu_count())) == os.cpu_count(), "a command without a flag has oxicorn's default"


def test_the_worker_may_answer_the_health_check_of_a_django_app():
    (name, value) = re.search(r"`ENV (\w+)=(\S+)`", page_text(GUNICORN)).groups()
    for environment, status in (({}, 400), ({name: value}, 200)):
        words = "oxicorn mysite.wsgi -b 127.0.0.1:8000 --access-logfile -"
        with running(words, environment=environment) as run:
            oxicorn(run, "health")
            run.stop()
            assert f'"GET /health HTTP/1.1" {status} ' in run.log()


# --- what the pages say of the start ---


@pytest.mark.parametrize(("page", "heading"), [(GUNICORN, "From Gunicorn"), (UVICORN, "From Uvicorn")])
def test_a_check_says_what_the_page_shows(page, heading):
    (shown,) = (one for one in blocks(page) if one.heading == heading)
    line, *said = shown.text.splitlines()
    run = Run("oxicorn", "", files=FILES, environment=APART)
    try:
        lines = oxicorn(run, line.removeprefix("$ oxicorn ")).splitlines()
        assert [" ".join(one.split()) for one in said] == lines
    finally:
        run.close()


def test_every_block_of_the_pages_is_run():
    here = Path(__file__).read_text()
    docker = (ROOT / "tests/docker/run.py").read_text()
    for page in (GUNICORN, UVICORN):
        for one in blocks(page):
            text = docker if one.name in ("Dockerfile",) else here
            assert f'"{one.heading}"' in text, f"{page}: nothing runs what stands under {one.heading}"
            assert not one.name or f'"{one.name}"' in text, f"{page}: nothing runs {one.name} under {one.heading}"
