"""Promise: a browser works with an app as it does under any other server."""

import os
import subprocess
import sys
from pathlib import Path

import fastapi_offline
import pytest
from playwright.sync_api import sync_playwright

from harness import APPS, PATIENCE

SWAGGER = Path(fastapi_offline.__file__).with_name("static")
"""FastAPI's page loads the files of Swagger UI from another host. The tests answer with the same files from here."""


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        # With this rule the browser cannot resolve the name of any other host.
        offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", offline])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page, and at the end the assertion that the browser has no complaint."""
    complaints = []
    page = browser.new_page()
    page.set_default_timeout(PATIENCE * 1_000)
    page.route("**/favicon.ico", lambda route: route.fulfill(status=204))
    page.on("requestfailed", lambda request: complaints.append(f"{request.url}: {request.failure}"))
    page.on("console", lambda said: said.type in ("error", "warning") and complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    page.close()
    assert not complaints


def swagger(route):
    """Answers a request to another host."""
    name = route.request.url.rpartition("/")[2]
    route.fulfill(path=SWAGGER / name) if (SWAGGER / name).is_file() else route.fulfill(status=204)


def reload(server):
    done = server.ctl("reload")
    assert done.returncode == 0, done.stderr


def test_the_docs_of_fastapi_show_and_call_the_app_before_and_after_a_reload(launch, page):
    server = launch("shop:app")
    page.route(lambda url: not url.startswith(server.url), swagger)
    page.goto(f"{server.url}/docs")
    page.wait_for_selector(".opblock")
    assert page.inner_text(".info .title").startswith("Shop")
    block = page.locator(".opblock-get", has=page.locator("[data-path='/items/{number}']"))
    block.locator(".opblock-summary-control").click()
    block.locator(".try-out__btn").click()
    for number in ("7", "8"):
        block.locator("tr[data-param-name='number'] input").fill(number)
        block.locator(".execute").click()
        answer = block.locator(".live-responses-table")
        answer.locator(".response-col_description", has_text=f"item {number}").wait_for()
        # The page stays open, with its connection.
        reload(server)


def test_a_web_socket_of_a_browser_learns_that_its_worker_drains(launch, page):
    server = launch("shop:app", settings={"workers.graceful_timeout": "20s"})
    page.goto(f"{server.url}/items/7")
    page.evaluate(
        """async url => {
            window.socket = new WebSocket(url);
            window.ended = new Promise(done => socket.onclose = event => done(event.code));
            await new Promise(done => socket.onopen = done);
        }""",
        f"{server.url.replace('http', 'ws')}/chat/room",
    )
    said = page.evaluate(
        """() => new Promise(done => { socket.onmessage = event => done(event.data); socket.send("hello"); })"""
    )
    assert "hello" in said
    reload(server)
    assert page.evaluate("window.ended") == 1012


def test_a_user_logs_in_to_the_admin_of_django_and_stays_through_a_reload(launch, page, tmp_path):
    """Over WSGI, with the files of the admin by whitenoise."""
    site = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run([sys.executable, APPS / "django_site.py"], env=site, check=True, capture_output=True, timeout=60)
    server = launch("django_site", settings={"python.threads": 4}, environment={"HOME": str(tmp_path)})
    page.goto(f"{server.url}/admin/")
    page.fill("#id_username", "ann")
    page.fill("#id_password", "a password")
    page.click("input[type=submit]")
    page.wait_for_selector("#user-tools")
    reload(server)
    page.goto(f"{server.url}/admin/auth/user/")
    assert page.inner_text("#result_list .field-username") == "ann"
    # The page has its style sheet.
    assert page.evaluate("getComputedStyle(document.querySelector('#header')).display") == "flex"
