"""FastAPI with what apps hold open for long: pools of three databases, a client, a signal handler, tracing, Sentry.

Each route uses one library and answers what it brought. All are open from the lifespan's start to its end.
"""

import asyncio
import contextlib
import contextvars
import os
import signal
import threading

import anyio
import asyncpg
import httpx
import pymongo
import redis.asyncio
import sentry_sdk
import sentry_sdk.transport
from fastapi import FastAPI, Request
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sentry_sdk.integrations.asyncio import enable_asyncio_integration
from sentry_sdk.integrations.asyncpg import AsyncPGIntegration
from sentry_sdk.integrations.fastapi import FastApiIntegration
from sentry_sdk.integrations.httpx import HttpxIntegration
from sentry_sdk.integrations.pymongo import PyMongoIntegration
from sentry_sdk.integrations.redis import RedisIntegration
from sentry_sdk.integrations.starlette import StarletteIntegration

from toolkit import record


class Recorder(sentry_sdk.transport.Transport):
    """In the place of the transport that sends events away."""

    def capture_envelope(self, envelope):
        if event := envelope.get_event():
            error = event["exception"]["values"][-1]
            record(
                "sentry",
                error=[error["type"], error["value"], error["stacktrace"]["frames"][-1]["function"]],
                tags=event.get("tags", {}),
                transaction=event["transaction"],
                request=event.get("request"),
            )


# Before the app is made: Sentry replaces functions of FastAPI. It would find these libraries by itself, but would also
# import Django, Litestar and all else that it knows.
sentry_sdk.init(
    dsn="https://key@127.0.0.1/1",
    transport=Recorder,
    traces_sample_rate=1.0,
    auto_enabling_integrations=False,
    integrations=[
        AsyncPGIntegration(),
        FastApiIntegration(),
        HttpxIntegration(),
        PyMongoIntegration(),
        RedisIntegration(),
        StarletteIntegration(),
    ],
)

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
tracer = provider.get_tracer(__name__)
who = contextvars.ContextVar("who", default="nobody")


@contextlib.asynccontextmanager
async def lifespan(app):
    enable_asyncio_integration()  # Sets a factory of tasks on the loop.
    name, state = f"worker-{os.getpid()}", app.state
    state.signalled = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGRTMIN + 3, state.signalled.set)
    async with (
        asyncpg.create_pool(
            host=os.environ["POSTGRES"],
            user="postgres",
            min_size=2,
            max_size=8,
            server_settings={"application_name": name},
        ) as state.postgres,
        redis.asyncio.Redis(host=os.environ["HOST"], client_name=name) as state.redis,
        pymongo.AsyncMongoClient(os.environ["HOST"], appname=name) as state.mongo,
        httpx.AsyncClient(timeout=20) as state.client,
    ):
        yield
    record("closed")


app = FastAPI(lifespan=lifespan)
FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)


@app.get("/asyncpg")
async def use_asyncpg():
    """Queries at once, a transaction that is rolled back, a cursor, and a message from one connection to another."""
    pool = app.state.postgres
    squares = await asyncio.gather(*(pool.fetchval("SELECT $1::int * $1::int", number) for number in range(10)))
    heard = asyncio.get_running_loop().create_future()
    channel = f"channel_{os.getpid()}"
    async with pool.acquire() as one, pool.acquire() as other:
        await one.execute("CREATE TEMPORARY TABLE IF NOT EXISTS facts (number int)")
        with contextlib.suppress(ZeroDivisionError):
            async with one.transaction():
                await one.execute("INSERT INTO facts VALUES (1)")
                raise ZeroDivisionError
        async with one.transaction():
            rows = [row["n"] async for row in one.cursor("SELECT n FROM generate_series(1, 1000) n", prefetch=100)]

        def hear(connection, pid, channel, payload):
            if not heard.done():
                heard.set_result(payload)

        await one.add_listener(channel, hear)
        await other.execute("SELECT pg_notify($1, 'told')", channel)
        told = await asyncio.wait_for(heard, 5)
        await one.remove_listener(channel, hear)
        return [sum(squares), await one.fetchval("SELECT count(*) FROM facts"), sum(rows), told]


@app.get("/connections")
async def connections():
    """Who is connected to PostgreSQL and to Redis."""
    names = await app.state.postgres.fetch(
        "SELECT DISTINCT application_name FROM pg_stat_activity WHERE application_name LIKE 'worker-%'"
    )
    clients = await app.state.redis.client_list()
    return [
        sorted(row["application_name"] for row in names),
        sorted({client["name"] for client in clients if client["name"]}),
    ]


