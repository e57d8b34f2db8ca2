"""Promise: the loop is asyncio's, with all that apps and their libraries do with it."""

import os
import threading
import time

import pytest

from clients import Raw, get
from harness import eventually


@pytest.fixture(scope="module", params=["oxicorn", "asyncio", "debug"])
def shared(request, launch_for_module):
    """The loop that is the default, asyncio's own, and the default with asyncio's debug mode."""
    options = {"settings": {"python.loop": "asyncio"}} if request.param == "asyncio" else {}
    if request.param == "debug":
        options = {"environment": {"PYTHONASYNCIODEBUG": "1"}}
    server = launch_for_module("loop:app", **options)
    server.debug = request.param == "debug"
    return server


@pytest.fixture
def server(shared):
    shared.clear_records()
    return shared


@pytest.mark.parametrize("target, expected", [
    ("/timers", [{"tuple": [delay, True]} for delay in (0.0, 0.03, 0.06, 0.09)]),
    ("/threadsafe", ["woken", "coroutine"]),
    ("/asyncio-run-in-a-thread", True),
    ("/readers", ["onetwo", 6, 500_000]),
    ("/streams", 60),
    ("/processes", ["piped", 3, -15, [0] * 10, 4]),
    ("/pools", [49, 49]),
    ("/current-task", [True, True, True]),
])
def test_asyncio_works_in_a_request(server, target, expected):
    answer = get(server, target)
    assert answer.status == 200
    assert answer.json() == expected


@pytest.mark.parametrize("target, expected", [
    ("/sleep-in-the-first-step", "woke"),
    ("/sleep-0", "1000 turns"),
    ("/datagrams", "datagram"),
    ("/signal", "seen"),
    ("/python-signal", "seen"),
    ("/unhandled-in-a-task", "hello"),
])
def test_a_part_of_asyncio_works_in_a_request(server, target, expected):
    assert get(server, target).text == expected


def test_asyncio_run_inside_of_the_loop_is_refused_by_asyncio_and_does_no_harm(server):
    assert "cannot be called from a running event loop" in get(server, "/asyncio-run-inside").text
    assert get(server, "/hello").text == "hello"


def test_a_task_factory_is_asked_for_the_tasks_of_requests(server):
    try:
        assert get(server, "/task-factory?on").text == "set"
        server.clear_records()
        assert get(server, "/current-task").json() == [True, True, True]
        assert server.records("factory")
    finally:
        assert get(server, "/task-factory?off").text == "set"


def test_a_request_that_cancels_itself_is_a_500_and_no_more(server):
    assert get(server, "/cancel-itself").status == 500
    assert get(server, "/hello").text == "hello"


def test_an_error_that_no_task_waits_for_is_told_by_asyncio(server):
    assert get(server, "/unhandled-in-a-task").text == "hello"
    eventually("asyncio tells it", lambda: server.logged("nobody waits for this"))


def test_a_task_that_never_rests_leaves_the_server_its_turns(server):
    with Raw(server) as connection:
        connection.request("GET", "/busy")
        server.wait_record("busy")
        asking = [threading.Thread(target=get, args=(server, "/sleep-0")) for _ in range(4)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(20)
            assert not thread.is_alive()
        assert get(server, "/hello").text == "hello"
        server.write("enough", "")
        assert connection.response().text == "True"
    server.path("enough").unlink()


@pytest.mark.needs_oxicorn
def test_the_loop_is_the_one_that_the_settings_name(server):
    name, debug, running = get(server, "/loop").json()
    assert debug is server.debug
    assert running
    if "python.loop" not in server.settings:
        assert name.startswith("oxicorn.")


@pytest.mark.needs_oxicorn
def test_the_app_sees_an_interpreter_as_if_it_had_been_started_plainly(server):
    seen = get(server, "/flags").json()
    assert seen["no_site"] == 0
    assert seen["environment"] == []
    assert seen["main_thread"] is True


def test_an_idle_worker_burns_no_time(server):
    """A second in which nothing happens costs some turns of the loop, and never a whole core."""
    [pid] = server.serving_pids()
    ticks = os.sysconf("SC_CLK_TCK")

    def cpu():
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / ticks

    before = cpu()
    time.sleep(1)
    assert cpu() - before < 0.1
