"""Where the facts are kept: a file of SQLite, or MongoDB.

Each worker opens its own store in the lifespan, after the fork. Nothing is opened when the module is imported.
"""

import asyncio
import os
import sqlite3
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from .models import Fact
from .settings import Settings


def now() -> datetime:
    """Returns the time in milliseconds, which is as precise as MongoDB keeps it."""
    time = datetime.now(UTC)
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


class Store(Protocol):
    async def add(self, text: str) -> Fact: ...
    async def get(self, id: str) -> Fact | None: ...
    async def newest(self, limit: int) -> list[Fact]: ...
    async def ping(self) -> None: ...
    async def close(self) -> None: ...


async def open_store(settings: Settings) -> Store:
    if settings.mongodb_uri:
        return await MongoStore.open(settings)
    return SqliteStore(settings.sqlite_path)


class SqliteStore:
    """SQLite blocks, so each call runs on the one thread that holds the connection."""

    def __init__(self, path: Path) -> None:
        state = os.environ.get("STATE_DIRECTORY")
        path = Path(state, path) if state and not path.is_absolute() else path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, check_same_thread=False, timeout=10, isolation_level=None)
        # Several workers write to the file.
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS facts (id TEXT PRIMARY KEY, text TEXT NOT NULL, created TEXT NOT NULL)"
        )
        self._one_at_a_time = asyncio.Lock()

    async def _run(self, sql: str, *values: object) -> list[tuple[str, str, str]]:
        async with self._one_at_a_time:
            return await asyncio.to_thread(lambda: self._database.execute(sql, values).fetchall())

    async def add(self, text: str) -> Fact:
        fact = Fact(id=uuid.uuid4().hex, text=text, created=now())
        await self._run("INSERT INTO facts VALUES (?, ?, ?)", fact.id, fact.text, fact.created.isoformat())
        return fact

    async def get(self, id: str) -> Fact | None:
        rows = await self._run("SELECT id, text, created FROM facts WHERE id = ?", id)
        return _fact(rows[0]) if rows else None

    async def newest(self, limit: int) -> list[Fact]:
        rows = await self._run("SELECT id, text, created FROM facts ORDER BY created DESC LIMIT ?", limit)
        return [_fact(row) for row in rows]

    async def ping(self) -> None:
        await self._run("SELECT id, text, created FROM facts LIMIT 0")

    async def close(self) -> None:
        self._database.close()


def _fact(row: tuple[str, str, str]) -> Fact:
    id, text, created = row
    return Fact(id=id, text=text, created=datetime.fromisoformat(created))


class MongoStore:
    """MongoDB by Beanie, on the asynchronous client of PyMongo."""

    def __init__(self, client, document) -> None:
        self._client = client
        self._document = document

    @classmethod
    async def open(cls, settings: Settings) -> "MongoStore":
        # Imported here: a service on SQLite needs neither.
        from beanie import init_beanie
        from pymongo import AsyncMongoClient

        from .document import FactDocument

        client = AsyncMongoClient(settings.mongodb_uri, tz_aware=True, serverSelectionTimeoutMS=5000)
        await init_beanie(database=client[settings.mongodb_database], document_models=[FactDocument])
        return cls(client, FactDocument)

    async def add(self, text: str) -> Fact:
        document = await self._document(text=text, created=now()).insert()
        return document.fact()

    async def get(self, id: str) -> Fact | None:
        from bson import ObjectId
        from bson.errors import InvalidId

        try:
            document = await self._document.get(ObjectId(id))
        except InvalidId:
            return None
        return document.fact() if document else None

    async def newest(self, limit: int) -> list[Fact]:
        return [document.fact() async for document in self._document.find_all().sort("-created").limit(limit)]

    async def ping(self) -> None:
        await self._client.admin.command("ping")

    async def close(self) -> None:
        await self._client.close()
