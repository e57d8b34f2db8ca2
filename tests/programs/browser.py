"""Opens /docs in a headless Chromium, enters the token, and makes a fact with "Try it out".

Usage: browser.py http://host:port TOKEN. Exits with code 1 when the page logs an error or asks another host.
"""

import sys
import urllib.parse

from playwright.sync_api import sync_playwright

base, token = sys.argv[1:]
asked, complaints = [], []

with sync_playwright() as playwright:
    # With this rule the browser cannot resolve the name of any other host, so it reaches only the service.
    offline = f"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE {urllib.parse.urlsplit(base).hostname}"
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", offline])
    page = browser.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: complaints.append(f"{request.url}: {request.failure}"))
    page.on("response", lambda answer: answer.ok or complaints.append(f"{answer.url}: {answer.status}"))
    page.on("console", lambda said: said.type in ("error", "warning") and complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))

    page.goto(f"{base}/docs")
    page.wait_for_selector(".opblock")
    assert "oxicorn" in page.inner_text(".info .title"), page.inner_text("body")
    shown = page.locator(".opblock").count()
    assert shown >= 12, f"only {shown} operations are shown"

    page.click(".auth-wrapper .authorize")
    page.fill(".auth-container input", token)
    page.click(".auth-container button.authorize")
    page.click(".auth-container .btn-done")

    block = page.locator(".opblock-post", has=page.locator("[data-path='/facts']"))
    block.locator(".opblock-summary-control").click()
    block.locator(".try-out__btn").click()
    block.locator(".execute").click()
    block.locator(".live-responses-table .response-col_status", has_text="201").wait_for()
    assert "Otters hold hands" in block.locator(".live-responses-table").inner_text()
    browser.close()

elsewhere = [url for url in asked if not url.startswith(("data:", f"{base}/"))]
assert not elsewhere, f"asked elsewhere: {elsewhere}"
assert not complaints, f"the browser complains: {complaints}"
assert any(url.endswith("/openapi.json") for url in asked), asked
print(f"{shown} operations shown, {len(asked)} requests, all to {base}; a fact was made")
