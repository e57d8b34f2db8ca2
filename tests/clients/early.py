#!/usr/bin/env python3
"""Answers that oxicorn gives before it has read the body, through every proxy.

POSTs of 20 kB go to a path that does not exist, on connections that stay open. Each must be answered with 404 and
nothing else: a proxy whose connection to oxicorn was closed too early answers 502.
"""
import argparse
import dataclasses
import sys

from drive import Result, Service
from proxies import FRONT, PROXIES, V2

SIZE, SECONDS = 20_000, 10
# Proxies that answer and then close their client's connection without `Connection: close`. They do the same in front of
# nginx, so it is not oxicorn's fault. The number is the largest share of POSTs that may be lost in this way.
OWN_FAULT = {("HAProxy", "h2c"): 0.1, ("HAProxy", "PROXY v2, h2c"): 0.1, ("Squid", "HTTP/1.1"): 0.1} | {
    ("nghttpx", transport): 0.1 for transport in ("HTTP/1.1", "unix", "h2c")
}
LOAD = dataclasses.replace(FRONT, size=SIZE, environment=(*FRONT.environment, ("WANTED", "404")))


def asked(proxy, transport, requests):
    """Runs clients through this proxy until at least `requests` requests are done."""
    result = Result()
    with Service(**(V2 if "v2" in transport else {})) as service, proxy.before(service, transport) as origin:
        while result.tried < requests:
            result += LOAD.ask(origin, "POST", SECONDS if requests > 10_000 else 2, path="/nope")
    return result


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--requests", type=int, default=2000, help="at least this many of each proxy and transport")
    ask.add_argument("--only", default="", help="only proxies whose name holds this text")
    ask, bad, all_of_them = ask.parse_args(), 0, 0
    for proxy in PROXIES:
        for transport in proxy.upstreams if ask.only in proxy.name else ():
            result = asked(proxy, transport, ask.requests)
            own = OWN_FAULT.get((proxy.name, transport), 0)
            said = f"{dict(result.errors)}{' by its own fault' if own else ''}" if result.lost else ""
            print(f"{proxy.name}, {transport}: {result.tried} POSTs, {result.lost} lost {said}", flush=True)
            bad, all_of_them = bad + (result.lost > own * result.tried), all_of_them + 1
    print(f"{all_of_them - bad} passed, {bad} failed")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
