"""`oxicorn import`: a supervisor.toml from what starts a service of Gunicorn or Uvicorn today.

Owns: finding the command in a configuration, a command line, a Procfile or a unit of systemd, and writing the file,
with where each value came from and why a setting has no place. Refuses: to change what it reads, and to overwrite a
file.
"""

import json
import os
import re
import shlex
import sys
import textwrap

from . import commandline, configuration, gunicorn
from .collected import Collected

USAGE = """Write a supervisor.toml from the files and commands of Gunicorn and Uvicorn

Usage: oxicorn import [-o FILE] FILE-OR-COMMAND...

FILE-OR-COMMAND is one of
  gunicorn.conf.py        a configuration of Gunicorn, or python:MODULE
  Procfile                its line "web"
  shop.service            a unit of systemd, with ExecStart=
  Dockerfile              its last CMD or ENTRYPOINT
  gunicorn app:app -w 4   a command line of Gunicorn or Uvicorn, or of `fastapi run`, or such a line in quotes

Options:
  -o, --output <FILE>  Write to this file, which must not exist; without it, to stdout
  -h, --help           Print help
"""

SERVERS = ("gunicorn", "uvicorn", "fastapi")

#: The files in which FastAPI's command looks for the app, if none is named.
_FASTAPI_FILES = ("main.py", "app.py", "api.py", "app/main.py", "app/app.py", "app/api.py")

_NAMED = rf"\b({'|'.join(SERVERS)})\b"

#: The keys whose values are not strings in a file.
_LISTS = ("server.bind", "http.forwarded_allow_ips", "python.pythonpath", "python.raw_env")
_TRUTHS = ("server.reuse_port", "http.http2", "python.ws_per_message_deflate")
_STRINGS = ("server.unix_mode", "process.umask", "process.user", "process.group", "process.name")
#: The keys with paths, which are relative to the file of settings.
_PATHS = ("process.pidfile", "process.env_file", "log.access", "log.file", "tls.certfile", "tls.keyfile")
_PATHS += ("tls.client_ca", "control.socket", "python.chdir", "python.pythonpath")

_SECTIONS = ("server", "workers", "http", "tls", "log", "control", "process", "python")


class Unreadable(Exception):
    """There is no command in what was given. The text is the sentence for the user."""


class Source:
    """A command, or a configuration file, and where it runs."""

    def __init__(self, words=(), server=None, environ=None, folder=None, notes=()):
        self.words, self.server = list(words), server
        self.environ = dict(environ or {})
        self.folder = folder or os.getcwd()
        self.notes = list(notes)


class Entry:
    """A key of the file that is written."""

    def __init__(self, value, origin, computed=None):
        self.value, self.origin, self.computed = value, origin, computed


def main(words):
    """Runs the command. Returns its exit code."""
    words, output = list(words), None
    given = []
    while words:
        word = words.pop(0)
        if word in ("-h", "--help") and not given:
            print(USAGE, end="")
            return 0
        if word in ("-o", "--output") and words:
            output = words.pop(0)
        else:
            given.append(word)
    if not given:
        print(USAGE, end="", file=sys.stderr)
        return 2
    try:
        text, told = imported(given, output)
        if output is not None:
            with open(output, "x", encoding="utf-8") as file:
                file.write(text)
    except (Unreadable, configuration.Failed) as error:
        place = f"{error.origin}: " if isinstance(error, configuration.Failed) else ""
        return _error(f"{place}{error}")
    except FileExistsError:
        return _error(f"{output} exists: name another file with -o, or remove it")
    except OSError as error:
        return _error(f"{error.filename}: {error.strerror}")
    if output is None:
        print(text, end="")
    else:
        print(f"{output} was written; {told}. Run `oxicorn check -c {shlex.quote(output)}` next.")
    return 0


def _error(text):
    print(f"oxicorn: error: {text}", file=sys.stderr)
    return 2


def imported(given, output=None):
    """Returns the text of the file, and one sentence about it."""
    source = find(given)
    there = os.path.dirname(os.path.abspath(output)) if output else os.getcwd()
    before = os.getcwd()
    if not os.path.isdir(source.folder):
        source.notes.append(f"{source.folder} does not exist here, so relative paths were not looked at")
        source.folder = before
    os.chdir(source.folder)
    try:
        entries, without = translated(source)
    finally:
        os.chdir(before)
    if os.path.realpath(there) != os.path.realpath(source.folder):
        for key in _PATHS + ("server.bind",):
            if key in entries:
                entries[key].value = _absolute(key, entries[key].value, source.folder)
    text = written(given, entries, without, source)
    count = len(entries)
    return text, f"{count} key{'s' * (count != 1)}, and {len(without)} remark{'s' * (len(without) != 1)} below them"


