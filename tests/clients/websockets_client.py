"""Sends messages with websockets to examples/websocket.rs at the given URL. Prints how many came back."""

import asyncio
import sys

from websockets.asyncio.client import connect


async def talk(number: int) -> int:
    right = 0
    async with connect(sys.argv[1], proxy=None) as socket:
        for message in [f"client {number} message {n}" for n in range(50)] + [bytes([number]) * 100_000]:
            await socket.send(message)
            assert await socket.recv() == message
            right += 1
        await (await socket.ping())
    return right


async def main() -> None:
    print(sum(await asyncio.gather(*(talk(number) for number in range(8)))))


asyncio.run(main())
