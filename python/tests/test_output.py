"""Promise: what an app prints and logs comes out as it meant it, in whole lines, whoever else writes."""

import re
import threading

import pytest

from clients import get
from harness import eventually


@pytest.mark.differs_under_uvicorn("leaves stdout buffered by 8 KiB")
def test_lines_of_two_workers_never_mix(launch):
    server = launch("output:app", workers=2)
    # So many connections that each worker gets some; the letter says which request wrote the line.
    asking = [threading.Thread(target=get, args=(server, f"/print?{letter}")) for letter in "abcdefgh"]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    server.stop()
    for name in ("stdout.log", "stderr.log"):
        lines = [line for line in server.text_of(name).splitlines() if "<" in line or ">" in line]
        broken = [line[:80] for line in lines if not re.fullmatch(r"<([a-h]):\d+:\1{2000}>", line)]
        assert broken == []
        assert len(lines) == 8 * 200, f"lines in {name}"


@pytest.mark.differs_under_uvicorn("leaves stdout buffered by 8 KiB")
def test_a_line_that_the_app_prints_is_seen_at_once(launch):
    server = launch("output:app")
    assert get(server, "/one-line").text == "printed"
    eventually("the line is in the file", lambda: "one line of the app" in server.text_of("stdout.log"), 2)


def test_loggers_that_the_app_configures_do_what_it_says(launch):
    server = launch("output:app")
    assert get(server, "/log").text == "logged"
    eventually("the lines are there", lambda: "shop|INFO|said" in server.text_of("stderr.log"))
    said = server.text_of("stderr.log")
    assert "uvicorn.error|INFO|said" in said and "gunicorn.error|INFO|said" in said
    assert "not said" not in said


@pytest.mark.needs_oxicorn
def test_the_root_logger_is_left_alone(launch):
    server = launch("output:app")
    assert get(server, "/root").text == "(30, [])"
