"""Promise: `oxicorn import` writes a file of settings from what starts a service today, says where each value came
from, and names what has no place."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from oxicorn._compat import importer

PACKAGE = str(Path(importer.__file__).parents[2])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    return tmp_path


class Written:
    def __init__(self, text):
        self.text = text
        self.settings = {
            f"{section}.{name}": value for section, keys in tomllib.loads(text).items() for name, value in keys.items()
        }
        lines = re.findall(r"^(\w+) = .*?  # (.*)$", text, re.MULTILINE)
        self.origins = dict(lines)
        self.remarks = dict(re.findall(r"^#   (.*?): (.*)$", text, re.MULTILINE))


def imported(*words):
    return Written(importer.imported(list(words))[0])


CONFIGURATION = """\
import multiprocessing
import os

bind = f"0.0.0.0:{os.environ.get('SHOP_PORT', '8000')}"
workers = multiprocessing.cpu_count() * 2 + 1
worker_class = "uvicorn.workers.UvicornWorker"
if os.environ.get("SHOP_SLOW"):
    timeout = 300
else:
    timeout = 120
umask = 0o027
raw_env = ["A=1", 'B="x, y"']
pidfile = "run/shop.pid"
preload_app = True
access_log_format = '%(h)s "%(r)s"'
daemon = True
def post_fork(server, worker):
    pass
"""


def test_a_configuration(folder):
    (folder / "gunicorn.conf.py").write_text(CONFIGURATION)
    got = imported("gunicorn.conf.py")
    assert got.settings == {
        "server.bind": ["0.0.0.0:8000"], "workers.count": os.cpu_count() * 2 + 1, "python.interface": "asgi",
        "workers.timeout": 120, "python.raw_env": ["A=1", 'B="x, y"'],
        "process.pidfile": "run/shop.pid", "log.access_format": '%(h)s "%(r)s"',
    }  # fmt: skip
    assert got.origins["count"] == "gunicorn.conf.py:5, computed: multiprocessing.cpu_count() * 2 + 1"
    assert got.origins["timeout"] == "gunicorn.conf.py:10"
    for origin, text in {
        "gunicorn.conf.py:14: preload_app": "has no effect yet",
        "gunicorn.conf.py:16: daemon": "foreground",
        "gunicorn.conf.py:17: post_fork": "-c gunicorn.conf.py",
    }.items():
        unwrapped = got.text.replace("\n#     ", " ")
        assert f"#   {origin}: " in unwrapped and text in unwrapped.split(f"#   {origin}: ")[1].split("\n")[0]
    assert "`oxicorn APP`" in got.text, "the file names no app"


def test_command_lines():
    got = imported("gunicorn", "-w", "3", "-k", "gthread", "--threads", "4", "shop.wsgi")
    assert got.settings == {
        "workers.count": 3, "python.interface": "wsgi", "python.threads": 4, "python.app": "shop.wsgi",
    }  # fmt: skip
    assert got.origins == {
        "count": "--workers", "interface": "--worker-class", "threads": "--threads", "app": "the command",
    }  # fmt: skip
    line = "exec env A=1 .venv/bin/python -m uvicorn main:create --factory --host 0.0.0.0 --workers $(nproc)"
    got = imported(line + " --header x:y")
    assert got.settings == {
        "server.bind": ["0.0.0.0:8000"], "workers.count": "auto", "log.access": "-", "python.app": "main:create()",
    }  # fmt: skip
    assert "A is a variable of the command" in got.text and "no header is added" in got.remarks["--header x:y"]
    got = imported("opentelemetry-instrument", "gunicorn", "-w", "$((2 * $(nproc) + 1))", "run:app")
    assert got.settings["workers.count"] == "2n+1" and got.settings["python.app"] == "run:app"
    assert "stay before oxicorn: opentelemetry-instrument" in got.text


def test_a_procfile(folder):
    line = "web: gunicorn app.main:app --bind 0.0.0.0:$PORT -w ${WEB_CONCURRENCY:-2} -k asgi -t $LIMIT\n"
    (folder / "Procfile").write_text("release: ./migrate\n" + line + "worker: celery -A shop\n")
    got = imported("Procfile")
    assert got.settings == {"workers.count": 2, "python.interface": "asgi", "python.app": "app.main:app"}
    assert "PORT is heard" in got.remarks["--bind 0.0.0.0:$PORT"]
    assert "LIMIT is not known" in got.remarks["-t $LIMIT"]
    assert "release, worker" in got.text
    assert imported(line.strip()).settings == got.settings, "one line of it"


UNIT = """\
[Unit]
Description=shop

