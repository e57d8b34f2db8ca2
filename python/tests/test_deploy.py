"""Promise: the example and its unit for systemd work as they stand, for a user without rights."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness import PATIENCE, command

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/fastapi"
UNIT = ROOT / "deploy/systemd/fastapi.service"
PROGRAM = "/srv/facts/current/.venv/bin/oxicorn"

#: Debian's `nobody` and `nogroup`.
NOBODY = 65534

pytestmark = pytest.mark.needs_oxicorn


def keys(unit: str) -> dict[str, str]:
    """Returns the keys of a unit. If a key occurs several times, the last value counts."""
    pairs = (line.split("=", 1) for line in unit.splitlines() if "=" in line and not line.startswith("#"))
    return dict(pairs)


@pytest.fixture
def layout():
    """A folder as the unit wants it: a release, the link `current`, and the folders that systemd makes."""
    folder = Path(os.path.realpath("/tmp")) / f"facts-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    release = folder / "releases/1"
    release.parent.mkdir(parents=True)
    shutil.copytree(EXAMPLE, release, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    (folder / "current").symlink_to(release)
    for name in ("state", "run"):
        (folder / name).mkdir()
        os.chown(folder / name, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


def notified(notify: socket.socket, word: str) -> bool:
    notify.settimeout(PATIENCE)
    while True:
        if word in notify.recv(4096).decode().splitlines():
            return True


def test_the_unit_starts_the_example_as_a_user_without_rights(layout):
    unit = UNIT.read_text()
    assert unit.count(PROGRAM) == 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(layout / "notify"))
    os.chmod(layout / "notify", 0o777)
    environment = {
        "PATH": os.environ["PATH"],
        "NOTIFY_SOCKET": str(layout / "notify"),
        "STATE_DIRECTORY": str(layout / "state"),
        "RUNTIME_DIRECTORY": str(layout / "run"),
        "OXICORN_SERVER__BIND": f"127.0.0.1:{port}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    def words(key: str) -> list[str]:
        """The command of a unit's key, in the test's own folder and with the program under test."""
        line = keys(unit)[key].replace(PROGRAM, " ".join(command())).replace("/srv/facts", str(layout))
        return line.split()

    # What the unit says of the user, as setpriv(1) says it.
    confined = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    # The one capability lets the user read an interpreter that lies in a folder of root, as that of pyenv often does.
    confined += [f"--{kind}=-all,+dac_read_search" for kind in ("bounding-set", "inh-caps", "ambient-caps")]
    folder = keys(unit)["WorkingDirectory"].replace("/srv/facts", str(layout))
    log = (layout / "log").open("wb")
    process = subprocess.Popen([*confined, *words("ExecStart")], cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        assert notified(notify, "READY=1"), (layout / "log").read_text()
        url = f"http://127.0.0.1:{port}"
        add = ["curl", "-sf", "-X", "POST", "-H", "content-type: application/json", "-d", '{"text": "Ice floats."}']
        added = json.loads(subprocess.check_output([*add, f"{url}/facts"]))
        assert (layout / "state/facts.db").stat().st_uid == NOBODY
        assert Path(f"/proc/{process.pid}/status").read_text().split("Uid:")[1].split()[0] == str(NOBODY)

        reloaded = subprocess.run([*confined, *words("ExecReload")], cwd=folder, env=environment, timeout=PATIENCE)
        assert reloaded.returncode == 0
        kept = json.loads(subprocess.check_output(["curl", "-sf", f"{url}/facts/{added['id']}"]))
        assert kept == added
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        if process.poll() is None:
            process.kill()
        print((layout / "log").read_text(), file=sys.stderr)
    written = [path for path in (layout / "releases").rglob("*") if path.suffix in (".pyc", ".db")]
    assert written == [], "the folder of the releases stays as it was"


def test_the_tests_of_the_example_pass():
    environment = {**os.environ, "OXICORN": " ".join(command()), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=EXAMPLE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "6 passed" in ended.stdout, ended.stdout
