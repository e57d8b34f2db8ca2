"""Promise: no word of another server is ignored in silence: a bad one ends the command with a sentence, and one that
cannot mean the same is told at the start in one line.
"""

import socket

import pytest

from moving import MAIN, SHOP, Line, settled_end

pytestmark = pytest.mark.needs_oxicorn

# --- bad values ---

BAD = {
    "workers": ("gunicorn", "shop:app -b 127.0.0.1:{port} --workers many", SHOP, 2, "workers"),
    "worker class": ("gunicorn", "shop:app -b 127.0.0.1:{port} -k nonsense", SHOP, 2, "nonsense"),
    "flag": ("gunicorn", "shop:app -w 1 -b 127.0.0.1:{port} --no-such-flag 1", SHOP, 2, "no-such-flag"),
    "timeout": ("gunicorn", "shop:app -w 1 -b 127.0.0.1:{port} --timeout soon", SHOP, 2, "timeout"),
    "certificate": ("gunicorn", "shop:app -b 127.0.0.1:{port} --certfile no.pem --keyfile no.pem", SHOP, 2, "no.pem"),
    "configuration": ("gunicorn", "-c none.conf.py shop:app", SHOP, 2, "none.conf.py"),
    "configuration raises": ("gunicorn", "-c bad.py shop:app", {**SHOP, "bad.py": "workers = undefined"}, 2, "bad.py"),
    "value in configuration": ("gunicorn", "-c x.py shop:app", {**SHOP, "x.py": "\nworkers = 'many'\n"}, 2, "x.py:2"),
    "module": ("gunicorn", "nowhere:app -w 1 -b 127.0.0.1:{port}", SHOP, 3, "nowhere"),
    "attribute": ("gunicorn", "shop:nothing -w 1 -b 127.0.0.1:{port}", SHOP, 3, "nothing"),
    "port": ("uvicorn", "main:app --host 127.0.0.1 --port many", MAIN, 2, "port"),
    "level": ("uvicorn", "main:app --port {port} --log-level loud", MAIN, 2, "log-level"),
    "interface": ("uvicorn", "main:app --port {port} --interface cgi", MAIN, 2, "interface"),
    "option": ("uvicorn", "main:app --port {port} --no-such-option", MAIN, 2, "no-such-option"),
    "log config": ("uvicorn", "main:app --port {port} --log-config none.json", MAIN, 2, "none.json"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_value_ends_the_command_with_a_sentence(what, run):
    program, words, files, code, word = BAD[what]
    line = Line("", program, words, files)
    theirs, ours = run(line, program, serving=False), run(line, "oxicorn", serving=False)
    assert ours.wait_exit() == code
    assert theirs.wait_exit() != 0
    assert word in ours.log()
    if code == 2:
        assert "Traceback" not in ours.log()


def test_an_address_in_use_ends_the_command(run):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        words = {"gunicorn": f"-w 1 shop:app -b 127.0.0.1:{port}", "uvicorn": f"main:app --port {port}"}
        ours = [run(Line("", name, words[name], {**SHOP, **MAIN}), "oxicorn", serving=False) for name in words]
        # Gunicorn tries for five seconds, so only the quicker peer is asked.
        theirs = run(Line("", "uvicorn", words["uvicorn"], MAIN), "uvicorn", serving=False)
        assert [server.wait_exit() for server in ours] == [4, 4]
        assert theirs.wait_exit() != 0
        assert all(str(port) in server.log() for server in ours)


@pytest.mark.parametrize("words, flag", [
    ("-k gevent --worker-connections 100", "gevent"),
    ("-k eventlet", "eventlet"),
    ("-k tornado", "tornado"),
    ("-w 1 --reload", "--reload"),
    ("--threads 2 --preload", "--preload"),
    ("-w 1 --spew", "--spew"),
    ("-w 1 --statsd-host 127.0.0.1:9", "--statsd-host"),
    ("-w 1 --worker-tmp-dir /dev/shm", "--worker-tmp-dir"),
    ("-w 1 --no-sendfile", "--no-sendfile"),
    ("-k sync --timeout 90", "--timeout"),
])  # fmt: skip
def test_what_cannot_mean_the_same_is_told_in_one_line(words, flag, run):
    line = Line("", "gunicorn", f"shop:app -b 127.0.0.1:{{port}} {words}", SHOP)
    ours = run(line, "oxicorn", serving=False)
    if ours_ends := settled_end(ours):
        assert ours_ends == 2 and flag in ours.log(), "refused with a sentence"
        return
    said = ours.told(flag)
    assert len(said) == 1, ours.log()
    assert said[0]["message"].rstrip().endswith((".", ")")) or len(said[0]["message"]) > 20, said
    assert ours.get("/page").text == "page"


@pytest.mark.parametrize("flag, words", [
    ("--loop", "--loop uvloop"),
    ("--http", "--http h11"),
    ("--ws", "--ws wsproto"),
    ("--reload", "--reload"),
    ("--reset-contextvars", "--reset-contextvars"),
    ("--h11-max-incomplete-event-size", "--h11-max-incomplete-event-size 1000"),
    ("--ws-max-queue", "--ws-max-queue 5"),
])  # fmt: skip
def test_what_of_uvicorn_cannot_mean_the_same_is_told_in_one_line(flag, words, run):
    ours = run(Line("", "uvicorn", f"main:app --port {{port}} {words}", MAIN), "oxicorn", serving=False)
    if ended := settled_end(ours):
        assert ended == 2 and flag in ours.log(), "refused with a sentence"
        return
    assert len(ours.told(flag)) == 1, ours.log()
