"""Asks with one httpx client, and waits for a line on its standard input before each request.

The arguments are the base URL and the number of requests. GET and POST take turns. Prints `ready` before each wait, and
at the end the number of failed requests with the last failure.
"""

import sys

import httpx

url, count = sys.argv[1], int(sys.argv[2])
failed, last = 0, ""
with httpx.Client(http1=False, http2=True, timeout=20) as client:
    for turn in range(count):
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            if turn % 2:
                answer = client.post(url + "/debug/echo", content=b"a" * 1000)
                assert answer.content == b"a" * 1000
            else:
                answer = client.get(url + "/health")
            assert answer.status_code == 200 and answer.http_version == "HTTP/2"
        except (httpx.HTTPError, AssertionError) as error:
            failed, last = failed + 1, repr(error)
print(f"failed {failed} {last}", flush=True)
