"""Asks with niquests. Each thread has its own session; with STYLE=async tasks share an AsyncSession.

Over plain TCP, the client begins with HTTP/2 at once (prior knowledge), because there is no ALPN to choose it.
"""
import asyncio
import os

import load
import niquests

options = {"disable_http1": load.VERSION == "2", "disable_http2": load.VERSION != "2", "disable_http3": True}


def dress(session):
    session.trust_env, session.verify = False, load.CA
    return session


def make():
    session = dress(niquests.Session(**options))

    def ask():
        answer = session.request(load.METHOD, load.URL, data=load.BODY, timeout=30)
        assert answer.http_version == (20 if load.VERSION == "2" else 11), answer.http_version
        return answer.status_code, answer.content

    return ask


async def main():
    async with dress(niquests.AsyncSession(**options)) as session:

        async def ask():
            answer = await session.request(load.METHOD, load.URL, data=load.BODY, timeout=30)
            return answer.status_code, answer.content

        await load.tasks(ask)


asyncio.run(main()) if os.environ.get("STYLE") == "async" else load.threads(make)
