#!/usr/bin/env python3
"""Answers that oxicorn gives before it has read the body, through every proxy: POSTs of 20 kB to a path that is not there, on connections
that stay. Each has to be answered 404, and nothing else: a proxy whose connection was closed under it says 502.
"""
import argparse
import dataclasses
import sys

from drive import Result, Service
from proxies import FRONT, PROXIES, V2

SIZE, SECONDS = 20_000, 10
LOAD = dataclasses.replace(FRONT, size=SIZE, environment=(*FRONT.environment, ("WANTED", "404")))


def asked(proxy, transport, requests):
    """Asks until there were so many requests, or something was lost."""
    result = Result()
    with Service(**(V2 if "v2" in transport else {})) as service, proxy.before(service, transport) as origin:
        while result.tried < requests and not result.lost:
            result += LOAD.ask(origin, "POST", SECONDS if requests > 10_000 else 2, path="/nope")
    return result


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--requests", type=int, default=2000, help="of each at least")
    ask.add_argument("--only", default="", help="proxies whose name has it")
    ask, bad, all_of_them = ask.parse_args(), 0, 0
    for proxy in PROXIES:
        for transport in proxy.upstreams if ask.only in proxy.name else ():
            result = asked(proxy, transport, ask.requests)
            print(f"{proxy.name}, {transport}: {result.tried} POSTs, {result.lost} lost {dict(result.errors) or ''}", flush=True)
            bad, all_of_them = bad + bool(result.lost), all_of_them + 1
    print(f"{all_of_them - bad} passed, {bad} failed")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
