"""Promise: the umask, a repeated header, the scheme and the prefix are as under Gunicorn, or the start tells it."""

import pytest

from clients import Raw
from harness import eventually
from moving import SHOP, Line, facts, line_of

pytestmark = pytest.mark.needs_oxicorn


def test_the_umask_of_the_app_is_that_of_gunicorn_or_told(both):
    """Gunicorn's `umask` is for its own files: what the app writes has the umask of the start."""
    theirs, ours = both(line_of("proxied"))
    assert facts(ours)["umask"] == facts(theirs)["umask"] or ours.told("umask") or ours.told("--umask")


@pytest.mark.parametrize("atom", ["%({x-trace}i)s", "%({x-multi}o)s"])
def test_of_a_header_that_is_repeated_the_access_log_has_gunicorns_value(atom, both):
    words = f"-w 1 -b 127.0.0.1:{{port}} --access-logfile a.log --access-logformat '{atom}' shop:app"
    line = Line("", "gunicorn", words, SHOP)
    lines = []
    for server in both(line):
        eventually("the line of the start", lambda server=server: server.text_of("a.log"))
        before = len(server.text_of("a.log").splitlines())
        with Raw(server) as wire:
            wire.get("/stream", "X-Trace: 17", "X-Trace: 18", "Connection: close")
        probe = lambda server=server, before=before: server.text_of("a.log").splitlines()[before:]
        lines.append(eventually("a line", probe)[0])
    assert lines[1] == lines[0]


@pytest.mark.parametrize("field", ["X-Forwarded-Ssl: on", "X-Forwarded-Protocol: ssl"])
def test_a_header_that_the_configuration_names_says_the_scheme_or_is_told(field, both):
    """The values are Gunicorn's defaults, written out as many files have them."""
    theirs, ours = both(line_of("proxied"))
    assert facts(ours, field)["scheme"] == facts(theirs, field)["scheme"] or ours.told("secure_scheme_headers")


def test_the_prefix_of_the_environment_is_heard_or_told(both):
    """Gunicorn takes SCRIPT_NAME from its environment, as many Dockerfiles give it."""
    words = "-w 1 -k sync -b 127.0.0.1:{port} shop:app"
    line = Line("", "gunicorn", words, SHOP, environment={"SCRIPT_NAME": "/prefix"})
    theirs, ours = both(line)
    assert theirs.get("/prefix/facts").json()["root_path"] == "/prefix"
    assert ours.get("/prefix/facts").text != "page" or ours.told("SCRIPT_NAME")
