"""Asks with requests. Each thread has its own session."""
import load
import requests


def make():
    session = requests.Session()
    session.trust_env, session.verify = False, load.CA

    def ask():
        answer = session.request(load.METHOD, load.URL, data=load.BODY, timeout=30)
        return answer.status_code, answer.content

    return ask


load.threads(make)
