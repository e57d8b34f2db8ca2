"""Promise: an upgrade follows a virtual environment behind a link that was turned to another one, and its way back is
the old environment. A wheel that is replaced in place does not disturb the workers of the running service."""

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from clients import get
from harness import APPS, eventually
from test_process import interpreter, package

pytestmark = pytest.mark.needs_oxicorn

APP = """
import sys

import release
from process import app
"""


class Releases:
    """Virtual environments, each with a copy of the package, and the link `current` to one of them."""

    def __init__(self, folder):
        self.folder = folder
        self.current = folder / "current"

    def make(self, name, release=""):
        """Makes an environment. `release` is the code of a module in it that the app imports."""
        place = self.folder / name
        subprocess.run([interpreter(), "-m", "venv", "--without-pip", str(place)], check=True, timeout=60)
        [site] = (place / "lib").glob("python3.*/site-packages")
        shutil.copytree(f"{package()}/oxicorn", site / "oxicorn", ignore=shutil.ignore_patterns("__pycache__"))
        (site / "release.py").write_text(release)
        script = place / "bin" / "oxicorn"
        script.write_text(
            f"#!{place}/bin/python\nimport sys\nfrom oxicorn.__main__ import main\nsys.exit(main())\n"
        )
        script.chmod(0o755)
        return site

    def turn(self, name):
        fresh = self.folder / "fresh"
        fresh.symlink_to(name)
        fresh.rename(self.current)


@pytest.fixture
def releases(tmp_path):
    made = Releases(tmp_path)
    made.make("one")
    made.turn("one")
    return made


@pytest.fixture(params=["bin/oxicorn", "bin/python -X dev -m oxicorn"])
def server(request, launch, monkeypatch, releases):
    monkeypatch.setenv("OXICORN_PYTHON_COMMAND", f"{releases.current}/{request.param}")
    return started(launch)


def started(launch, *arguments, **environment):
    return launch(
        "main:app",
        files={"main.py": APP, "loggers.json": '{"version": 1}'},
        settings={"python.pythonpath": [str(APPS)]},
        environment=environment,
        arguments=arguments,
    )


def prefix(server):
    return get(server, "/facts").json()["prefix"]


def renew(server):
    """Kills the only worker, so that the present master forks one."""
    [worker] = server.serving_pids()
    os.kill(worker, signal.SIGKILL)
    eventually("another worker serves", lambda: server.serving_pids() not in ([worker], []))


def test_an_upgrade_follows_the_link(server, releases):
    assert prefix(server) == str(releases.folder / "one")
    releases.make("two")
    releases.turn("two")
    renew(server)
    assert prefix(server) == str(releases.folder / "one"), "only an upgrade changes the environment"
    done = server.ctl("upgrade")
    assert done.returncode == 0, done
    server.wait_serving(1)
    seen = get(server, "/facts").json()
    assert seen["prefix"] == str(releases.folder / "two")
    assert seen["dev_mode"] == ("-m" in server.command_line())
    assert server.is_running() and server.ctl("reload").returncode == 0
    # The next one begins where this one has led to.
    releases.turn("one")
    assert server.ctl("upgrade").returncode == 0
    server.wait_serving(1)
    assert prefix(server) == str(releases.folder / "one")
    server.stop()


def test_an_environment_without_the_package_is_refused(server, releases):
    site = releases.make("two")
    shutil.rmtree(site / "oxicorn")
    releases.turn("two")
    done = server.ctl("upgrade")
    assert done.returncode == 1 and "No module named" in done.stdout + done.stderr, done
    assert prefix(server) == str(releases.folder / "one")
    server.stop()


# The worker of the preflight is the first that imports it.
DIES_IN_ITS_TRIAL = """
import os, pathlib
boots = pathlib.Path(os.environ["RECORD"]).with_name("boots")
with boots.open("a") as file:
    file.write("x")
if boots.stat().st_size > 1:
    raise RuntimeError("the second release does not start")
"""


