"""A slow wire: a relay to a port of this machine that delivers every byte and every close after a delay."""
import asyncio
import contextlib
import threading


class Wire:
    def __init__(self, to, delay):
        """Prepares a relay to the port `to`. `delay` is the delay in each direction, in seconds."""
        self.to, self.delay, self.loop, self.tasks = to, delay, asyncio.new_event_loop(), set()

    def __enter__(self):
        async def listens():
            return await asyncio.start_server(self.opened, "127.0.0.1", 0)

        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.server = asyncio.run_coroutine_threadsafe(listens(), self.loop).result(5)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_):
        async def closes():
            self.server.close()
            # Repeats this until no task is left, because a connection may still arrive meanwhile.
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)

        # Without this, Python 3.11 prints a report for every connection that is cancelled.
        self.loop.set_exception_handler(lambda *_: None)
        asyncio.run_coroutine_threadsafe(closes(), self.loop).result(5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)

    async def opened(self, reader, writer):
        # Keeps a reference to the task: asyncio keeps none, and the garbage collector may remove a task that waits.
        self.tasks.add(asyncio.current_task())
        with contextlib.suppress(OSError):
            theirs, ours = await asyncio.open_connection("127.0.0.1", self.to)
            await asyncio.gather(self.carries(reader, ours), self.carries(theirs, writer), return_exceptions=True)
            ours.close()
        writer.close()

    async def carries(self, reader, writer):
        under_way = asyncio.Queue()

        async def delivers():
            data = True
            while data:
                due, data = await under_way.get()
                await asyncio.sleep(due - self.loop.time())
                with contextlib.suppress(OSError):
                    writer.write(data) if data else writer.write_eof()

        delivering, data = asyncio.create_task(delivers()), True
        while data:
            try:
                data = await reader.read(1 << 16)
            except OSError:
                data = b""
            under_way.put_nowait((self.loop.time() + self.delay, data))
        await delivering
