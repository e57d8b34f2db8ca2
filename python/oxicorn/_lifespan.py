"""The lifespan of the app, and the end of its tasks.

Owns: the lifespan scope, its messages, and the order of the end: lifespan, tasks, generators, executor. Refuses: to end
requests (`_oxicorn` does), and to end the process (`_worker`).
"""

import asyncio
import sys
import traceback
from asyncio.base_events import _run_until_complete_cb

from . import _oxicorn, _worker

#: The part of the time for the end that the threads of the default executor get at most.
EXECUTOR_TIME = 0.5


def _frames(awaited):
    """Returns the frames of a coroutine that waits, from the outermost to the one that waits."""
    while awaited is not None:
        kind = next((kind for kind in ("cr", "ag", "gi") if hasattr(awaited, f"{kind}_frame")), None)
        frame = kind and getattr(awaited, f"{kind}_frame")
        if frame is None:
            return
        yield frame
        inner = getattr(awaited, f"{kind}_yieldfrom" if kind == "gi" else f"{kind}_await")
        # The step of an asynchronous generator does not show the generator. The context managers of contextlib have it.
        if not any(hasattr(inner, f"{kind}_frame") for kind in ("cr", "ag", "gi")):
            inner = getattr(frame.f_locals.get("self"), "gen", None)
        awaited = inner


async def _main():
    """Waits for ever, in the place of the task for which `asyncio.run()` runs a loop. anyio ties its threads to that
    task, and finds it by this callback. Without such a task it ties them to the task of each request, and makes new
    threads for the next one."""
    main = asyncio.current_task()
    main.add_done_callback(_run_until_complete_cb)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        # The callback would stop the loop.
        main.remove_done_callback(_run_until_complete_cb)


class Lifespan:
    """The lifespan of one worker. `mode` is `python.lifespan`."""

    def __init__(self, app, loop, state, mode, spec_version, grace, slot):
        self._app, self._loop, self._mode, self._grace, self._slot = app, loop, mode, grace, slot
        self._scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": spec_version}, "state": state}
        self._messages = asyncio.Queue()
        self._received = set()
        self._answered = {phase: loop.create_future() for phase in ("startup", "shutdown")}
        self._main = self._task = None

    async def start(self):
        """Starts the lifespan. Returns None when the app is ready, or the sentence and the traceback of its failure."""
        self._main = self._loop.create_task(_main(), name="main")
        failure = None if self._mode == "off" else await self._start_app()
        if failure is None:
            _worker.spare_the_collector()
        return failure

    async def _start_app(self):
        self._task = self._loop.create_task(self._run(), name="lifespan")
        self._messages.put_nowait({"type": "lifespan.startup"})
        failure = await self._answered["startup"]
        _worker.hold_sigterm(self._loop)
        return failure

    async def _run(self):
        try:
            await self._app(self._scope, self._receive, self._send)
        except asyncio.CancelledError:
            raised = None
        except BaseException as error:
            raised = error
        else:
            raised = None
        self._returned(raised)

    def _returned(self, error):
        startup, shutdown = self._answered["startup"], self._answered["shutdown"]
        if not startup.done():
            startup.set_result(self._why_not_started(error))
        elif not shutdown.done() and error is not None and startup.result() is None:
            # An app whose startup has failed is told already. Many raise the same error once more.
            _oxicorn.lifespan_failed(self._slot, *_worker.explain(error, "lifespan"))
        if not shutdown.done():
            shutdown.set_result(None)

    def _why_not_started(self, error):
        """Returns None if an app that has left its lifespan before it answered has none."""
        if "startup" in self._received or self._mode == "on":
            if error is not None:
                sentence, details = _worker.explain(error, "lifespan.startup")
                return f"lifespan.startup: {sentence}", details
            if "startup" in self._received:
                return "lifespan.startup: the app returned without an answer", None
            return "python.lifespan is \"on\", and the app returned from the lifespan scope at once", None
        reason = "it returned at once" if error is None else _worker.explain(error, "lifespan")[0]
        _oxicorn.lifespan_unsupported(self._slot, reason)
        return None

    async def _receive(self):
        message = await self._messages.get()
        self._received.add(message["type"].removeprefix("lifespan."))
        return message

    async def _send(self, message):
        _, phase, outcome = [*message["type"].split("."), "", ""][:3]
        answer = self._answered.get(phase)
        if answer is None or outcome not in ("complete", "failed"):
            raise RuntimeError(f"{message['type']!r} is no message of a lifespan")
        if phase not in self._received or answer.done():
            raise RuntimeError(f"{message['type']!r} was not expected now")
        said = message.get("message") or "the app gave no reason"
        # Starlette puts the whole traceback into the message. Its last line has the reason.
        sentence, details = said.strip().splitlines()[-1], said.strip() if "\n" in said.strip() else None
        if outcome == "complete":
            answer.set_result(None)
        elif phase == "startup":
            answer.set_result((f"lifespan.startup failed: {sentence}", details))
        else:
            _oxicorn.lifespan_failed(self._slot, f"lifespan.shutdown failed: {sentence}", details)
            answer.set_result(None)

    def stack(self):
        """Returns where the lifespan waits now."""
        frames = [] if self._task is None else list(_frames(self._task.get_coro()))
        # The first frame is this file's.
        places = [(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name) for frame in frames[1:]]
        lines = [traceback.FrameSummary(*place) for place in places]
        return "".join(["It waits here:\n", *traceback.format_list(lines)]).rstrip("\n") if lines else ""

    async def end(self):
        """Ends the lifespan, and then the app's tasks, generators and threads."""
        if self._task is not None and not self._task.done():
            self._messages.put_nowait({"type": "lifespan.shutdown"})
            await self._answered["shutdown"]
        await self._end_tasks()
        await self._loop.shutdown_asyncgens()
        await self._end_executor()

    async def _end_tasks(self):
        """Cancels the tasks that the app has left, as `asyncio.run` does."""
        left = asyncio.all_tasks(self._loop) - {asyncio.current_task()}
        for task in left:
            task.cancel()
        # A task may refuse to be cancelled. The time of the whole end is limited by the worker.
        await asyncio.gather(*left, return_exceptions=True)
        for task in left:
            if not task.cancelled() and task.exception() is not None:
                context = {"message": "unhandled exception during shutdown", "exception": task.exception()}
                context["task"] = task
                self._loop.call_exception_handler(context)

    async def _end_executor(self):
        try:
            await asyncio.wait_for(self._loop.shutdown_default_executor(), self._grace * EXECUTOR_TIME)
        except TimeoutError:
            print("oxicorn: calls of the default executor run on", file=sys.stderr)
