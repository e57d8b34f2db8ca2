"""The service: `oxicorn app.main:app -w 2`, then http://127.0.0.1:8000/docs."""

import logging
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Query, Request, WebSocket, WebSocketDisconnect

from .models import Fact, Facts, NewFact, Problem
from .settings import get_settings
from .store import Store, open_store

log = logging.getLogger(__name__)


@asynccontextmanager
async def lifespan(app: FastAPI):
    """Runs in each worker: before its first request, and after its last one."""
    store = await open_store(get_settings())
    yield {"store": store, "listeners": set()}
    await store.close()


app = FastAPI(title="Facts", version="1.0.0", lifespan=lifespan)


def store(request: Request) -> Store:
    return request.state.store


Facts_ = Annotated[Store, Depends(store)]


@app.get("/health", tags=["checks"], summary="The worker is alive")
async def health() -> dict[str, str]:
    return {"status": "alive"}


@app.get("/ready", tags=["checks"], summary="The worker can serve", responses={503: {"model": Problem}})
async def ready(request: Request, store: Facts_) -> dict[str, str]:
    # oxicorn says when the whole service was asked to stop, so that a load balancer sends its requests elsewhere.
    if request.scope.get("extensions", {}).get("oxicorn", {}).get("stopping"):
        raise HTTPException(503, "the service stops")
    try:
        await store.ping()
    except Exception as error:
        raise HTTPException(503, f"the database does not answer: {type(error).__name__}") from error
    return {"status": "ready"}


@app.post("/facts", status_code=201, tags=["facts"], summary="Add a fact")
async def add(new: NewFact, request: Request, store: Facts_, background: BackgroundTasks) -> Fact:
    fact = await store.add(new.text)
    # Runs after the response. A drain of the worker waits for it.
    background.add_task(tell, request.state.listeners, fact)
    return fact


@app.get("/facts", tags=["facts"], summary="The newest facts")
async def newest(store: Facts_, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> Facts:
    return Facts(items=await store.newest(limit))


@app.get("/facts/{id}", tags=["facts"], summary="One fact", responses={404: {"model": Problem}})
async def get(id: str, store: Facts_) -> Fact:
    fact = await store.get(id)
    if fact is None:
        raise HTTPException(404, "there is no such fact")
    return fact


@app.websocket("/facts/new")
async def listen(websocket: WebSocket) -> None:
    """Sends each fact that this worker adds. When the worker drains, the client gets 1012 and connects again."""
    await websocket.accept()
    listeners = websocket.state.listeners
    listeners.add(websocket)
    try:
        while True:
            await websocket.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        listeners.discard(websocket)


async def tell(listeners: set[WebSocket], fact: Fact) -> None:
    for websocket in list(listeners):
        try:
            await websocket.send_text(fact.model_dump_json())
        except (WebSocketDisconnect, RuntimeError):
            log.info("a listener has gone")
