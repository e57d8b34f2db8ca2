"""The words of other servers: command lines, variables and configuration files of Gunicorn and Uvicorn.

Owns: the question whether a command line is oxicorn's own, which most are, and its answer in well under a millisecond.
Refuses: to read foreign words (`commandline`), which needs tables that an ordinary start does not load.
"""

import os

#: The commands. The first word that is no flag is a command if it is one of these, whatever modules there are.
COMMANDS = frozenset(
    "run check config status scale reload upgrade stop migrate health completions man help import".split()
)

#: The commands that take the flags of settings.
WITH_SETTINGS = frozenset(("run", "check", "config", "migrate"))

#: The commands that ask for a service. Its settings say where it is.
WITH_SERVICE = frozenset(("status", "scale", "reload", "upgrade", "stop", "health"))

#: oxicorn's own flags, each with the key that it sets. A flag without a key has none, and "-" is one without a value.
OWN_FLAGS = {
    "--config": None,
    "--check-config": "-",
    "--print-config": "-",
    "--help": "-",
    "--version": "-",
    "--bind": "server.bind",
    "--backlog": "server.backlog",
    "--reuse-port": "-",
    "--no-reuse-port": "-",
    "--workers": "workers.count",
    "--max-requests": "workers.max_requests",
    "--max-requests-jitter": "workers.max_requests_jitter",
    "--timeout": "workers.timeout",
    "--boot-timeout": "workers.boot_timeout",
    "--graceful-timeout": "workers.graceful_timeout",
    "--keep-alive": "http.keep_alive",
    "--worker-connections": "http.worker_connections",
    "--limit-concurrency": "http.limit_concurrency",
    "--forwarded-allow-ips": "http.forwarded_allow_ips",
    "--certfile": "tls.certfile",
    "--keyfile": "tls.keyfile",
    "--access-logfile": "log.access",
    "--log-level": "log.level",
    "--log-format": "log.format",
    "--pid": "process.pidfile",
    "--user": "process.user",
    "--group": "process.group",
    "--umask": "process.umask",
    "--name": "process.name",
    "--env-file": "process.env_file",
    "--socket": None,
    "--json": "-",
    "--deep": "-",
    "--running": "-",
}

#: The short forms of these flags.
OWN_SHORTS = {
    "-c": "--config",
    "-h": "--help",
    "-V": "--version",
    "-b": "--bind",
    "-w": "--workers",
    "-t": "--timeout",
    "-p": "--pid",
    "-u": "--user",
    "-g": "--group",
    "-m": "--umask",
    "-n": "--name",
}


class Reading:
    """What a command line and the environment mean.

    `dialect` is "oxicorn", "gunicorn" or "uvicorn". `words` are the words for oxicorn's own command line. `compat` is
    everything else, as one JSON object; empty if nothing is foreign.
    """

    __slots__ = ("dialect", "words", "compat")

    def __init__(self, dialect, words, compat):
        self.dialect, self.words, self.compat = dialect, words, compat


def read(words, environ):
    """Reads a command line, without the name of the program, with its environment."""
    if is_own(words, environ):
        return Reading("oxicorn", list(words), "")
    from .commandline import read

    return read(words, environ)


def is_own(words, environ):
    """Says whether nothing of another server can be in these words and variables."""
    if environ.get("GUNICORN_CMD_ARGS") or any(name.startswith("UVICORN_") for name in environ):
        return False
    configured = bool(environ.get("OXICORN_CONFIG"))
    words = iter(words)
    for word in words:
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            continue
        name, equals, value = word.partition("=") if word.startswith("--") else (word[:2], word[2:], word[2:])
        name = OWN_SHORTS.get(name, name)
        if name not in OWN_FLAGS:
            return False
        if OWN_FLAGS[name] != "-" and not equals:
            value = next(words, "")
        if name == "--config":
            if not value.endswith(".toml"):
                return False
            configured = True
    return configured or os.path.exists("supervisor.toml") or not os.path.exists("gunicorn.conf.py")
