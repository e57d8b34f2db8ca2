"""Promise: `oxicorn import` writes a supervisor.toml from what a team has: a command line, a `gunicorn.conf.py`, a line
of a Procfile, a systemd unit. The file is clean for `oxicorn check`, and serves what the words served.
"""

import subprocess
import tomllib

import pytest

from harness import PATIENCE, command
from moving import FILES, LINES, SHOP, Line, answers_of, differences, pidfiles_of, sockets_of
from peers import Run

pytestmark = pytest.mark.needs_oxicorn


@pytest.fixture
def place():
    """Makes the folder of a line, without a start: `place(line)`."""
    mine: list[Run] = []

    def make(line: Line, program="oxicorn", **more) -> Run:
        mine.append(line.run(program, **more))
        return mine[-1]

    yield make
    for server in mine:
        server.close()


def oxicorn(server, *words, code=0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*command(), *words],
        cwd=server.dir,
        env=server.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
    return done


def imported(server, what: str) -> dict:
    """Imports into supervisor.toml of the folder, and returns what it says."""
    oxicorn(server, "import", what, "-o", "supervisor.toml")
    return tomllib.loads(server.path("supervisor.toml").read_text())


def serves_from_the_file(server, count: int) -> None:
    server.words = "-c supervisor.toml"
    # Gunicorn's file wins over this variable; in oxicorn the variable wins over the file.
    server.environment.pop("PORT", None)
    server.serving()
    assert len(server.workers(count)) == count


def first_words(line: Line, server: Run) -> str:
    return f"{line.program} {server.words}"


@pytest.mark.parametrize("line", LINES + FILES, ids=str)
def test_what_is_imported_is_clean_and_serves_the_same(line, place):
    ours, theirs = place(line), place(line, line.program)
    imported(ours, first_words(line, ours))
    done = oxicorn(ours, "check", "-c", "supervisor.toml")
    assert "settings are valid" in done.stdout and "warn" not in done.stdout.lower() + done.stderr.lower()
    serves_from_the_file(ours, line.workers)
    theirs.serving()
    found = differences(answers_of(theirs, line), answers_of(ours, line))
    lost = [entry for entry in found if entry.split(":")[0].removeprefix("environment.") in line.from_hooks]
    assert found == lost
    assert not lost or "hooks" in ours.text_of("supervisor.toml"), "what is lost stands in the file"
    assert pidfiles_of(ours) == pidfiles_of(theirs)
    assert sockets_of(ours).keys() == sockets_of(theirs).keys()
    assert ours.stop() == 0


def test_each_key_says_where_it_came_from_and_each_other_word_why_it_has_no_place(place):
    server = place(
        Line("", "gunicorn", "-w 3 --threads 2 --worker-tmp-dir /dev/shm -b 127.0.0.1:{port} shop:app", SHOP)
    )
    said = imported(server, f"gunicorn {server.words}")
    text = server.path("supervisor.toml").read_text()
    assert said["workers"]["count"] == 3 and said["python"]["threads"] == 2 and said["python"]["app"] == "shop:app"
    assert said["server"]["bind"] == [f"127.0.0.1:{server.port}"]
    for key, origin in (("count", "-w"), ("threads", "--threads"), ("bind", "-b")):
        near = near_of(text, key)
        assert origin in near, f"{key} has no origin: {near}"
    assert "worker-tmp-dir" in text and "#" in next(line for line in text.splitlines() if "worker-tmp-dir" in line)


def near_of(text: str, key: str) -> str:
    """Returns the line of a key, and the one before it, where a comment may stand."""
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(f"{key} ="))
    return "\n".join(lines[max(at - 1, 0) : at + 1])


def test_a_configuration_is_imported_with_its_lines(place):
    line = next(line for line in FILES if line.name == "proxied")
    server = place(line)
    server.write("proxied.conf.py", server.path("settings/production.py").read_text())
    said = imported(server, "proxied.conf.py")
    assert said["workers"]["count"] == 2 and said["python"]["threads"] == 2
    assert said["server"]["bind"][0] == f"127.0.0.1:{server.port}"
    assert "MODE=live" in said["python"]["raw_env"]
    assert said["process"]["pidfile"].endswith("proxied.pid")
    assert "proxied.conf.py:5" in near_of(server.path("supervisor.toml").read_text(), "count")


def test_a_procfile_is_imported(place):
    server = place(Line("", "gunicorn", "", SHOP))
    server.write("Procfile", f"web: gunicorn shop:app --workers 2 -b 127.0.0.1:{server.port} --log-file -\n")
    said = imported(server, "Procfile")
    assert said["workers"]["count"] == 2 and said["python"]["app"] == "shop:app"
    serves_from_the_file(server, 2)


UNIT = """
[Unit]
Description=the shop
After=network.target

[Service]
User=www-data
WorkingDirectory={dir}
Environment="MODE=live"
ExecStart=/srv/venv/bin/gunicorn \\
          --workers 2 \\
          --bind unix:{dir}/shop.sock \\
          shop:app
ExecReload=/bin/kill -s HUP $MAINPID

[Install]
WantedBy=multi-user.target
"""


def test_a_unit_of_systemd_is_imported(place):
    server = place(Line("", "gunicorn", "", SHOP, uds="{dir}/shop.sock"))
    server.write("shop.service", UNIT)
    said = imported(server, "shop.service")
    assert said["workers"]["count"] == 2 and said["python"]["app"] == "shop:app"
    assert said["server"]["bind"] == [f"unix:{server.dir}/shop.sock"]
    serves_from_the_file(server, 2)


def test_a_path_before_the_first_word_means_nothing(place):
    server = place(Line("", "uvicorn", "", SHOP))
    said = imported(server, "/srv/venv/bin/uvicorn main:app --host 0.0.0.0 --port 9000 --workers 4")
    assert said["server"]["bind"] == ["0.0.0.0:9000"] and said["workers"]["count"] == 4


def test_without_an_option_the_file_goes_to_the_output(place):
    server = place(Line("", "gunicorn", "", SHOP))
    done = oxicorn(server, "import", "gunicorn -w 5 shop:app")
    assert tomllib.loads(done.stdout)["workers"]["count"] == 5
    assert not server.path("supervisor.toml").exists()


@pytest.mark.parametrize("what, word", [
    ("none.conf.py", "none.conf.py"),
    ("nginx -g daemon", "nginx"),
])  # fmt: skip
def test_what_cannot_be_imported_is_refused_with_a_sentence(what, word, place):
    server = place(Line("", "gunicorn", "", SHOP))
    done = oxicorn(server, "import", what, "-o", "supervisor.toml", code=2)
    assert word in done.stderr and "Traceback" not in done.stderr
    assert not server.path("supervisor.toml").exists()


@pytest.mark.parametrize("what, word", [
    ("gunicorn -w many shop:app", "many"),
    ("gunicorn --no-such-flag -w 2 shop:app", "no-such-flag"),
])  # fmt: skip
def test_words_that_mean_nothing_are_refused_or_stand_in_the_file(what, word, place):
    server = place(Line("", "gunicorn", "", SHOP))
    done = subprocess.run(
        [*command(), "import", what], cwd=server.dir, env=server.environment, capture_output=True, text=True
    )
    assert done.returncode in (0, 2) and word in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_a_file_that_exists_is_not_overwritten(place):
    server = place(Line("", "gunicorn", "", SHOP))
    server.write("supervisor.toml", "# mine\n")
    oxicorn(server, "import", "gunicorn -w 2 shop:app", "-o", "supervisor.toml", code=2)
    assert server.path("supervisor.toml").read_text() == "# mine\n"
