"""Promise: the lifespan begins before the first request and ends after the last, and a start that failed is one."""

import textwrap
import time

import pytest

from clients import get
from harness import UVICORN


def start(launch, mode, **options):
    """Prepares and starts a server whose lifespan does what `mode` says; it may never serve."""
    return launch.prepare("life:app", environment={"LIFESPAN": mode}, **options).start()


def serving(launch, mode, **options):
    return launch("life:app", environment={"LIFESPAN": mode}, **options)


def assert_boot_failure(server, *fragments):
    """Asserts that the service ended with 3 after a few tries, and that the log says why."""
    assert server.wait_exit() == 3
    assert server.leftovers() == []
    if not UVICORN:
        assert 1 <= len(server.events("worker_forked")) <= 3 * server.workers
        [end] = server.events("boot_failed")
        assert end["level"] == "ERROR"
    for fragment in fragments:
        assert server.logged(fragment), f"the log does not say {fragment!r}"


def test_startup_is_over_before_the_first_request_and_shutdown_comes_at_the_stop(launch):
    server = serving(launch, "works")
    assert get(server, "/hello").status == 200
    assert [entry["what"] for entry in server.records()] == ["imported", "startup", "task began"]
    server.stop()
    whats = [entry["what"] for entry in server.records()]
    assert whats.index("startup") < whats.index("shutdown") < whats.index("shutdown over")
    assert len(whats) == len(set(whats)), "nothing of it ran twice"


def test_every_worker_has_a_lifespan_of_its_own(launch):
    server = serving(launch, "works", workers=2)
    assert len({entry["pid"] for entry in server.records("startup")}) == 2
    server.stop()
    assert len({entry["pid"] for entry in server.records("shutdown over")}) == 2


@pytest.mark.parametrize("mode", ["raises at once", "returns at once"])
def test_an_app_without_a_lifespan_is_served(launch, mode):
    server = serving(launch, mode)
    assert get(server, "/hello").status == 200
    server.stop()


@pytest.mark.needs_oxicorn
@pytest.mark.parametrize("mode, lifespan, is_frozen", [
    ("works", "auto", True),
    ("works", "off", True),
    ("raises at once", "auto", True),
    ("switches the collector off", "auto", False),
])
def test_the_collector_spares_what_the_start_has_made(launch, mode, lifespan, is_frozen):
    server = serving(launch, mode, settings={"python.lifespan": lifespan})
    # The modules of the app alone have more objects.
    assert (int(get(server, "/frozen").text) > 1000) is is_frozen


@pytest.mark.needs_oxicorn
def test_an_app_without_a_lifespan_is_told_once_and_not_as_an_error(launch):
    server = serving(launch, "raises at once")
    said = [entry for entry in server.events() if "lifespan" in str(entry)]
    assert len(said) == 1, said
    assert said[0]["level"] in ("INFO", "WARN")


@pytest.mark.needs_oxicorn
def test_an_app_without_a_lifespan_fails_where_the_settings_ask_for_one(launch):
    server = start(launch, "raises at once", settings={"python.lifespan": "on"})
    assert_boot_failure(server, "this app has no lifespan")


def test_a_lifespan_that_is_switched_off_is_never_called(launch):
    server = serving(launch, "startup raises", settings={"python.lifespan": "off"})
    assert get(server, "/hello").status == 200
    server.stop()
    assert server.records("startup") == []


def test_startup_failed_is_a_boot_failure_with_the_message_of_the_app(launch):
    assert_boot_failure(start(launch, "startup fails"), "the database said no")


@pytest.mark.differs_under_uvicorn("ends with 0")
def test_startup_failed_in_two_workers_is_the_same_boot_failure(launch):
    assert_boot_failure(start(launch, "startup fails", workers=2), "the database said no")


def test_startup_failed_without_a_message_is_a_boot_failure_too(launch):
    assert_boot_failure(start(launch, "startup fails without a message"))


@pytest.mark.differs_under_uvicorn("serves")
def test_an_exception_in_startup_is_a_boot_failure_with_its_traceback(launch):
    server = start(launch, "startup raises")
    assert_boot_failure(server, "RuntimeError: no database", "Traceback (most recent call last)", "life.py")


@pytest.mark.needs_oxicorn
def test_the_last_line_says_why_the_start_failed(launch):
    server = start(launch, "startup raises")
    server.wait_exit()
    [failed] = server.events("boot_failed")
    assert "RuntimeError: no database" in str(failed)
    assert "life.py" in str(failed), "the reason names the file"


@pytest.mark.differs_under_uvicorn("serves")
def test_a_startup_that_ends_without_an_answer_is_a_boot_failure(launch):
    assert_boot_failure(start(launch, "startup returns"))


@pytest.mark.needs_oxicorn
def test_an_exit_in_startup_is_a_boot_failure_and_not_the_end_that_the_app_wanted(launch):
    server = start(launch, "startup exits")
    assert_boot_failure(server, "7")


@pytest.mark.needs_oxicorn
def test_a_startup_that_never_ends_is_a_boot_failure_after_the_boot_timeout(launch):
    server = start(launch, "startup never ends", settings={"workers.boot_timeout": "500ms"})
    assert_boot_failure(server, "boot_timeout")


LIFESPANS = {
    "main.py": """
        import asyncio
        from contextlib import asynccontextmanager

        from starlette.applications import Starlette


        async def connect():
            await asyncio.sleep(100)


        @asynccontextmanager
        async def waits(app):
            await connect()
            yield


        @asynccontextmanager
        async def raises(app):
            raise RuntimeError("no database")
            yield


        waiting, raising = Starlette(lifespan=waits), Starlette(lifespan=raises)
    """
}
LIFESPANS = {name: textwrap.dedent(text) for name, text in LIFESPANS.items()}


