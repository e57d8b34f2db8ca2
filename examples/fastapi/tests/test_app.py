"""Tests of the app without a server: httpx calls it in this process."""

import httpx
import pytest

from app.main import app, lifespan
from app.settings import get_settings


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def client(tmp_path, monkeypatch):
    monkeypatch.setenv("FACTS_SQLITE_PATH", str(tmp_path / "facts.db"))
    get_settings.cache_clear()

    async def with_state(scope, receive, send):
        # httpx runs no lifespan, so its state is passed on here, as a server does.
        await app({**scope, "state": dict(state)}, receive, send)

    async with lifespan(app) as state:
        transport = httpx.ASGITransport(app=with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://facts") as client:
            yield client


@pytest.mark.anyio
async def test_a_fact_can_be_added_and_read(client):
    added = await client.post("/facts", json={"text": "Ice floats."})
    assert added.status_code == 201
    fact = added.json()
    assert (await client.get(f"/facts/{fact['id']}")).json() == fact
    assert (await client.get("/facts")).json() == {"items": [fact]}


@pytest.mark.anyio
async def test_an_empty_fact_is_refused(client):
    assert (await client.post("/facts", json={"text": ""})).status_code == 422


@pytest.mark.anyio
async def test_an_unknown_fact_is_404(client):
    assert (await client.get("/facts/none")).json() == {"detail": "there is no such fact"}


@pytest.mark.anyio
async def test_the_checks_answer(client):
    assert (await client.get("/health")).json() == {"status": "alive"}
    assert (await client.get("/ready")).json() == {"status": "ready"}


@pytest.mark.anyio
async def test_the_schema_has_an_example(client):
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert schemas["NewFact"]["examples"]
