"""Promise: an unmodified FastAPI app runs here with all that it uses of Starlette, anyio and pydantic."""

import asyncio
import gzip
import json
import time

import httpx
import pytest
import websockets.sync.client

from clients import Raw, get


@pytest.fixture(scope="module", params=["2.3", "2.5"])
def shared(request, launch_for_module):
    """Both versions of ASGI that the settings offer: a framework takes another way through each."""
    return launch_for_module("shop:app", settings={"python.asgi_spec": request.param})


@pytest.fixture
def server(shared):
    shared.clear_records()
    return shared


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


def test_a_model_is_answered_as_json(client):
    answer = client.get("/items/7", params={"q": "x"})
    assert (answer.status_code, answer.json()) == (200, {"name": "item 7 x", "price": 1.0})
    assert answer.headers["x-timing"] == "1"


def test_bodies_are_validated(client):
    assert client.post("/items", json={"name": "cup"}).json() == {
        "item": "cup", "session": "session", "pool": ["connection"],
    }
    assert client.post("/items", json={"name": ""}).status_code == 422
    assert client.post("/items", content=b"{", headers={"content-type": "application/json"}).status_code == 422


def test_dependencies_are_closed_after_the_request(server, client):
    client.post("/items", json={"name": "cup"})
    server.wait_record("session closed")


def test_http_exceptions_are_answers(client):
    assert client.get("/items/404").json() == {"detail": "no such item"}
    assert client.get("/items/x").status_code == 422
    assert client.get("/nowhere").status_code == 404
    assert client.delete("/items/1").status_code == 405


def test_sixty_sync_endpoints_of_0_3_seconds_take_two_rounds_of_threads(server):
    async def ask():
        limits = httpx.Limits(max_connections=60)
        async with httpx.AsyncClient(base_url=server.url, timeout=20, limits=limits) as client:
            return await asyncio.gather(*(client.get("/sync") for _ in range(60)))

    began = time.monotonic()
    answers = asyncio.run(ask())
    took = time.monotonic() - began
    assert [answer.status_code for answer in answers] == [200] * 60
    assert answers[0].json() == {"request": "/sync"}
    # One after the other they would take 18 s; anyio has 40 threads.
    assert took < 9


def test_a_thread_of_sync_endpoints_serves_more_than_one_request(client):
    first, *others = [client.get("/thread").json() for _ in range(4)]
    assert others == [first + 1, first + 2, first + 3]


def test_background_tasks_run_after_the_answer(server, client):
    assert client.get("/background").json() == {"accepted": True}
    server.wait_record("async work done")
    server.wait_record("sync work done")


@pytest.mark.parametrize("target", ["/stream", "/sync-stream"])
def test_streams_arrive_whole(client, target):
    assert client.get(target).text == "".join(f"line {number}\n" for number in range(5))


def test_a_file_is_sent_whole_and_in_ranges(client):
    content = b"0123456789" * 5000
    answer = client.get("/file", headers={"accept-encoding": "identity"})
    assert answer.content == content
    assert answer.headers["content-length"] == "50000"
    part = client.get("/file", headers={"range": "bytes=5-14", "accept-encoding": "identity"})
    assert (part.status_code, part.content) == (206, b"5678901234")
    assert client.get("/file", headers={"if-none-match": answer.headers["etag"]}).status_code in (200, 304)
    head = client.head("/file")
    assert head.status_code in (200, 405)


def test_middleware_compresses_and_answers_preflights(server, client):
    answer = get(server, "/large", "Accept-Encoding: gzip")
    assert answer.get("content-encoding") == "gzip"
    assert json.loads(gzip.decompress(answer.body)) == {"text": "words " * 1000}
    headers = {"origin": "https://shop.example", "access-control-request-method": "GET"}
    assert client.options("/items/1", headers=headers).headers["access-control-allow-origin"] == "https://shop.example"


@pytest.mark.differs_under_uvicorn("ends the connection")
def test_an_error_is_a_500_behind_all_middleware_and_the_connection_stays(client):
    for _ in range(3):
        assert client.get("/error").status_code == 500
        assert client.get("/items/1").status_code == 200


@pytest.mark.needs_oxicorn
def test_an_error_of_the_framework_is_one_event(server, client):
    before = len(server.events("app_error"))
    client.get("/error")
    server.wait_event("app_error", before + 1)
    client.get("/items/1")
    [said] = server.events("app_error")[before:]
    assert "RuntimeError: a bug in the shop" in str(said)


@pytest.mark.needs_oxicorn
def test_an_upload_that_its_client_gives_up_is_no_error_of_the_app(server, client):
    """Else any client could fill the log with tracebacks."""
    before = len(server.events("app_error"))
    with Raw(server) as connection:
        connection.request("POST", "/upload", "Content-Length: 100")
        connection.send(b"x" * 10)
        # Once another request is answered, the app waits for the rest of this one.
        assert client.get("/items/7").status_code == 200
        connection.reset()
        # The worker has noticed the end of the first client when it has answered these.
        for _ in range(20):
            assert client.get("/items/7").status_code == 200
    assert client.get("/error").status_code == 500
    server.wait_event("app_error", before + 1)
    assert [event["path"] for event in server.events("app_error")[before:]] == ["/error"]


def test_an_upload_is_streamed(client):
    pieces = (b"x" * 10_000 for _ in range(200))
    assert client.post("/upload", content=pieces).json() == {"total": 2_000_000}


def test_the_documentation_is_served(client):
    assert client.get("/openapi.json").json()["info"]["title"] == "Shop"
    assert "swagger-ui" in client.get("/docs").text


def test_a_web_socket_talks_and_ends(server):
    with websockets.sync.client.connect(f"ws://127.0.0.1:{server.port}/chat/lobby") as websocket:
        for text in ("one", "two"):
            websocket.send(text)
            assert json.loads(websocket.recv(20)) == {"room": "lobby", "text": text}
    assert server.wait_record("left")[0]["code"] == 1000


def test_many_requests_of_all_kinds_at_once_are_answered(server):
    async def ask():
        limits = httpx.Limits(max_connections=32)
        async with httpx.AsyncClient(base_url=server.url, timeout=30, limits=limits) as client:
            calls = []
            for number in range(10):
                calls.append(client.get(f"/items/{number}"))
                calls.append(client.post("/items", json={"name": "cup"}))
                calls.append(client.get("/stream"))
                calls.append(client.post("/upload", content=b"x" * 100_000))
            return await asyncio.gather(*calls)

    answers = asyncio.run(ask())
    assert {answer.status_code for answer in answers} == {200, 201}
    assert all(answer.json() == {"total": 100_000} for answer in answers[3::4])


@pytest.mark.needs_oxicorn
@pytest.mark.parametrize("names, found", [("shop", "shop"), ("zoo api", "api"), ("zoo bar", "bar")])
def test_an_app_of_any_name_is_found_by_its_class(launch, names, found):
    code = "from fastapi import FastAPI\nimport fastapi\n"
    for name in names.split():
        code += f"{name} = FastAPI(title='{name}')\n"
    server = launch("src/main.py", files={"src/main.py": code})
    assert json.loads(get(server, "/openapi.json").body)["info"]["title"] == found
