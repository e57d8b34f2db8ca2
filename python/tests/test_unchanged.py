"""Promise: a team moves by one word. Gunicorn's and Uvicorn's command lines and a `gunicorn.conf.py` run as they are
under `oxicorn`, behave as before, and what cannot mean the same is told at the start.

Each test starts the server that the words were written for, then oxicorn with the same words, and compares.
"""

import socket
import subprocess
import time

import pytest

from clients import Ended, Raw
from harness import PATIENCE, children, eventually, is_alive
from moving import (
    FILES,
    LINES,
    MAIN,
    SHOP,
    Line,
    answers,
    answers_of,
    differences,
    facts,
    line_of,
    pidfiles_of,
    settled_end,
    sockets_of,
)

pytestmark = pytest.mark.needs_oxicorn


@pytest.mark.parametrize("line", LINES, ids=str)
def test_a_command_line_serves_the_same_under_another_first_word(line, both):
    theirs, ours = both(line)
    assert len(theirs.workers(line.workers)) == line.workers
    assert len(ours.workers(line.workers)) == line.workers
    assert differences(answers_of(theirs, line), answers_of(ours, line)) == []
    assert pidfiles_of(ours) == pidfiles_of(theirs)
    assert sockets_of(ours) == sockets_of(theirs)
    for word in line.told:
        assert len(ours.told(word)) == 1, f"{word} means something else, and the start tells it once"
    for word in line.same:
        assert ours.told(word) == [], f"{word} means the same, and the start is silent"
    assert ours.stop() == 0
    assert pidfiles_of(ours) == {} and sockets_of(ours) == {}, "the end takes away what the start had made"


@pytest.mark.parametrize("line", FILES, ids=str)
def test_a_gunicorn_configuration_serves_the_same(line, both):
    theirs, ours = both(line)
    assert len(theirs.workers(line.workers)) == line.workers
    assert len(ours.workers(line.workers)) == line.workers
    assert differences(answers_of(theirs, line), answers_of(ours, line)) == []
    assert pidfiles_of(ours) == pidfiles_of(theirs)
    assert sockets_of(ours).keys() == sockets_of(theirs).keys()
    for word in line.told:
        assert len(ours.told(word)) == 1, f"{word} means something else, and the start tells it once"
    assert ours.stop() == 0


# --- what the words do ---


def test_the_mode_of_a_unix_socket_is_that_of_the_umask(both, run):
    assert sockets_of(run(line_of("gunicorn_django_behind_nginx"), "oxicorn")) == {"site.sock": "660"}
    assert [sockets_of(server) for server in both(line_of("proxied"))] == [{"second.sock": "640"}] * 2


def titles_of(server) -> list[str]:
    pids = [server.pid, *children(server.pid)]
    return [open(f"/proc/{pid}/cmdline").read().replace("\0", " ") for pid in pids if is_alive(pid)]


@pytest.mark.parametrize("name, word", [("gunicorn_django_behind_nginx", "mysite"), ("proxied", "proxied")])
def test_the_name_is_shown_in_the_list_of_processes(name, word, run):
    """Gunicorn shows it only with the package setproctitle, so there is no peer here."""
    server = run(line_of(name), "oxicorn")
    server.workers(2)
    titles = titles_of(server)
    assert len(titles) >= 3 and all(word in title for title in titles), titles


RECYCLING = {
    "gunicorn": Line("", "gunicorn", "-w 1 --threads 2 --max-requests 10 -b 127.0.0.1:{port} shop:app", SHOP),
    "uvicorn": Line("", "uvicorn", "main:app --port {port} --workers 2 --limit-max-requests 10", MAIN),
}


