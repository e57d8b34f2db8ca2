"""Asks with urllib3. All threads share one pool."""
import load
import urllib3

pool = urllib3.PoolManager(maxsize=load.THREADS, ca_certs=load.CA, timeout=30)


def ask():
    answer = pool.request(load.METHOD, load.URL, body=load.BODY)
    return answer.status, answer.data


load.threads(lambda: ask)
