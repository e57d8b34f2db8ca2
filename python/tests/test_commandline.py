"""Promise: Gunicorn's and Uvicorn's command lines mean here what they mean there, and what cannot is told. The tables
have every setting of the installed versions."""

import json
import shlex

import pytest

from oxicorn import _compat


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Read:
    def __init__(self, line, environ):
        reading = _compat.read(shlex.split(line), environ)
        self.dialect, self.words = reading.dialect, shlex.join(reading.words)
        self.compat = json.loads(reading.compat) if reading.compat else None
        got = self.compat or {"settings": [], "notes": [], "problems": []}
        self.settings = {entry["key"]: entry["value"] for entry in got["settings"]}
        self.origins = {entry["key"]: (entry["origin"], entry["strength"]) for entry in got["settings"]}
        self.notes = {note["origin"]: note["text"] for note in got["notes"]}
        self.problems = {problem["origin"]: problem["text"] for problem in got["problems"]}


def read(line, **environ):
    return Read(line, environ)


@pytest.mark.parametrize("line", [
    "app:app",
    "app:app -w 4 --bind 127.0.0.1:9000 -t 2m",
    "run app:app -w4 --access-logfile -",
    "status --json",
    "-c supervisor.toml check app:app --deep",
    "app:app --mistake",
    "",
])
def test_an_own_line_stays_as_it_is(line):
    got = read(line)
    assert (got.dialect, got.words, got.compat) == ("oxicorn", line, None)


@pytest.mark.parametrize("line, dialect, words, settings", [
    (
        "main:app --host 0.0.0.0 --port 80 --workers 4 --log-format json", "uvicorn",
        "main:app --log-format json",
        {"server.bind": "0.0.0.0:80", "workers.count": "4", "log.access": "-"},
    ),
    (
        "app.main:app -w 4 -k uvicorn.workers.UvicornWorker -b 0.0.0.0:80 --timeout 120 --log-level warning",
        "gunicorn",
        "app.main:app",
        {"python.interface": "asgi", "workers.count": "4", "server.bind": "0.0.0.0:80", "workers.timeout": "120",
         "log.level": "warning"},
    ),
    (
        "myproject.wsgi -b unix:/run/x.sock -m 007 -k gthread --threads 4 -e A=1 -e B=2", "gunicorn", "myproject.wsgi",
        {"server.bind": "unix:/run/x.sock", "server.unix_mode": "0660", "process.umask": "007", "workers.count": "1",
         "python.interface": "wsgi", "python.threads": "4", "python.raw_env": '["A=1", "B=2"]'},
    ),
    (
        "main:create_app --factory --uds /tmp/x.sock --no-access-log --no-proxy-headers", "uvicorn",
        "'main:create_app()'",
        {"server.bind": "unix:/tmp/x.sock", "server.unix_mode": "0666", "workers.count": "1", "log.access": "off",
         "http.forwarded_allow_ips": ""},
    ),
])
def test_a_foreign_line_becomes_settings(line, dialect, words, settings):  # fmt: skip
    got = read(line)
    assert (got.dialect, got.words, got.problems) == (dialect, words, {})
    assert got.settings == settings
    assert got.compat["argv"] == shlex.split(line)
