"""Serves facts as the reference service does, written as FastAPI users would: with pymongo's async client, or with
sqlite3 in a thread. `make bench-facts` compares both services; `benches/facts.py` starts this one under uvicorn.
"""

import asyncio
import os
import sqlite3
import threading
import uuid
from datetime import datetime, timezone

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

app = FastAPI()


class Draft(BaseModel):
    text: str = Field(min_length=1, max_length=2000)
    source: str | None = None
    tags: list[str] = Field(default_factory=list, max_length=16)


def fresh(draft: Draft) -> dict:
    now = datetime.now(timezone.utc)
    return {"_id": str(uuid.uuid4()), **draft.model_dump(), "created_at": now, "updated_at": now}


def shown(fact: dict) -> dict:
    return {"id": fact["_id"], **{key: value for key, value in fact.items() if key != "_id"}}


class Mongo:
    def __init__(self, uri: str):
        from pymongo import AsyncMongoClient

        self.facts = AsyncMongoClient(uri, maxPoolSize=10)["bench_fastapi"]["facts"]

    async def insert(self, fact: dict):
        await self.facts.insert_one(fact)

    async def get(self, id: str):
        return await self.facts.find_one({"_id": id})


class Sqlite:
    """A connection per thread, with WAL and synchronous=NORMAL: as durable as the reference service."""

    def __init__(self, path: str):
        self.path, self.local = path, threading.local()
        self.connection().execute(
            "CREATE TABLE IF NOT EXISTS facts "
            "(_id TEXT PRIMARY KEY, text TEXT, source TEXT, created_at TEXT, updated_at TEXT)"
        )

    def connection(self):
        if not hasattr(self.local, "connection"):
            self.local.connection = sqlite3.connect(self.path, timeout=10, isolation_level=None)
            self.local.connection.execute("PRAGMA journal_mode=WAL")
            self.local.connection.execute("PRAGMA synchronous=NORMAL")
        return self.local.connection

    async def insert(self, fact: dict):
        row = (
            fact["_id"],
            fact["text"],
            fact["source"],
            fact["created_at"].isoformat(),
            fact["updated_at"].isoformat(),
        )
        await asyncio.to_thread(lambda: self.connection().execute("INSERT INTO facts VALUES (?, ?, ?, ?, ?)", row))

    async def get(self, id: str):
        def read():
            cursor = self.connection().execute("SELECT * FROM facts WHERE _id = ?", (id,))
            row = cursor.fetchone()
            return row and dict(zip((column[0] for column in cursor.description), row), tags=[])

        return await asyncio.to_thread(read)


store = Mongo(os.environ["MONGODB_URI"]) if "MONGODB_URI" in os.environ else Sqlite(os.environ["SQLITE_PATH"])


@app.get("/health")
async def health():
    return {"status": "alive"}


@app.post("/facts", status_code=201)
async def create(draft: Draft):
    fact = fresh(draft)
    await store.insert(fact)
    return shown(fact)


@app.get("/facts/{id}")
async def read(id: str):
    fact = await store.get(id)
    if fact is None:
        raise HTTPException(404)
    return shown(fact)
