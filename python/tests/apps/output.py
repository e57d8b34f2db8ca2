"""Writes to stdout, stderr and the loggers that people configure."""

import logging
import logging.config
import sys

from toolkit import Routes, text

ROOT_BEFORE = (logging.getLogger().level, list(logging.getLogger().handlers))
logging.config.dictConfig({
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(name)s|%(levelname)s|%(message)s"}},
    "handlers": {"err": {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stderr"}},
    "loggers": {name: {"handlers": ["err"], "level": "INFO", "propagate": False}
                for name in ("uvicorn.error", "uvicorn.access", "gunicorn.error", "shop")},
})
app = Routes()


@app.route("/hello")
async def hello(scope, receive, send):
    await text(send, "hello")


@app.route("/print")
async def many_lines(scope, receive, send):
    which = scope["query_string"].decode()
    for number in range(200):
        print(f"<{which}:{number}:" + which * 2000 + ">")
        print(f"<{which}:{number}:" + which * 2000 + ">", file=sys.stderr)
    await text(send, "printed")


@app.route("/one-line")
async def one_line(scope, receive, send):
    print("one line of the app")
    await text(send, "printed")


@app.route("/log")
async def log(scope, receive, send):
    for name in ("uvicorn.error", "gunicorn.error", "shop"):
        logging.getLogger(name).info("said")
    logging.getLogger("shop").debug("not said")
    await text(send, "logged")


@app.route("/root")
async def root(scope, receive, send):
    await text(send, repr(ROOT_BEFORE))
