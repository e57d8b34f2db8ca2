#!/usr/bin/env python3
"""Shows which side must keep idle connections longer.

Each proxy is in front of oxicorn, over a wire of 20 ms. Each runs once with its default idle time and once with a set
idle time.
All clients ask at the same moment and then wait for about `http.keep_alive`. If the server closes first, the next
request meets its FIN on the wire and may be lost. With a shorter idle time in the proxy, nothing may be lost.

`--keep-alive 75 --idle 60` are the values of a deployment, and a run with them takes five minutes. A run with the
defaults shows the same in half a minute. All proxies run at the same time, because they mostly wait.
"""

import argparse
import concurrent.futures
import http.client
import os
import ssl
import sys
import threading
import time
import types
import urllib.parse

from drive import GET, POST, Service, certificate
from proxies import PROXIES
from wire import Wire

WIRE_S = 0.02
OFFSETS_S = (-0.03, -0.02, -0.01, 0)
CLIENTS = 4  # for each method
BODY = os.urandom(1024)
TLS = ssl.create_default_context(cafile=certificate() / "ca.pem")


def client(origin, method, pauses, together, lost):
    """Asks once, and once more after each pause, together with the other clients. Adds each failure to `lost`."""
    url = urllib.parse.urlsplit(origin)
    more = {"context": TLS} if url.scheme == "https" else {}
    connection = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}[url.scheme](
        url.hostname, url.port, timeout=30, **more
    )
    for pause in (0, *pauses):
        time.sleep(pause)
        together.wait(30)
        try:
            connection.request(method, GET if method == "GET" else POST, None if method == "GET" else BODY)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                lost.append(str(answer.status))
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            lost.append(type(error).__name__)


def tried(proxy, transport, keep_alive, idle):
    """Runs all clients through one proxy, and returns {method: [the failure of each lost request]}."""
    lost = {"GET": [], "POST": []}
    settings = {"http__keep_alive": f'"{keep_alive}s"', "log__access_exclude": '["/ready"]'}
    with Service(**settings) as service, Wire(service.port, WIRE_S) as wire:
        far = types.SimpleNamespace(port=wire.port, socket=service.socket)
        with proxy.before(far, transport, idle) as origin:
            together = threading.Barrier(CLIENTS * len(lost))
            pauses = [keep_alive + offset for offset in OFFSETS_S]
            threads = [
                threading.Thread(target=client, args=[origin, method, pauses, together, lost[method]])
                for method in lost
                for _ in range(CLIENTS)
            ]  # fmt: skip
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    return lost


def told(lost):
    return ", ".join(
        f"{method} {len(errors)} {'/'.join(sorted(set(errors)))}".strip() for method, errors in lost.items()
    )


def main():
    ask = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ask.add_argument("--keep-alive", type=int, default=5, help="http.keep_alive of oxicorn, in seconds")
    ask.add_argument("--idle", type=int, default=4, help="the idle time that is set in the proxies, in seconds")
    ask.add_argument("--only", default="", help="only proxies whose name holds this text")
    ask = ask.parse_args()
    proxies, bad = [proxy for proxy in PROXIES if ask.only in proxy.name and "HTTP/1.1" in proxy.upstreams], 0
    print(f"Failed of {CLIENTS * len(OFFSETS_S)} requests after an idle time; http.keep_alive = {ask.keep_alive} s\n")
    print(f"| proxy | with its own idle time | with {ask.idle} s |\n|---|---|---|")
    with concurrent.futures.ThreadPoolExecutor(2 * len(proxies)) as pool:
        running = {}
        for proxy in proxies:
            for idle in (None, ask.idle) if proxy.idle else (None,):
                running[proxy.name, idle] = pool.submit(tried, proxy, "HTTP/1.1", ask.keep_alive, idle)
                time.sleep(0.5)  # so that the proxies do not all start at the same moment
        for proxy in proxies:
            own = running[proxy.name, None].result()
            shorter = running[proxy.name, ask.idle].result() if proxy.idle else own
            print(f"| {proxy.name} | {told(own)} | {told(shorter) if proxy.idle else '–'} |", flush=True)
            bad += any(shorter.values())
    print(f"\n{len(proxies) - bad} passed, {bad} failed")
    return bad


if __name__ == "__main__":
    sys.exit(main())
