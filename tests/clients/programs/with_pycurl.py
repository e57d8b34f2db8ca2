"""Asks with pycurl. Each thread has its own handle."""
import io

import load
import pycurl

VERSIONS = {"1.1": pycurl.CURL_HTTP_VERSION_1_1, "2": pycurl.CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE}


def make():
    handle = pycurl.Curl()

    def ask():
        body = io.BytesIO()
        handle.reset()
        handle.setopt(pycurl.URL, load.URL)
        handle.setopt(pycurl.HTTP_VERSION, VERSIONS[load.VERSION])
        handle.setopt(pycurl.CAINFO, load.CA)
        handle.setopt(pycurl.TIMEOUT, 30)
        handle.setopt(pycurl.WRITEDATA, body)
        if load.SOCKET:
            handle.setopt(pycurl.UNIX_SOCKET_PATH, load.SOCKET)
        if load.BODY:
            handle.setopt(pycurl.POSTFIELDS, load.BODY)
        handle.perform()
        return handle.getinfo(pycurl.RESPONSE_CODE), body.getvalue()

    return ask


load.threads(make)
