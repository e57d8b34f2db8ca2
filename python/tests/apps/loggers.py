"""An app that configures the loggers of Uvicorn and Gunicorn as apps do. $LOGGERS says how."""

import logging
import logging.config
import os
import sys
import threading

from toolkit import Routes, record, text

app = Routes()


class Recorder(logging.Handler):
    """Records what the arguments of a log record are, which formatters and filters of apps look at."""

    def emit(self, entry):
        args = {key: entry.args[key] for key in "hlurmUqHsbBfa"} if isinstance(entry.args, dict) else list(entry.args)
        extra = entry.args["{x-shop}i"] if isinstance(entry.args, dict) else None
        failed = entry.exc_info and repr(entry.exc_info[1])
        record(entry.name, args=args, text=entry.getMessage(), extra=extra, failed=failed)


class Filter(logging.Filter):
    def filter(self, entry):
        return entry.args[2] != "/quiet"


match os.environ.get("LOGGERS"):
    case "uvicorn's own":
        import uvicorn.config

        logging.config.dictConfig(uvicorn.config.LOGGING_CONFIG)
    case "handlers":
        for name in ("uvicorn.access", "gunicorn.access", "uvicorn.error"):
            logging.getLogger(name).addHandler(Recorder())
        logging.getLogger("uvicorn.access").addFilter(Filter())
    case "formatter":
        logging.getLogger("uvicorn.access").handlers[0].setFormatter(logging.Formatter("shop|%(message)s"))
    case "root":
        logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="root|%(name)s|%(message)s")
        for name in ("uvicorn", "uvicorn.access", "gunicorn.error", "gunicorn.access"):
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).propagate = True


@app.route("/")
async def root(scope, receive, send):
    await text(send, "hello")


@app.route("/quiet")
async def quiet(scope, receive, send):
    await text(send, "not in the log")


@app.route("/say")
async def say(scope, receive, send):
    for name in ("uvicorn", "uvicorn.error", "gunicorn.error"):
        logging.getLogger(name).info("said by %s", name)
        logging.getLogger(name).debug("whispered")
    await text(send, "said")


@app.route("/attach")
async def attach(scope, receive, send):
    logging.getLogger("gunicorn.access").addHandler(Recorder())
    await text(send, "attached")


@app.route("/detach")
async def detach(scope, receive, send):
    logging.getLogger("gunicorn.access").handlers.clear()
    await text(send, "detached")


@app.route("/fail")
async def fail(scope, receive, send):
    raise ValueError("the shelf is empty")


@app.route("/thread")
async def thread(scope, receive, send):
    def fails():
        raise RuntimeError("in a thread")

    one = threading.Thread(target=fails)
    one.start()
    one.join()
    await text(send, "it failed")
