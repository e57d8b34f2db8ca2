"""The rows of clients that ask oxicorn directly: one for each library and transport, and what each loses by its own fault."""
import sys

from drive import ROOT, TARGET, Load, Row

PROGRAMS = ROOT / "tests/clients/programs"


def python(program, packages="clients-python", **more):
    environment = (("PYTHONPATH", str(TARGET / packages)), *more.pop("environment", ()))
    return Load((sys.executable, str(PROGRAMS / f"with_{program}.py")), environment=environment, **more)


def style(name):
    return {"environment": (("STYLE", name),)}


ROWS = [
    Row("requests", "HTTP/1.1", python("requests"), short=True),
    Row("httpx", "HTTP/1.1", python("httpx")),
    Row("httpx", "HTTP/1.1, unix", python("httpx"), unix=True),
    Row("httpx", "h2c", python("httpx", version="2"), short=True),
    Row("httpx, one for all threads", "h2c", python("httpx", version="2", **style("shared"))),
    Row("httpx, async", "HTTP/2, TLS", python("httpx", version="2", **style("async")), tls=True),
]
