"""httpx, a client for each thread; STYLE=shared one client for all of them, STYLE=async an AsyncClient for as many tasks."""
import asyncio
import os
import ssl

import httpx
import load

style = os.environ.get("STYLE")
options = {
    "http1": load.VERSION != "2", "http2": load.VERSION == "2", "trust_env": False, "timeout": 30, "verify": ssl.create_default_context(cafile=load.CA),
}  # fmt: skip
if load.SOCKET:
    transport = httpx.AsyncHTTPTransport if style == "async" else httpx.HTTPTransport
    options["transport"] = transport(uds=load.SOCKET, http1=options.pop("http1"), http2=options.pop("http2"))


def asks(client):
    def ask():
        answer = client.request(load.METHOD, load.URL, content=load.BODY)
        return answer.status_code, answer.content

    return ask


async def main():
    async with httpx.AsyncClient(**options) as client:

        async def ask():
            answer = await client.request(load.METHOD, load.URL, content=load.BODY)
            return answer.status_code, answer.content

        await load.tasks(ask)


if style == "async":
    asyncio.run(main())
else:
    shared = httpx.Client(**options) if style == "shared" else None
    load.threads(lambda: asks(shared or httpx.Client(**options)))