def find(given):
    """Returns the command that the words name, or are."""
    if len(given) > 1:
        return of_words(given)
    word = given[0]
    if word.startswith("python:"):
        return Source(["-c", word], "gunicorn")
    if os.path.isfile(word) and os.path.basename(word) not in SERVERS:
        if word.endswith((".py", ".pyc")):
            return Source(["-c", word], "gunicorn")
        with open(word, encoding="utf-8") as file:
            text = file.read()
        if word.endswith((".service", ".conf")) or re.search(r"^\s*ExecStart\s*=", text, re.MULTILINE):
            return of_unit(text, word)
        if re.search(r"^FROM\s", text, re.MULTILINE):
            return of_dockerfile(text, word)
        return of_procfile(text, word)
    if match := re.match(r"\s*(ExecStart\s*=)(.*)", word, re.DOTALL):
        return of_unit(f"[Service]\n{match[1]}{match[2]}\n", "ExecStart")
    if re.match(r"\s*(CMD|ENTRYPOINT)\s", word):
        return of_dockerfile(word, "the line")
    return of_line(re.sub(r"^\s*[\w-]+:\s+", "", word))


def of_dockerfile(text, name):
    commands = re.findall(r"^\s*(?:CMD|ENTRYPOINT)\s+(.*)$", re.sub(r"\\\n", " ", text), re.MULTILINE)
    for command in reversed(commands):
        if re.search(_NAMED, command):
            try:
                return of_words(json.loads(command))
            except ValueError:
                return of_line(command)
    raise Unreadable(f"{name} has no CMD with {' or '.join(SERVERS)}")


def of_procfile(text, name):
    lines = re.findall(r"^\s*([\w-]+):\s*(.+?)\s*$", text, re.MULTILINE)
    lines.sort(key=lambda line: line[0] != "web")
    for process, line in lines:
        if re.search(_NAMED, line):
            source = of_line(line)
            others = [other for other, _ in lines if other != process]
            if others:
                source.notes.append(f"the other processes of {name} stay where they are: {', '.join(others)}")
            return source
    raise Unreadable(f"{name} has no line with {' or '.join(SERVERS)}")


def of_line(line, environ=None, folder=None, notes=()):
    """Reads a command as a shell has it."""
    try:
        words = shlex.split(_cpus(line))
    except ValueError as error:
        raise Unreadable(f"{line.strip()}: {error}") from None
    return of_words(words, environ, folder, notes)


def _cpus(text):
    """Writes the number of CPUs, as a shell asks for it, in oxicorn's words."""
    text = re.sub(r"\$\(\(\s*2\s*\*\s*(?:\$\(nproc[^)]*\)|`nproc`)\s*\+\s*1\s*\)\)", "2n+1", text)
    return re.sub(r"\$\(nproc[^)]*\)|`nproc`", "auto", text)


def of_words(words, environ=None, folder=None, notes=()):
    """Finds the name of the server among the words of a command."""
    words, environ, notes, before = list(map(_cpus, words)), dict(environ or {}), list(notes), []
    at = next((at for at, word in enumerate(words) if os.path.basename(word) in SERVERS), None)
    if at is None:
        raise Unreadable(f"there is neither gunicorn nor uvicorn nor fastapi in: {shlex.join(words)}")
    name = os.path.basename(words[at])
    for word in words[:at]:
        if match := re.match(r"([A-Za-z_]\w*)=(.*)", word, re.DOTALL):
            environ[match[1]] = match[2]
            notes.append(f"{match[1]} is a variable of the command: keep it in the environment")
        else:
            before.append(word)
    wrappers = [word for word in before if os.path.basename(word) not in ("exec", "env", "-m")]
    wrappers = [word for word in wrappers if not re.fullmatch(r"python[\d.]*", os.path.basename(word))]
    if wrappers:
        notes.append(f"the words before {name} stay before oxicorn: {shlex.join(wrappers)}")
    if name == "fastapi":
        return Source(_of_fastapi(words[at + 1 :]), "uvicorn", environ, folder, notes)
    return Source(words[at + 1 :], name, environ, folder, notes)


