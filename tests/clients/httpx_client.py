"""Asks with httpx. The arguments are the URL and the HTTP version (1 or 2). Prints the number of correct answers."""

import asyncio
import sys

import httpx

url, version = sys.argv[1], sys.argv[2]


async def main() -> None:
    async with httpx.AsyncClient(base_url=url, http1=version == "1", http2=version == "2", trust_env=False) as client:
        right = 0

        def judge(response: httpx.Response, content: bytes | None = None) -> None:
            nonlocal right
            assert response.http_version == {"1": "HTTP/1.1", "2": "HTTP/2"}[version], response.http_version
            assert response.status_code == 200, response.text
            assert content is None or response.content == content
            right += 1

        async def chunks():
            for number in range(20):
                yield bytes([65 + number]) * 5000

        for answers in [asyncio.gather(*(client.get("/health") for _ in range(20))) for _ in range(5)]:
            for response in await answers:
                judge(response)
        big = b"0123456789abcdef" * 65536
        for _ in range(5):
            judge(await client.post("/debug/echo", content=big), big)
            complete = b"".join([chunk async for chunk in chunks()])
            judge(await client.post("/debug/echo", content=chunks()), complete)
        print(right)


asyncio.run(main())
