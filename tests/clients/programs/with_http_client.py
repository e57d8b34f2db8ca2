"""Asks with Python's own http.client. Each thread keeps one connection: no pool, no retries, no hidden errors."""
import contextlib
import http.client
import socket
import ssl
import urllib.parse

import load

url = urllib.parse.urlsplit(load.URL)
TLS = ssl.create_default_context(cafile=load.CA) if url.scheme == "https" else None


def make():
    if TLS:
        connection = http.client.HTTPSConnection(url.hostname, url.port, timeout=30, context=TLS)
    else:
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
    if load.SOCKET:
        connection._create_connection = lambda *_: unix()
    path = f"{url.path}?{url.query}" if url.query else url.path

    def unix():
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(30)
        one.connect(load.SOCKET)
        return one

    def ask():
        try:
            # If this fails, a proxy has answered and closed before it had the whole body. The answer can still be read.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(load.METHOD, path, load.BODY)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except Exception:
            connection.close()
            raise

    return ask


load.threads(make)