def _of_fastapi(words):
    """Returns Uvicorn's words for those of `fastapi run`."""
    command, words, app = (words or [""])[0], words[1:], ""
    if command != "run":
        raise Unreadable(f"`fastapi {command}` is no command for production: `fastapi run` is")
    if "--app" in words[:-1]:
        at = words.index("--app")
        app = f":{words[at + 1]}"
        del words[at : at + 2]
    words = ["--host", "0.0.0.0", *words]
    plain = [part for part in commandline.split(words) if isinstance(part, str)]
    if not plain:
        file = next((file for file in _FASTAPI_FILES if os.path.exists(file)), None)
        return [*words, f"{file}{app}"] if file else words
    return [f"{word}{app}" if word == plain[0] else word for word in words]


def of_unit(text, name):
    """Reads the service of a unit of systemd."""
    service = {}
    for line in _unit_lines(text):
        key, _, value = line.partition("=")
        service.setdefault(key.strip(), []).append(value.strip())
    commands = [line for line in service.get("ExecStart", []) if line]
    if not commands:
        raise Unreadable(f"{name} has no ExecStart=")
    environ, notes = {}, []
    for value in service.get("Environment", []):
        for pair in shlex.split(value):
            variable, _, said = pair.partition("=")
            environ[variable] = said.replace("%%", "%")
    if environ:
        notes.append(f"Environment= stays in the unit: {', '.join(environ)}")
    for key in ("EnvironmentFile", "User", "Group", "WorkingDirectory", "RuntimeDirectory"):
        if key in service:
            notes.append(f"{key}={service[key][-1]} stays in the unit")
    if service.get("Type", [""])[-1] not in ("notify", "notify-reload"):
        notes.append("Type=notify in the unit makes systemd wait until the workers serve")
    if "ExecReload" in service:
        notes.append("ExecReload= may be `oxicorn reload`, which fails if the new workers do")
    if specifiers := re.findall(r"%[A-Za-z]", commands[-1].replace("%%", "")):
        notes.append(f"systemd fills in {', '.join(specifiers)}, which a file of settings cannot: write the values")
    folder = service.get("WorkingDirectory", [""])[-1].lstrip("-!") or None
    # `%%` is a percent sign, which formats of the access log have.
    line = commands[-1].lstrip("@-:+!").replace("%%", "%")
    return of_line(line, environ, folder, notes)


def _unit_lines(text):
    """Returns the lines of the section [Service], those that go on in the next line as one."""
    text = re.sub(r"\\\n(\s*[#;][^\n]*\n)*", " ", text)
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line
        elif line and not line.startswith(("#", ";")) and section == "[Service]" and "=" in line:
            yield line


def translated(source):
    """Returns the keys of the file, and the settings that have no place, each with the reason."""
    without = []
    words, environ = _expanded(source, without)
    reading = commandline.read(words, environ, source.server)
    compat = json.loads(reading.compat) if reading.compat else {"settings": [], "notes": [], "problems": []}
    entries = {}
    if compat.get("configuration"):
        _take_configuration(compat, environ, entries, without)
    for strength in ("env", "flag"):
        for setting in compat["settings"]:
            if setting["strength"] == strength and not (_is_default(setting) and setting["key"] in entries):
                entries[setting["key"]] = Entry(setting["value"], setting["origin"])
    without += [(entry["origin"], entry["text"]) for entry in compat["problems"] + compat["notes"]]
    plain = [part for part in commandline.split(reading.words) if isinstance(part, str)]
    if plain:
        entries["python.app"] = Entry(plain[0], "the command")
    for part in commandline.split(reading.words):
        if isinstance(part, commandline.Flag):
            without.append((str(part), f"{source.server.capitalize()} has no such flag"))
    return entries, without


def _is_default(setting):
    return setting["origin"].endswith("'s default")


def _take_configuration(compat, environ, entries, without):
    location = compat["configuration"]
    sys.argv = ["oxicorn", *compat["argv"]]
    kept = dict(os.environ)
    os.environ.update(environ)
    try:
        namespace = configuration.load(location, os.getcwd())
        told = Collected(derived=None)
        given = configuration.given_in(namespace, told)
        everything = {**given, **configuration.given_outside(compat["worker"]["cfg"])}
        lines = configuration.Lines(namespace)
        folder = everything["chdir"].value if "chdir" in everything else ""
        for name, entry in given.items():
            one = Collected(derived=None)
            if entry.option.kind == "hook":
                text = f"a file of settings has no hooks: they are called if the start has `-c {location}`"
                without.append((entry.typed, text))
                continue
            if everything[name] is entry:
                gunicorn.translate(entry, one, folder)
            for setting in one.settings:
                computed = lines.expression(name, entry.value)
                entries[setting["key"]] = Entry(setting["value"], setting["origin"], computed)
            without += [(note["origin"], note["text"]) for note in one.problems + one.notes]
        gunicorn.combine(everything, told, folder, "workers" not in everything and "WEB_CONCURRENCY" not in environ)
        for setting in told.settings:
            entries.setdefault(setting["key"], Entry(setting["value"], setting["origin"]))
        without += [(entry["origin"], entry["text"]) for entry in told.problems + told.notes]
    finally:
        os.environ.clear()
        os.environ.update(kept)


