"""Promise: the loggers of Uvicorn and Gunicorn work as apps configure them, and lines stay whole in a pipe."""

import json
import os
import re
import subprocess

import pytest

from clients import get
from harness import PATIENCE, Server, eventually

pytestmark = pytest.mark.needs_oxicorn


@pytest.mark.timeout(240)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_long_lines_of_four_workers_and_the_log_stay_whole_in_a_pipe(unbuffered):
    """A pipe takes 4096 bytes in one piece, and these lines have up to 8000. The log goes to the same pipe."""
    lines, workers = 10_000 if unbuffered else 2_000, 4
    environment = {"LINES": str(lines), "PYTHONUNBUFFERED": unbuffered}
    server = Server("printer:app", workers=workers, settings={"log.file": "-"}, environment=environment)
    server.write_settings()
    reader, writer = os.pipe()
    server.process = subprocess.Popen(
        server.command_line(), cwd=server.cwd, env=server.environment, stdout=writer, stderr=writer, process_group=0
    )
    Server.started.append(server)
    os.close(writer)
    try:
        printed, logged = 0, 0
        with open(reader, "rb", buffering=50_000) as pipe:
            while printed < workers * (lines + 2):
                line = pipe.readline()
                assert line.endswith(b"\n"), f"the end came after {printed} lines"
                if line.startswith(b"{"):
                    # While the pipe is full, the log drops lines, but those that it writes are whole.
                    logged += bool(json.loads(line)["message"])
                    continue
                assert _is_whole(line), f"torn: {line[:60]} … {line[-60:]}"
                printed += 1
        assert logged > 0
    finally:
        server.close()


def test_what_an_app_says_to_the_servers_loggers_goes_to_stderr(launch):
    server = launch("loggers:app")
    assert get(server, "/say").text == "said"
    said = eventually("all is said", lambda: _lines(server, "stderr.log", 3))
    assert said[:2] == ["INFO:     said by uvicorn", "INFO:     said by uvicorn.error"]
    stamp = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \+0000\]"
    assert re.fullmatch(rf"{stamp} \[{server.serving_pids()[0]}\] \[INFO\] said by gunicorn\.error", said[2])
    assert server.text_of("stdout.log") == "", "oxicorn's access log is off, and the app wants no records"


def test_the_level_of_the_log_is_that_of_the_loggers(launch):
    server = launch("loggers:app", settings={"log.level": "debug"})
    get(server, "/say")
    said = eventually("all is said", lambda: _lines(server, "stderr.log", 6))
    assert said.count("DEBUG:    whispered") == 2


def test_uvicorns_own_configuration_prints_its_lines(launch):
    server = launch("loggers:app", environment={"LOGGERS": "uvicorn's own"})
    assert get(server, "/?a=%20b").status == 200
    line = eventually("a line", lambda: _lines(server, "stdout.log", 1))[0]
    assert re.fullmatch(r'INFO:     127\.0\.0\.1:\d+ - "GET /\?a=%20b HTTP/1\.1" 200 OK', line), line


def test_handlers_of_the_app_get_the_arguments_of_each_server(launch):
    server = launch("loggers:app", environment={"LOGGERS": "handlers"})
    get(server, "/quiet?", 'User-Agent: a "b"', "X-Shop: 7")
    get(server, "/?a=1", "User-Agent: c", "Referer: http://d/")
    (uvicorn,) = server.wait_record("uvicorn.access")
    client, *rest = uvicorn["args"]
    assert re.fullmatch(r"127\.0\.0\.1:\d+", client) and rest == ["GET", "/?a=1", "1.1", 200]
    first, second = server.wait_record("gunicorn.access", 2)
    assert first["args"]["a"] == r"a \"b\"" and first["extra"] == "7" and first["args"]["U"] == "/quiet"
    assert second["args"] == {
        "h": "127.0.0.1", "l": "-", "u": "-", "r": "GET /?a=1 HTTP/1.1", "m": "GET", "U": "/", "q": "a=1",
        "H": "HTTP/1.1", "s": "200", "b": "5", "B": 5, "f": "http://d/", "a": "c",
    }  # fmt: skip
    stamp = r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000\]"
    line = rf'127\.0\.0\.1 - - {stamp} "GET /\?a=1 HTTP/1\.1" 200 5 "http://d/" "c"'
    assert re.fullmatch(line, second["text"]), second["text"]
    assert server.text_of("stdout.log") == "", "oxicorn's own handler writes nothing"


def test_a_handler_may_come_and_go_while_the_app_serves(launch):
    server = launch("loggers:app")
    get(server, "/")
    get(server, "/attach")
    get(server, "/quiet")
    server.wait_record("gunicorn.access")
    get(server, "/detach")
    get(server, "/")
    assert [one["args"]["U"] for one in server.records("gunicorn.access")] == ["/quiet"]


def test_the_handler_that_is_there_writes_once_it_has_a_formatter(launch):
    server = launch("loggers:app", environment={"LOGGERS": "formatter"})
    get(server, "/")
    line = eventually("a line", lambda: _lines(server, "stdout.log", 1))[0]
    assert re.fullmatch(r'shop\|127\.0\.0\.1:\d+ - "GET / HTTP/1\.1" 200', line), line


def test_records_go_to_the_root_logger_if_the_app_sends_them_there(launch):
    server = launch("loggers:app", environment={"LOGGERS": "root"})
    get(server, "/say")
    said = eventually("all lines", lambda: _lines(server, "stdout.log", 5))
    assert [line.split("|")[1] for line in said] == [
        "uvicorn", "uvicorn.error", "gunicorn.error", "uvicorn.access", "gunicorn.access",
    ]  # fmt: skip
    assert server.text_of("stderr.log") == ""


def test_an_exception_is_one_event_and_one_record_for_a_handler_of_the_app(launch):
    server = launch("loggers:app", environment={"LOGGERS": "handlers"})
    assert get(server, "/fail").status == 500
    (event,) = server.wait_event("app_error")
    assert "ValueError: the shelf is empty" in event["traceback"] and event["path"] == "/fail"
    assert "_logging" not in event["traceback"], "the app's own frames only"
    (entry,) = server.wait_record("uvicorn.error")
    assert entry["failed"] == "ValueError('the shelf is empty')"
    (access,) = server.wait_record("uvicorn.access")
    assert access["args"][-1] == 500
    assert server.text_of("stderr.log") == "", "the traceback is in the log"


def test_a_traceback_of_a_thread_goes_to_stderr_whole(launch):
    server = launch("loggers:app")
    get(server, "/thread")
    eventually("the traceback", lambda: "RuntimeError: in a thread\n" in server.text_of("stderr.log"), PATIENCE)
    assert server.text_of("stderr.log").startswith("Exception in thread ")


def _is_whole(line):
    """Says whether it is a line of the app: `<…>` around one letter that is repeated. Other code would be too slow."""
    inside = line[1:-2].rpartition(b":")[2]
    return line[:1] + line[-2:] == b"<>\n" and inside in (inside[:1] * len(inside), b"pieces")


def _lines(server, name, count):
    """Returns the lines of a file once it has so many; None before."""
    lines = server.text_of(name).splitlines()
    return lines if len(lines) >= count else None