@app.get("/redis")
async def use_redis():
    """A pipeline, a list that is waited for, and a subscription."""
    server, key = app.state.redis, f"key-{os.getpid()}-{id(asyncio.current_task())}"
    async with server.pipeline(transaction=True) as pipe:
        counts = await pipe.set(key, 1, ex=60).incr(key).incr(key).delete(key).execute()
    waiting = asyncio.create_task(server.blpop([key], timeout=5))
    await server.rpush(key, "pushed")
    popped = (await waiting)[1].decode()
    async with server.pubsub() as subscription:
        await subscription.subscribe(key)
        await subscription.get_message(timeout=5)
        await server.publish(key, "published")
        message = await subscription.get_message(ignore_subscribe_messages=True, timeout=5)
    return [counts, popped, message["data"].decode()]


@app.get("/pymongo")
async def use_pymongo():
    """Writes at once, a cursor of several batches, and an aggregation."""
    facts = app.state.mongo.test[f"facts-{os.getpid()}-{id(asyncio.current_task())}"]
    await asyncio.gather(*(facts.insert_many([{"n": one + ten} for one in range(10)]) for ten in range(0, 100, 10)))
    read = [fact["n"] async for fact in facts.find(batch_size=30).sort("n")]
    cursor = await facts.aggregate([{"$group": {"_id": None, "sum": {"$sum": "$n"}}}])
    sums = await cursor.to_list()
    await facts.drop()
    return [read == list(range(100)), sums[0]["sum"]]


@app.get("/httpx")
async def use_httpx(request: Request):
    """Asks this same service, so the worker answers while it waits, over connections that outlive the request."""
    answers = await asyncio.gather(*(app.state.client.get(f"{request.base_url}timeout") for _ in range(3)))
    return [answer.json() for answer in answers]


@app.get("/anyio")
async def use_anyio():
    """A task group whose tasks speak over a stream, a thread among them, and one that is cancelled."""
    results, cancelled = [], []

    async def produce(stream):
        async with stream:
            for number in range(5):
                await stream.send(await anyio.to_thread.run_sync(lambda square: square**2, number))

    async def consume(stream):
        async with stream:
            async for item in stream:
                results.append(item)

    async def endless():
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(True)

    sender, receiver = anyio.create_memory_object_stream(1)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as outer:
            outer.start_soon(endless)
            async with anyio.create_task_group() as group:
                group.start_soon(produce, sender)
                group.start_soon(consume, receiver)
            outer.cancel_scope.cancel()
    return [results, cancelled]


@app.get("/task-group")
async def task_group():
    """asyncio's own: a failed task cancels its sister and comes out in a group of exceptions."""
    ended = []

    async def endless():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def failing():
        await asyncio.sleep(0)
        raise LookupError("failed")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(endless())
            group.create_task(failing())
    except* LookupError as errors:
        ended += [str(error) for error in errors.exceptions]
    return ended


@app.get("/timeout")
async def timeout():
    try:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()
    except TimeoutError:
        return "timed out"


@app.get("/subprocess")
async def subprocess():
    """A program that answers line by line while its input is open."""
    process = await asyncio.create_subprocess_exec(
        "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    lines = []
    for word in (b"one\n", b"two\n"):
        process.stdin.write(word)
        lines.append((await asyncio.wait_for(process.stdout.readline(), 5)).decode().strip())
    process.stdin.close()
    return [*lines, await process.wait()]


@app.get("/to-thread")
async def to_thread():
    """The thread sees the context of the request."""
    who.set("the request")
    name, thread = await asyncio.to_thread(lambda: (who.get(), threading.current_thread()))
    return [name, thread is not threading.main_thread()]


@app.get("/signal")
async def own_signal():
    """The handler was set at the start, when no request was there."""
    app.state.signalled.clear()
    os.kill(os.getpid(), signal.SIGRTMIN + 3)
    await asyncio.wait_for(app.state.signalled.wait(), 5)
    return "seen"


@app.get("/traced/{number}")
async def traced(number: int):
    """Answers the trace that a thread sees of a span that began before a wait."""
    with tracer.start_as_current_span(f"inner {number}"):
        await asyncio.sleep(0.01)
        span = await asyncio.to_thread(trace.get_current_span)
        return f"{span.get_span_context().trace_id:032x}"


@app.get("/spans")
async def spans():
    return [
        {
            "name": span.name,
            "trace": f"{span.context.trace_id:032x}",
            "id": f"{span.context.span_id:016x}",
            "parent": f"{span.parent.span_id:016x}" if span.parent else None,
            "kind": span.kind.name,
            "status": span.attributes.get("http.status_code"),
        }
        for span in exporter.get_finished_spans()
    ]


@app.post("/fails/{number}")
async def fails(number: int, body: dict):
    sentry_sdk.set_tag("number", number)
    await asyncio.sleep(0.01)
    raise LookupError(f"{number} failed")
