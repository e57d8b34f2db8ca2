"""Promise: a wheel has all that it needs, runs on every glibc from 2.28 on, and names its licence. The source
distribution has all that a build needs."""

import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ROOT / "target" / "wheels"

pytestmark = pytest.mark.needs_oxicorn


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The wheel for this Python, which `make wheel` has made."""
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    found = list(WHEELS.glob(f"oxicorn-*-{tag}-{tag}-*.whl"))
    assert len(found) == 1, f"make wheel has to make one wheel for {tag}: {found}"
    return found[0]


def test_a_wheel_needs_glibc_2_28_and_no_other_library(wheel):
    assert "manylinux_2_28_x86_64" in wheel.name
    show = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    shown = subprocess.run(show, capture_output=True, text=True, check=False)
    said = " ".join(shown.stdout.split())
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert 'consistent with the following platform tag: "manylinux_2_28_x86_64"' in said, said
    assert "libpython" not in said and "libgcc" not in said, said


def test_a_wheel_has_the_package_its_types_and_its_licences(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (about,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        told = Parser().parsestr(archive.read(about).decode())
    modules = {name for name in names if name.startswith("oxicorn/") and name.endswith(".so")}
    assert len(modules) == 1, modules
    source = ROOT / "python" / "oxicorn"
    wanted = {str(path.relative_to(source.parent)) for path in source.rglob("*.py*") if path.suffix in (".py", ".pyi")}
    assert wanted | {"oxicorn/py.typed"} <= names, sorted(names)
    assert any(name.endswith("/LICENSE-MIT") for name in names), sorted(names)
    assert any(name.endswith("/LICENSE-APACHE") for name in names), sorted(names)
    assert told["License-Expression"] == "MIT OR Apache-2.0"
    assert told["Requires-Python"] == ">=3.11"
    assert told.get_payload().startswith("# oxicorn\n"), "the text that a package registry shows"
    assert told.get_all("Requires-Dist") is None, "the package needs no other package"


def test_the_installed_package_is_the_wheel(wheel):
    version = wheel.name.split("-")[1]
    assert metadata.version("oxicorn") == version
    oxicorn = Path(sys.executable).parent / "oxicorn"
    for command in ([str(oxicorn)], [sys.executable, "-m", "oxicorn"]):
        said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert version in said.stdout, said


def test_a_source_distribution_has_what_a_build_needs():
    (archive,) = WHEELS.glob("oxicorn-*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[1] for name in opened.getnames() if "/" in name}
    wanted = {"Cargo.toml", "Cargo.lock", "pyproject.toml", "PKG-INFO", "src/lib.rs", "python/Cargo.toml"}
    wanted |= {"python/src/lib.rs", "LICENSE-MIT", "LICENSE-APACHE"}
    assert wanted <= names, sorted(wanted - names)
    assert any(name.endswith("oxicorn/__main__.py") for name in names), sorted(names)