def test_a_release_that_dies_in_its_trial_leads_back_to_the_old_environment(server, releases):
    releases.make("two", DIES_IN_ITS_TRIAL)
    releases.turn("two")
    before = server.serving_pids()
    done = server.ctl("upgrade")
    assert done.returncode == 1 and "the second release does not start" in done.stdout + done.stderr, done
    assert server.serving_pids() == before
    renew(server)
    assert prefix(server) == str(releases.folder / "one")
    assert server.ctl("reload").returncode == 0
    server.stop()


def test_the_program_of_an_upgrade_may_be_named(launch, monkeypatch, releases):
    monkeypatch.setenv("OXICORN_PYTHON_COMMAND", f"{releases.current}/bin/oxicorn")
    server = started(launch)
    for name, program in [("two", "bin/oxicorn"), ("three", "bin/python")]:
        releases.make(name)
        done = server.ctl("upgrade", "--program", str(releases.folder / name / program))
        assert done.returncode == 0, done
        server.wait_serving(1)
        assert prefix(server) == str(releases.folder / name)
    server.stop()


# The words of another server need more modules in each worker.
@pytest.mark.parametrize("arguments", [(), ("--log-config", "loggers.json")])
def test_a_package_that_is_replaced_in_place_does_not_disturb_the_next_workers(
    launch, monkeypatch, releases, arguments
):
    monkeypatch.setenv("OXICORN_PYTHON_COMMAND", f"{releases.current}/bin/oxicorn")
    server = started(launch, *arguments)
    [site] = (releases.folder / "one/lib").glob("python3.*/site-packages")
    for file in (site / "oxicorn").rglob("*.py"):
        file.unlink()
        file.write_text("raise RuntimeError('this file belongs to another version')\n")
    renew(server)
    assert get(server, "/facts").status == 200
    server.stop()


def test_an_upgrade_in_place_has_no_way_back_and_wants_to_be_forced(launch, monkeypatch, releases):
    monkeypatch.setenv("OXICORN_PYTHON_COMMAND", f"{releases.current}/bin/oxicorn")
    server = started(launch)
    [worker] = server.serving_pids()
    site = replace_in_place(releases)
    done = server.ctl("upgrade")
    told = done.stdout + done.stderr
    assert done.returncode == 1 and "no way back" in told and "was replaced in place" in told, told
    assert "oxicorn upgrade --force" in told
    assert server.serving_pids() == [worker], "nothing was changed"
    (site / "release.py").write_text("import os\nos.environ['RELEASE'] = 'two'\n")
    done = server.ctl("upgrade", "--force")
    assert done.returncode == 0, done
    server.wait_serving(1)
    assert get(server, "/facts").json()["environment"]["RELEASE"] == "two"
    [warned] = server.events("upgrade_forced")
    assert "was replaced in place" in warned["reason"]
    # The new program runs the files that lie there now, so the next upgrade has a way back again.
    assert server.ctl("upgrade").returncode == 0
    server.stop()


def test_a_forced_upgrade_that_fails_goes_on_with_the_old_workers(launch, monkeypatch, releases):
    monkeypatch.setenv("OXICORN_PYTHON_COMMAND", f"{releases.current}/bin/oxicorn")
    server = started(launch)
    before = server.serving_pids()
    site = replace_in_place(releases)
    (site / "release.py").write_text(DIES_IN_ITS_TRIAL)
    done = server.ctl("upgrade", "--force")
    assert done.returncode == 1 and "the second release does not start" in done.stdout + done.stderr, done
    assert server.serving_pids() == before and get(server, "/facts").status == 200
    server.stop()


def replace_in_place(releases):
    """Replaces the package as `pip install -U` does: with new files of the same names. Returns the folder of both."""
    [site] = (releases.folder / "one/lib").glob("python3.*/site-packages")
    shutil.copytree(site / "oxicorn", site / "fresh")
    shutil.rmtree(site / "oxicorn")
    (site / "fresh").rename(site / "oxicorn")
    return site