@pytest.mark.parametrize("program", RECYCLING)
def test_a_worker_is_replaced_after_its_requests_and_none_is_lost(program, both):
    line = RECYCLING[program]
    for server in both(line):
        first = int(server.get("/pid").body)
        counts: dict[int, int] = {}

        def probe(server=server, counts=counts, first=first) -> bool:
            try:
                pid = int(server.get("/pid").body)
            except (Ended, OSError):
                # Uvicorn ends what it has accepted and not yet served.
                assert server.program == "uvicorn", "a request was lost"
                return False
            counts[pid] = counts.get(pid, 0) + 1
            return len(counts) > (2 if program == "uvicorn" else 1) and not is_alive(first)

        eventually("another worker answers", probe)
        assert counts.get(first, 0) >= 8, "it had its requests before it went"


def closes_after(server) -> float:
    """Returns how long an idle connection lives."""
    with Raw(server) as wire:
        assert wire.get("/page").status == 200
        began = time.monotonic()
        wire.rest()
        return time.monotonic() - began


@pytest.mark.parametrize("program, words, files", [
    ("gunicorn", "-k gthread --threads 2 --keep-alive 1 -b 127.0.0.1:{port} shop:app", SHOP),
    ("uvicorn", "main:app --port {port} --timeout-keep-alive 1", MAIN),
])  # fmt: skip
def test_an_idle_connection_lives_as_long_as_the_words_say(program, words, files, both):
    line = Line("", program, words, files)
    theirs, ours = both(line)
    assert 0.7 < closes_after(ours) < 3 and 0.7 < closes_after(theirs) < 3


def test_uvicorns_limit_of_concurrency_answers_503(both):
    line = Line("", "uvicorn", "main:app --port {port} --limit-concurrency 3", MAIN)
    for server in both(line):
        wires = [Raw(server).request("GET", "/sleep?1") for _ in range(6)]
        statuses = [wire.response().status for wire in wires]
        assert set(statuses) == {200, 503}, f"{server.program}: {statuses}"
        for wire in wires:
            wire.close()


def test_uvicorns_headers_are_sent_or_told(both):
    line = line_of("uvicorn_limits")
    theirs, ours = both(line)
    assert theirs.get("/page").get("server") is None and ours.get("/page").get("server") is None
    assert theirs.get("/page").get("x-shop") == "books"
    assert ours.get("/page").get("x-shop") == "books" or ours.told("--header"), "neither sent nor told"


def test_the_lifespan_runs_under_both(both):
    line = line_of("uvicorn_implementations")
    for server in both(line):
        assert len(server.records("lifespan.startup")) == 1
        server.stop()
        assert len(server.records("lifespan.shutdown")) == 1


def test_uvicorns_log_config_is_that_of_the_app(both):
    line = line_of("uvicorn_environment")
    for server in both(line):
        server.get("/log?hello")
        wanted = "WARNING shop the shop says hello"
        eventually("the app's line", lambda server=server, wanted=wanted: wanted in server.text_of("app.log"))
        assert server.text_of("app.log").count(wanted) == 1


def test_uvicorn_writes_a_line_for_each_request_or_the_start_tells(both):
    line = Line("", "uvicorn", "main:app --host 127.0.0.1 --port {port}", MAIN)
    for server in both(line):
        with Raw(server) as wire:
            wire.get("/page?x=1")
        said = lambda server=server: '"GET /page?x=1 HTTP/1.1" 200' in server.text_of("stdout.log")
        if not server.told("access"):
            eventually(f"{server.program} writes a line for the request", said)


def test_a_line_for_each_request_ends_with_no_access_log(both):
    line = line_of("uvicorn_factory_on_a_socket")
    for server in both(line):
        server.get("/page?x=1")
        server.stop()
        assert "/page?x=1" not in server.text_of("stdout.log") + server.text_of("stderr.log")


def test_a_socket_is_inherited(run):
    for program, words, files in (
        ("gunicorn", "-b fd://{fd} --threads 2 shop:app", SHOP),
        ("uvicorn", "main:app --fd {fd}", MAIN),
    ):
        for first in (program, "oxicorn"):
            with socket.create_server(("127.0.0.1", 0)) as listener:
                fd = listener.fileno()
                line = Line("", program, words.replace("{fd}", str(fd)), files)
                server = run(line, first, serving=False, pass_fds=[fd])
                server.port = listener.getsockname()[1]
                eventually("it answers on the socket", lambda server=server: answers(server))


