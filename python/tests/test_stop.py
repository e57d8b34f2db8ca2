"""Promise: a stop ends everything in its order, and nothing that an app began is lost within the grace.

No new connections, idle connections closed, requests in flight finished, background work finished, the shutdown of the
lifespan in a time of its own, the tasks of the app, its exit handlers, exit code 0.
"""

import signal
import socket
import time
from types import SimpleNamespace

import pytest

from clients import Raw
from harness import UVICORN, eventually

GRACEFUL = (0, -signal.SIGTERM) if UVICORN else (0,)


def when(server, what):
    """Returns the place of the only record of this name among all records."""
    places = [at for at, entry in enumerate(server.records()) if entry["what"] == what]
    assert len(places) == 1, f"{what}: {len(places)} times in {server.records()}"
    return places[0]


def begin(server, *targets):
    """Sends requests on connections of their own, and waits until the app has begun all of them."""
    connections = [Raw(server).request("GET", target) for target in targets]
    server.wait_record("began", len(targets))
    return connections


def is_refused(server):
    try:
        server.connect(1).close()
    except OSError:
        return True
    return False


# --- a stop in which all can finish ---


@pytest.fixture(scope="module")
def finished(launch_for_module):
    """The end of a service that was stopped with a request and background work under way, and idle connections."""
    server = launch_for_module("life:app", settings={"workers.drain_idle": "200ms"})
    seen = SimpleNamespace(server=server)
    idle = Raw(server)
    assert idle.get("/hello").status == 200
    fresh = Raw(server)  # a connection that never sent a request
    request, work = begin(server, "/until?release-request", "/background?release-work")
    assert work.response().text == "accepted"
    work.close()  # the client of the background work is gone
    server.signal(signal.SIGTERM)
    seen.began = time.monotonic()
    seen.idle = idle.rest()
    fresh.rest()
    seen.idle_closed_after = time.monotonic() - seen.began
    eventually("new connections are refused", lambda: is_refused(server))
    seen.refused_while_in_flight = server.records("answered") == []
    server.write("release-request", "")
    seen.answer = request.response()
    seen.after_answer = request.rest()
    seen.running_with_background = server.is_running() and server.records("shutdown") == []
    server.write("release-work", "")
    released = time.monotonic()
    seen.code = server.wait_exit()
    seen.exit_after_release = time.monotonic() - released
    seen.leftovers = server.leftovers()
    return seen


def test_a_request_in_flight_is_answered_and_its_connection_closed(finished):
    assert (finished.answer.status, finished.answer.text) == (200, "done")
    assert finished.after_answer == b""


def test_the_last_answer_says_that_the_connection_closes(finished):
    assert finished.answer.closes


def test_idle_connections_are_closed_while_a_request_is_in_flight(finished):
    assert finished.idle == b""
    assert finished.idle_closed_after < 5


def test_new_connections_are_refused_while_a_request_is_in_flight(finished):
    assert finished.refused_while_in_flight


def test_background_work_after_the_answer_holds_the_stop(finished):
    assert finished.running_with_background
    assert when(finished.server, "background done") < when(finished.server, "shutdown")


def test_the_service_ends_with_0_soon_after_its_last_work(finished):
    assert finished.code in GRACEFUL
    assert finished.exit_after_release < 3
    assert finished.leftovers == []


@pytest.mark.differs_under_uvicorn("ends by the signal, before any of it")
def test_a_task_of_the_lifespan_lives_until_its_shutdown_and_is_cancelled_after_it(finished):
    [shutdown] = finished.server.records("shutdown")
    assert shutdown["task_alive"] is True
    assert when(finished.server, "shutdown over") < when(finished.server, "task cancelled")


@pytest.mark.differs_under_uvicorn("ends by the signal, before any of it")
def test_asynchronous_generators_are_closed_and_exit_handlers_run(finished):
    assert when(finished.server, "shutdown over") < when(finished.server, "generator closed")
    assert when(finished.server, "generator closed") < when(finished.server, "atexit")


@pytest.mark.needs_oxicorn
def test_a_stop_in_which_all_finished_has_no_warning_and_no_error(finished):
    assert [entry for entry in finished.server.events() if entry["level"] in ("WARN", "ERROR")] == []


# --- a stop in which nothing finishes ---


