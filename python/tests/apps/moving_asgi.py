"""An ASGI app that says what it sees of its process and of its request. It is copied into the folder of a server."""

import asyncio
import logging
import os

from toolkit import Routes, answer, read, record, start, text
from toolkit import body as send_body

record("imported")


def create_app():
    routes = Routes()

    @routes.route("/facts")
    async def facts(scope, receive, send):
        await answer(
            send,
            {
                "pid": os.getpid(),
                "cwd": os.getcwd(),
                "environment": dict(os.environ),
                "scheme": scope["scheme"],
                "client": scope["client"] and scope["client"][0],
                "path": scope["path"],
                "root_path": scope.get("root_path"),
                "loop": type(asyncio.get_running_loop()).__module__,
            },
        )

    @routes.route("/pid")
    async def pid(scope, receive, send):
        await asyncio.sleep(0.03)
        await text(send, str(os.getpid()))

    @routes.route("/sleep")
    async def sleep(scope, receive, send):
        await asyncio.sleep(float(scope["query_string"]))
        await text(send, "slept")

    @routes.route("/page")
    async def page(scope, receive, send):
        await text(send, "page")

    @routes.route("/log")
    async def log(scope, receive, send):
        logging.getLogger("shop").warning("the shop says %s", scope["query_string"].decode())
        await text(send, "logged")

    @routes.route("/echo")
    async def echo(scope, receive, send):
        await text(send, await read(receive))

    @routes.route("/stream")
    async def stream(scope, receive, send):
        await start(send)
        await send_body(send, b"one ", more=True)
        await send_body(send, b"two")

    @routes.route("/raise")
    async def fail(scope, receive, send):
        raise RuntimeError("as asked")

    async def lifespan(scope, receive, send):
        while True:
            message = await receive()
            record(message["type"])
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return

    routes.lifespan = lifespan

    async def app(scope, receive, send):
        # Servers differ in whether the path contains the root path; this app answers both.
        root = scope.get("root_path") or ""
        if scope["type"] == "http" and root and scope["path"].startswith(root + "/"):
            await routes({**scope, "path": scope["path"].removeprefix(root)}, receive, send)
        else:
            await routes(scope, receive, send)

    return app


app = create_app()