# --- proxies ---


@pytest.mark.parametrize("fields", [
    ("X-Forwarded-Proto: https",),
    ("X-Forwarded-Proto: http",),
    (),
])  # fmt: skip
def test_the_scheme_is_the_proxys(fields, both):
    line = line_of("proxied")
    schemes = [facts(server, *fields)["scheme"] for server in both(line)]
    assert schemes[0] == schemes[1]


def test_headers_of_another_scheme_are_heard_or_told(run):
    files = {**SHOP, "conf.py": 'workers = 1\nsecure_scheme_headers = {"X-SCHEME": "tls"}\nbind = "127.0.0.1:{port}"\n'}
    line = Line("", "gunicorn", "-c conf.py shop:app", files)
    theirs, ours = run(line, "gunicorn"), run(line, "oxicorn", serving=False)
    assert facts(theirs, "X-Scheme: tls")["scheme"] == "https"
    if ended := settled_end(ours):
        assert ended == 2 and "secure_scheme_headers" in ours.log()
    else:
        assert facts(ours, "X-Scheme: tls")["scheme"] == "https" or ours.told("secure_scheme_headers")


# --- which app is meant ---


@pytest.mark.parametrize("words, files", [
    ("shop/main.py -b 127.0.0.1:{port} -w 1", {"shop/main.py": MAIN["main.py"], "shop/toolkit.py": MAIN["toolkit.py"]}),
    ("run:app -b 127.0.0.1:{port} -w 1", {"run.py": MAIN["main.py"], "toolkit.py": MAIN["toolkit.py"]}),
    ("status:app -b 127.0.0.1:{port} -w 1", {"status.py": SHOP["shop.py"], "toolkit.py": MAIN["toolkit.py"]}),
    ("run main:app --host 127.0.0.1 --port {port}", MAIN),
])  # fmt: skip
def test_an_app_is_found_by_its_file_and_beside_the_words_of_commands(words, files, run):
    ours = run(Line("", "uvicorn", words, files), "oxicorn")
    assert ours.get("/page").text == "page"


@pytest.mark.parametrize("word, answer", [("start", "oxicorn run"), ("restart", "oxicorn reload")])
def test_words_of_other_programs_are_answered_with_ours(word, answer, run):
    ours = run(Line("", "gunicorn", word, SHOP), "oxicorn", serving=False)
    assert ours.wait_exit() == 2
    assert answer in ours.log()


# --- where the words are heard ---


def test_the_command_line_wins_over_the_variable_and_it_over_the_file(both):
    configuration = 'bind = "127.0.0.1:{port}"\nworkers = 1\nthreads = 2\nraw_env = ["FROM=file"]\n'
    files = {**SHOP, "gunicorn.conf.py": configuration}
    line = Line("", "gunicorn", "-w 3 shop:app", files, environment={
        "GUNICORN_CMD_ARGS": "--workers 2 --env FROM=variable",
        "WEB_CONCURRENCY": "4",
    })  # fmt: skip
    for server in both(line):
        assert len(server.workers(3)) == 3
        assert facts(server)["environment"]["FROM"] == "variable"


def test_a_port_of_the_environment_is_bound(both):
    """As platforms give it: gunicorn's default is 0.0.0.0:$PORT."""
    line = Line("", "gunicorn", "-w 1 --threads 2 shop:app", SHOP, environment={"PORT": "{port}"})
    for server in both(line):
        assert server.get("/page").text == "page"


def test_config_shows_the_line_of_the_configuration(run):
    ours = run(line_of("proxied"), "oxicorn")
    done = subprocess.run(
        [*ours.first_words(), "config", *ours.words.split()],
        cwd=ours.dir,
        env={name: value for name, value in ours.environment.items()},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    shown = [line for line in done.stdout.splitlines() if "workers.count" in line or line.strip().startswith("count")]
    assert shown and "production.py:5" in shown[0], done.stdout