def install(place, version, code=""):
    """Installs the package by pip, from a wheel of this version with `code` at the end of the worker's module."""
    name = f"oxicorn-{version}"
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    lines = ["Wheel-Version: 1.0", "Root-Is-Purelib: false", f"Tag: {tag}-{tag}-linux_x86_64"]
    files = {
        f"{name}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: oxicorn\nVersion: {version}\n".encode(),
        f"{name}.dist-info/WHEEL": "".join(f"{line}\n" for line in lines).encode(),
        f"{name}.dist-info/entry_points.txt": b"[console_scripts]\noxicorn = oxicorn.__main__:main\n",
    }
    for file in Path(package(), "oxicorn").rglob("*"):
        if file.suffix in (".py", ".so"):
            files[str(file.relative_to(package()))] = file.read_bytes()
    files["oxicorn/_worker.py"] += code.encode()
    wheel = place.parent / f"{name}-{tag}-{tag}-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
        archive.writestr(f"{name}.dist-info/RECORD", "".join(f"{path},,\n" for path in files))
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin/python"), "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", "--quiet", "--no-index", "--no-deps", "--force-reinstall", str(wheel)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# The worker of the preflight is the first that imports it. The file is removed when the wheel shall be good again.
BAD_FOR_A_WHILE = """
_boots = os.environ["RECORD"] + ".boots"
if os.path.exists(_boots):
    with open(_boots, "a") as _file:
        _file.write("x")
    if os.path.getsize(_boots) > 1:
        raise RuntimeError("this wheel does not start")
"""


def test_a_wheel_replaced_in_place_leaves_no_way_back_and_wants_force(launch, monkeypatch, releases):
    place = releases.folder / "one"
    [site] = (place / "lib").glob("python3.*/site-packages")
    shutil.rmtree(site / "oxicorn")
    install(place, "1.0")
    monkeypatch.setenv("OXICORN_PYTHON_COMMAND", f"{releases.current}/bin/oxicorn")
    server = started(launch)
    before = server.serving_pids()
    install(place, "2.0", BAD_FOR_A_WHILE)

    done = server.ctl("upgrade")
    told = done.stdout + done.stderr
    assert done.returncode == 1 and "nothing was changed" in told, told
    assert "no way back" in told and "was replaced in place" in told and "upgrade --force" in told, told

    boots = server.write("record.jsonl.boots", "")
    done = server.ctl("upgrade", "--force")
    told = done.stdout + done.stderr
    assert done.returncode == 1 and "does not start" in told and "there is no way back" in told, told
    assert server.serving_pids() == before and get(server, "/facts").status == 200, "the old worker serves on"
    boots.unlink()

    # The new program has stayed. Its wheel is the one on the disk.
    renew(server)
    done = server.ctl("upgrade")
    assert done.returncode == 0, done
    server.wait_serving(1)
    server.stop()


def test_an_environment_that_was_removed_leaves_no_way_back(launch, monkeypatch, releases):
    monkeypatch.setenv("OXICORN_PYTHON_COMMAND", f"{releases.current}/bin/oxicorn")
    server = started(launch)
    releases.make("two")
    releases.turn("two")
    shutil.rmtree(releases.folder / "one")
    done = server.ctl("upgrade")
    told = done.stdout + done.stderr
    assert done.returncode == 1 and "no way back" in told and " is gone" in told, told
    assert server.ctl("upgrade", "--force").returncode == 0
    server.wait_serving(1)
    assert prefix(server) == str(releases.folder / "two")
    server.stop()


def test_a_shim_chooses_anew_if_the_upgrade_names_it(launch, monkeypatch, releases):
    """A shim, as pyenv has them, is a script of the shell. The program only learns which command the shim executed, so
    an upgrade stays with this version, except if `--program` names the shim."""
    releases.make("two")
    shim = releases.folder / "shim"
    folder = releases.folder
    shim.write_text(f'#!/bin/sh\nread -r version <{folder}/version\nexec {folder}/$version/bin/oxicorn "$@"\n')
    shim.chmod(0o755)
    version = releases.folder / "version"
    version.write_text("one\n")
    monkeypatch.setenv("OXICORN_PYTHON_COMMAND", str(shim))
    server = started(launch)
    version.write_text("two\n")
    for options, expected in [((), "one"), (("--program", str(shim)), "two")]:
        done = server.ctl("upgrade", *options)
        assert done.returncode == 0, done
        server.wait_serving(1)
        assert prefix(server) == str(releases.folder / expected)
    server.stop()
