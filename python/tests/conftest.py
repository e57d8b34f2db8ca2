"""Fixtures of the tests, and what a failed test prints."""

from __future__ import annotations

import socket
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import PATIENCE, UVICORN, Server
from moving import Line
from peers import Run


def _launcher():
    mine: list[Server] = []

    def launch(app, **options):
        """Starts a server and waits until all its workers serve."""
        server = Server(app, **options)
        mine.append(server)
        return server.serving()

    def prepare(app, **options):
        """Prepares a server and does not start it."""
        server = Server(app, **options)
        mine.append(server)
        return server

    launch.prepare = prepare
    return launch, mine


@pytest.fixture
def launch():
    """Starts servers that end with the test: `launch("app:app", settings={...})`."""
    launch, mine = _launcher()
    yield launch
    for server in mine:
        server.close()


@pytest.fixture(scope="module")
def launch_for_module():
    """Starts servers that end with the file of tests. Each start costs time, so tests share what they can."""
    launch, mine = _launcher()
    yield launch
    for server in mine:
        server.close()


@pytest.fixture
def run():
    """Starts programs that end with the test: `run(line, "oxicorn")`."""
    mine = []

    def begin(line: Line, program: str, *, serving=True, **more) -> Run:
        server = line.run(program, **more)
        mine.append(server)
        return server.serving() if serving else server.start()

    yield begin
    for server in mine:
        server.close()


@pytest.fixture
def both(run):
    """Starts the server that the words were written for, and oxicorn: `both(line)`."""

    def begin(line: Line) -> tuple[Run, Run]:
        # Both start before the test waits for the first.
        pair = run(line, line.program, serving=False), run(line, "oxicorn", serving=False)
        for server in pair:
            server.wait_serving()
        return pair

    return begin


@dataclass
class Certificate:
    """A certificate for 127.0.0.1 that no authority has signed."""

    chain: str
    key: str

    def connect(self, server: Server, protocols: tuple[str, ...] = ("http/1.1",)) -> socket.socket:
        context = ssl.create_default_context(cafile=self.chain)
        context.check_hostname = False
        context.set_alpn_protocols(list(protocols))
        return context.wrap_socket(server.connect(), server_hostname="localhost")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory) -> Certificate:
    folder: Path = tmp_path_factory.mktemp("certificate")
    made = Certificate(str(folder / "chain.pem"), str(folder / "key.pem"))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        + ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", "30"]
        + ["-keyout", made.key, "-out", made.chain],
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    return made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Adds the logs of all running servers to the report of a failed test."""
    report = yield
    if report.failed:
        for server in Server.started:
            report.sections.append((f"server {server.app}", server.report()))
    return report


def pytest_collection_modifyitems(config, items):
    if not UVICORN:
        return
    kept, left = [], []
    for item in items:
        (left if item.get_closest_marker("needs_oxicorn") else kept).append(item)
        if mark := item.get_closest_marker("differs_under_uvicorn"):
            item.add_marker(pytest.mark.xfail(strict=True, reason=f"Uvicorn: {mark.args[0]}"))
    config.hook.pytest_deselected(items=left)
    items[:] = kept