[Service]
User=shop
WorkingDirectory={folder}/site
Environment="DJANGO_SETTINGS_MODULE=shop.settings" LIMIT=45
ExecStart=/srv/venv/bin/gunicorn \\
    # of three nodes
    --access-logfile logs/access.log --access-logformat '%%(h)s %%(s)s' \\
    --timeout $LIMIT \\
    --bind unix:run/shop.sock -m 007 \\
    shop.wsgi:application
Restart=always

[Install]
WantedBy=multi-user.target
"""


def test_a_unit_of_systemd(folder):
    (folder / "site").mkdir()
    (folder / "site" / "gunicorn.conf.py").write_text("workers = 4\ntimeout = 10\n")
    (folder / "shop.service").write_text(UNIT.format(folder=folder))
    got = imported("shop.service")
    assert got.settings == {
        "workers.count": 4, "workers.timeout": 45, "log.access": f"{folder}/site/logs/access.log",
        "log.access_format": "%(h)s %(s)s", "server.bind": [f"unix:{folder}/site/run/shop.sock"],
        "server.unix_mode": "0660", "python.app": "shop.wsgi:application",
    }  # fmt: skip
    assert got.origins["count"] == "gunicorn.conf.py:1" and got.origins["timeout"] == "--timeout"
    assert "User=shop stays in the unit" in got.text and "Type=notify" in got.text
    got = imported("ExecStart=/usr/bin/uvicorn main:app --uds /run/%i.sock")
    assert got.settings["server.bind"] == ["unix:/run/%i.sock"] and "systemd fills in %i" in got.text


def test_a_dockerfile(folder):
    (folder / "Dockerfile").write_text(
        'FROM python:3.13\nRUN pip install gunicorn\nCMD ["gunicorn", "-k", "asgi", \\\n  "-w", "4", "app.main:app"]\n'
    )
    got = imported("Dockerfile")
    assert got.settings == {"python.interface": "asgi", "workers.count": 4, "python.app": "app.main:app"}
    assert imported("CMD uvicorn main:app --port 80").settings["server.bind"] == ["127.0.0.1:80"]


def test_the_command_of_fastapi(folder):
    got = imported('CMD ["fastapi", "run", "app/main.py", "--port", "80", "--workers", "4", "--app", "shop"]')
    assert got.settings == {
        "server.bind": ["0.0.0.0:80"], "workers.count": 4, "log.access": "-", "python.app": "app/main.py:shop",
    }  # fmt: skip
    (folder / "api.py").touch()
    assert imported("fastapi run --host ::1").settings["python.app"] == "api.py"
    assert imported("fastapi run --host ::1").settings["server.bind"] == ["[::1]:8000"]


@pytest.mark.parametrize("words, said", [
    (["nothing.py"], "neither gunicorn nor uvicorn nor fastapi in: nothing.py"),
    (["celery -A shop"], "neither gunicorn nor uvicorn"),
    (["CMD node x.js"], "no CMD with gunicorn or uvicorn or fastapi"),
    (["gunicorn 'app"], "No closing quotation"),
    (["broken.py"], "broken.py:2: NameError: name 'undefined' is not defined"),
    (["Procfile"], "Procfile has no line with gunicorn or uvicorn or fastapi"),
    (["-o", "there.toml", "gunicorn app:app"], "there.toml exists"),
    ([], "Usage: oxicorn import"),
])
def test_what_cannot_be_imported(folder, words, said):
    (folder / "broken.py").write_text("\nundefined\n")
    (folder / "Procfile").write_text("web: node index.js\n")
    (folder / "there.toml").touch()
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "") and said in done.stderr
    assert (folder / "there.toml").read_text() == ""


def run(*words):
    environment = {**os.environ, "PYTHONPATH": PACKAGE}
    command = [sys.executable, "-m", "oxicorn", "import", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30)


def test_the_file_is_written(folder):
    done = run("-o", "supervisor.toml", "gunicorn", "app:app", "-w", "2", "--preload")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "supervisor.toml was written; 2 keys, and 1 remark below them. Run `oxicorn check -c supervisor.toml` next.\n"
    )
    assert tomllib.loads((folder / "supervisor.toml").read_text()) == {
        "workers": {"count": 2}, "python": {"app": "app:app"},
    }  # fmt: skip