@pytest.fixture(scope="module")
def cut(launch_for_module):
    """The end of a service that was stopped with a request, a stream and background work that would never end."""
    server = launch_for_module(
        "life:app",
        settings={"workers.graceful_timeout": "3s", "python.shutdown_grace": "1s"},
        environment={"LIFESPAN": "shutdown is slow"},
    )
    seen = SimpleNamespace(server=server)
    endless, stream, work = begin(server, "/endless", "/stream", "/background?never")
    assert work.response().text == "accepted"
    assert stream.head().status == 200
    began = time.monotonic()
    server.signal(signal.SIGTERM)
    seen.endless = endless.rest()
    seen.stream = stream.rest()
    seen.code = server.wait_exit()
    seen.took = time.monotonic() - began
    return seen


def test_a_request_that_does_not_end_is_cancelled_and_answered_500(cut):
    assert when(cut.server, "request cancelled") < when(cut.server, "request finally")
    assert cut.endless.startswith(b"HTTP/1.1 500 ")


def test_a_stream_that_does_not_end_is_cancelled_and_cut(cut):
    assert when(cut.server, "stream cancelled") < when(cut.server, "shutdown")
    assert b"tick" in cut.stream
    assert not cut.stream.endswith(b"0\r\n\r\n")


def test_background_work_that_does_not_end_is_cancelled(cut):
    assert when(cut.server, "background cancelled") < when(cut.server, "shutdown")


def test_the_shutdown_of_the_lifespan_has_time_of_its_own_after_a_cut(cut):
    """The shutdown takes 0.6 s, which lies within `python.shutdown_grace`."""
    assert when(cut.server, "request finally") < when(cut.server, "shutdown") < when(cut.server, "shutdown over")


def test_a_stop_that_cut_something_ends_with_0_within_the_graceful_timeout(cut):
    assert cut.code in GRACEFUL
    assert 1.5 < cut.took < 5


@pytest.mark.needs_oxicorn
def test_the_log_counts_what_was_cut(cut):
    [drained] = cut.server.events("worker_drained")
    assert (drained["level"], drained["cut"], drained["background_cut"]) == ("WARN", 2, 1)


# --- other ends ---


@pytest.mark.needs_oxicorn
def test_a_shutdown_that_never_ends_is_bounded_and_told(launch):
    server = launch(
        "life:app",
        settings={"workers.graceful_timeout": "2s", "python.shutdown_grace": "1s"},
        environment={"LIFESPAN": "shutdown never ends"},
    )
    began = time.monotonic()
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert time.monotonic() - began < 5
    assert server.events("shutdown_hook_timeout")


@pytest.mark.needs_oxicorn
def test_an_app_that_will_not_be_cancelled_does_not_hold_the_stop(launch):
    server = launch("life:app", settings={"workers.graceful_timeout": "2s", "python.shutdown_grace": "1s"})
    [request] = begin(server, "/stubborn")
    began = time.monotonic()
    server.signal(signal.SIGTERM)
    request.rest()
    assert server.wait_exit() == 0
    assert time.monotonic() - began < 5
    assert server.records("stubborn cancelled")
    assert server.records("shutdown over"), "it held the shutdown of the lifespan"


@pytest.mark.needs_oxicorn
def test_a_quick_stop_gives_two_seconds_and_still_ends_the_lifespan(launch):
    server = launch("life:app", settings={"workers.graceful_timeout": "30s"})
    [request] = begin(server, "/endless")
    began = time.monotonic()
    server.signal(signal.SIGINT)
    request.rest()
    assert server.wait_exit() == 0
    assert time.monotonic() - began < 5
    assert server.records("request cancelled") and server.records("shutdown over")


@pytest.mark.needs_oxicorn
def test_the_app_sees_that_the_service_stops_while_it_still_serves(launch):
    server = launch("life:app", settings={"workers.shutdown_delay": "20s", "workers.drain_idle": "200ms"})
    with Raw(server) as connection:
        assert connection.get("/stopping").text == "False"
        server.signal(signal.SIGTERM)
        eventually("the app sees it", lambda: connection.get("/stopping").text == "True")
    server.wait_event("stopping")


@pytest.mark.needs_oxicorn
def test_the_port_is_free_while_a_request_still_drains(launch):
    server = launch("life:app")
    [request] = begin(server, "/until?release")
    server.signal(signal.SIGTERM)

    def bind():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(server.address)
                probe.listen()
            except OSError:
                return False
            return True

    eventually("the port can be bound", bind)
    server.write("release", "")
    assert request.response().text == "done"
    assert server.wait_exit() == 0