def _expanded(source, without):
    """Returns the words with the variables of the shell filled in, and the environment of the command.

    A word whose variable is not known here is left out, with the flag before it."""
    words = []
    for word in source.words:
        filled, missing, default = _fill(word, source.environ)
        if default:
            without.append((word, f"was read as {filled}, the value without that variable"))
        if missing is None:
            words.append(filled)
            continue
        typed = word
        if words and words[-1].startswith("-") and not word.startswith("-"):
            typed = f"{words.pop()} {word}"
        reason = f"the variable {missing} is not known here"
        if missing == "PORT":
            reason = "PORT is heard without a flag: the service listens on that port of every IPv4 address"
        elif missing == "WEB_CONCURRENCY":
            reason = "WEB_CONCURRENCY is heard without a flag"
        without.append((typed, reason))
    return words, source.environ


def _fill(word, environ):
    """Returns the word with its variables, the name of one that is not known, and whether a default was used."""
    missing, default = [], []

    def fill(match):
        name, other = match[1] or match[3], match[2]
        if name in environ:
            return environ[name]
        if other is not None and name != "PORT":
            default.append(name)
            return other
        missing.append(name)
        return match[0]

    filled = re.sub(r"\$(?:\{(\w+)(?::?-([^}]*))?\}|([A-Za-z_]\w*))", fill, word)
    return filled, (missing[0] if missing else None), bool(default)


def _absolute(key, value, folder):
    join = lambda path: path if not path or path in ("-", "off", "auto") else os.path.join(folder, path)
    if key == "server.bind":
        parts = [f"unix:{join(part[5:])}" if part.startswith("unix:") else part for part in value.split(",")]
        return ",".join(parts)
    if key == "python.pythonpath":
        return json.dumps([join(path) for path in json.loads(value)])
    return join(value)


def written(given, entries, without, source):
    """Returns the text of the file."""
    lines = [f"# Written by `oxicorn import {shlex.join(given)}`."]
    if any(entry.computed for entry in entries.values()):
        lines.append("# A value that the configuration computes is written as it was when this file was.")
    by_section = {}
    for key, entry in entries.items():
        section, _, name = key.partition(".")
        by_section.setdefault(section, []).append((name, entry))
    for section in _SECTIONS:
        if section in by_section:
            lines += ["", f"[{section}]"]
        for name, entry in by_section.get(section, ()):
            comment = entry.origin + (f", computed: {entry.computed}" if entry.computed else "")
            lines.append(f"{name} = {toml_value(f'{section}.{name}', entry.value)}  # {comment}")
    if "python.app" not in entries:
        lines += ["", "# The app is named on the command line: `oxicorn APP`; or here, as `app` in the table [python]."]
    if without:
        lines += ["", "# What is not the same, and what has no place in this file:"]
        for origin, text in without:
            lines += _wrapped(f"{origin}: {text}")
    if source.notes:
        lines += ["", "# Beside this file:"]
        for note in source.notes:
            lines += _wrapped(note)
    return "\n".join(lines) + "\n"


def _wrapped(text):
    """Returns the lines of a comment."""
    return textwrap.wrap(text, 100, initial_indent="#   ", subsequent_indent="#     ", break_on_hyphens=False)


def toml_value(key, value):
    """Returns the text of a variable as a value of TOML."""
    if key in _LISTS:
        items = json.loads(value) if value.startswith("[") and key.startswith("python.") else value.split(",")
        return "[" + ", ".join(_string(item) for item in items if item) + "]"
    if key in _TRUTHS:
        return value
    if key not in _STRINGS and re.fullmatch(r"(0|[1-9]\d*)(\.\d+)?", value):
        return value
    return _string(value)


def _string(text):
    """Returns a string of TOML. JSON's has the same escapes, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
