"""Asks with aiohttp. All tasks share one session."""
import asyncio
import ssl

import aiohttp
import load


async def main():
    tls = ssl.create_default_context(cafile=load.CA)
    connector = aiohttp.UnixConnector(load.SOCKET) if load.SOCKET else aiohttp.TCPConnector(ssl=tls)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(30)) as session:

        async def ask():
            async with session.request(load.METHOD, load.URL, data=load.BODY) as answer:
                return answer.status, await answer.read()

        await load.tasks(ask)


asyncio.run(main())
