"""Asks with httpx. Each thread has a client; STYLE=shared: all share one; STYLE=async: tasks share an AsyncClient."""
import asyncio
import os
import ssl

import httpx
import load

style = os.environ.get("STYLE")
versions = {"http1": load.VERSION != "2", "http2": load.VERSION == "2"}


def options(transport):
    given = {"trust_env": False, "timeout": 30, "verify": ssl.create_default_context(cafile=load.CA)}
    return given | ({"transport": transport(uds=load.SOCKET, **versions)} if load.SOCKET else versions)


def asks(client):
    def ask():
        answer = client.request(load.METHOD, load.URL, content=load.BODY)
        return answer.status_code, answer.content

    return ask


async def main():
    async with httpx.AsyncClient(**options(httpx.AsyncHTTPTransport)) as client:

        async def ask():
            answer = await client.request(load.METHOD, load.URL, content=load.BODY)
            return answer.status_code, answer.content

        await load.tasks(ask)


if style == "async":
    asyncio.run(main())
else:
    shared = style == "shared" and asks(httpx.Client(**options(httpx.HTTPTransport)))
    load.threads(lambda: shared or asks(httpx.Client(**options(httpx.HTTPTransport))))