@pytest.mark.needs_oxicorn
def test_the_log_says_where_a_startup_waits_that_never_ends(launch):
    """Through the frames of the framework, and through a context manager of contextlib, to the line of the app."""
    settings = {"workers.boot_timeout": "3s"}
    server = launch.prepare("main:waiting", files=LIFESPANS, settings=settings).start()
    assert_boot_failure(server, "boot_timeout", "await asyncio.sleep(100)", "in connect")


@pytest.mark.needs_oxicorn
def test_a_startup_that_raises_is_told_once(launch):
    """Starlette says so with the traceback, and then raises the same error."""
    server = launch.prepare("main:raising", files=LIFESPANS).start()
    assert_boot_failure(server, "no database")
    assert server.events("lifespan_failed") == []
    tries = len(server.events("worker_boot_failed"))
    last_lines = [event for event in server.events("boot_failure_details") if "no database" in event["message"]]
    raised = [event for event in last_lines if event["message"].startswith("RuntimeError")]
    assert len(raised) == tries


def test_a_slow_startup_is_waited_for(launch):
    server = serving(launch, "startup is slow")
    assert get(server, "/hello").status == 200


@pytest.mark.needs_oxicorn
def test_a_startup_that_blocks_is_no_hang(launch):
    server = serving(launch, "startup blocks", settings={"workers.timeout": "1s"})
    assert server.events("worker_hung") == []
    assert get(server, "/hello").status == 200


UNTOLD = pytest.mark.differs_under_uvicorn("says nothing of it")


@pytest.mark.parametrize("mode, said", [
    pytest.param("shutdown raises", "the shutdown went wrong", marks=UNTOLD),
    ("shutdown fails", "the pool would not close"),
])
def test_a_shutdown_that_fails_is_told_and_the_stop_goes_on(launch, mode, said):
    server = serving(launch, mode)
    server.stop()
    assert server.logged(said)


# --- the import ---


def imported(launch, text, app="main:app", **options):
    return launch.prepare(app, files={"main.py": text}, **options).start()


FINE = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"fine"})
"""


@pytest.mark.needs_oxicorn
def test_an_app_that_cannot_be_imported_is_a_boot_failure_that_names_file_and_line(launch):
    server = imported(launch, "import os\n\nprint(undefined_name)\n")
    assert_boot_failure(server, "NameError: name 'undefined_name' is not defined", "Traceback (most recent call last)")
    [failed] = server.events("boot_failed")
    assert "main.py, line 3" in str(failed) and "NameError" in str(failed)
    assert "_worker.py" not in "".join(str(line) for line in server.events()), "a frame of oxicorn's own is shown"


@pytest.mark.needs_oxicorn
def test_a_syntax_error_is_a_boot_failure_that_names_file_and_line(launch):
    server = imported(launch, "def broken(:\n    pass\n")
    assert_boot_failure(server, "SyntaxError")
    [failed] = server.events("boot_failed")
    assert "main.py, line 1" in str(failed)


@pytest.mark.needs_oxicorn
@pytest.mark.parametrize("app, said", [
    ("no_such_module:app", "no_such_module"),
    ("main:no_such_app", "no_such_app"),
    ("main:number", "number"),
])
def test_an_app_that_is_not_there_is_a_boot_failure_that_names_it(launch, app, said):
    server = imported(launch, FINE + "\nnumber = 7\n", app)
    assert_boot_failure(server)
    [failed] = server.events("boot_failed")
    assert said in str(failed)


@pytest.mark.needs_oxicorn
@pytest.mark.parametrize("app", ["main:app", "main", "main:make()", "main.py", "main.py:app", "./main.py"])
def test_every_way_to_name_an_app_serves_it(launch, app):
    server = launch(app, files={"main.py": FINE + "\ndef make():\n    return app\n"})
    assert get(server, "/").text == "fine"


@pytest.mark.needs_oxicorn
def test_a_module_alone_prefers_the_name_application(launch):
    text = FINE + "\napplication = app\napp = None\n"
    server = launch("main", files={"main.py": text})
    assert get(server, "/").text == "fine"


@pytest.mark.needs_oxicorn
def test_the_app_of_the_settings_file_is_served_without_an_argument(launch):
    server = launch(None, files={"main.py": FINE}, settings={"python.app": "main:app"})
    assert get(server, "/").text == "fine"


@pytest.mark.needs_oxicorn
def test_an_import_that_blocks_is_no_hang(launch):
    text = "import time\ntime.sleep(1.8)\n" + FINE
    server = launch("main:app", files={"main.py": text}, settings={"workers.timeout": "1s"})
    assert server.events("worker_hung") == []
    assert get(server, "/").text == "fine"


@pytest.mark.needs_oxicorn
def test_an_app_may_run_asyncio_while_it_is_imported(launch):
    text = "import asyncio\n\nasync def value():\n    await asyncio.sleep(0)\n\nasyncio.run(value())\n" + FINE
    server = launch("main:app", files={"main.py": text})
    assert get(server, "/").text == "fine"


@pytest.mark.needs_oxicorn
def test_the_start_with_a_good_app_takes_no_longer_than_its_import(launch):
    began = time.monotonic()
    launch("main:app", files={"main.py": FINE})
    assert time.monotonic() - began < 5
