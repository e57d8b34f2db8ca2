"""The event loop of a worker: asyncio's own, whose selector is tokio.

Owns: the Python part of the loop and of its selector. Refuses: everything that asyncio's `SelectorEventLoop` does
itself.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
from collections.abc import Awaitable
from typing import Any

from oxicorn._oxicorn import LoopBase


class Selector(selectors.EpollSelector):
    """The selector of the loop. `select` is replaced by the native one, in which tokio runs."""

    def __init__(self) -> None:
        super().__init__()
        self._loop: Loop | None = None

    def _bind(self, loop: Loop, append: Any, call_soon: Any) -> None:
        self._loop = loop
        loop._oxicorn_bind(os.dup(self.fileno()), append, asyncio.Handle, call_soon, self.select, self._fd_to_key)
        self.select = loop._oxicorn_select

    def close(self) -> None:
        if self._loop is not None:
            self._loop._oxicorn_unbind()
            # The native method holds the loop, and the loop holds this selector.
            self._loop = None
            del self.select
        super().close()


#: How many bytes a transport reads at once. asyncio makes a buffer of this size for each read, and its own 256 KiB are
#: so large that the memory comes from the kernel and goes back there each time.
READ_SIZE = 16 * 1024


class Loop(LoopBase, asyncio.SelectorEventLoop):
    """The loop of a worker. There is one, in the main thread."""

    def __init__(self, is_plain: bool = False) -> None:
        self._is_plain = is_plain
        selector = Selector()
        asyncio.SelectorEventLoop.__init__(self, selector)
        selector._bind(self, self._ready.append, super(LoopBase, self).call_soon)
        self._wake_at_signals()

    def _wake_at_signals(self) -> None:
        """Lets each signal of Python end the wait of the selector, so that handlers of `signal.signal` run at once."""
        if self._csock is not None:
            signal.set_wakeup_fd(self._csock.fileno(), warn_on_full_buffer=False)

    def close(self) -> None:
        super().close()
        # The number of the descriptor may be that of another file by now.
        signal.set_wakeup_fd(-1)

    def _make_socket_transport(self, *args: Any, **more: Any) -> asyncio.Transport:
        transport = super()._make_socket_transport(*args, **more)
        if not self._is_plain:
            transport.max_size = READ_SIZE
        return transport

    def set_debug(self, enabled: bool) -> None:
        super().set_debug(enabled)
        # In debug mode asyncio checks the thread and the callback, and notes where the callback was scheduled.
        self._oxicorn_use_stdlib(enabled or self._is_plain)

    def set_task_factory(self, factory: Any) -> None:
        super().set_task_factory(factory)
        self._oxicorn_has_task_factory(factory is not None)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        handle = super().call_at(when, callback, *args, context=context)
        self._oxicorn_scheduled()
        return handle

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:
        super().add_signal_handler(sig, callback, *args)
        if sig == signal.SIGTERM:
            # The worker drains at a SIGTERM, and then it calls the app's handler too.
            self._hold_sigterm()

    def remove_signal_handler(self, sig: int) -> bool:
        removed = super().remove_signal_handler(sig)
        # asyncio gives the descriptor up with its last handler.
        self._wake_at_signals()
        if sig == signal.SIGTERM:
            self._hold_sigterm()
        return removed

    def stop(self) -> None:
        super().stop()
        self._oxicorn_interrupt()

    def _write_to_self(self) -> None:
        if self._oxicorn_interrupt():
            super()._write_to_self()


async def as_coroutine(awaitable: Awaitable[None]) -> None:
    """Awaits what the app returned in place of a coroutine."""
    await awaitable
