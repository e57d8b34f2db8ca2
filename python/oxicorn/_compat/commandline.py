"""Command lines and variables of Gunicorn and Uvicorn.

Owns: the dialect of a command line, its words as flags with values, and what becomes of each. Refuses: to know what a
setting means (`gunicorn`, `uvicorn`), and to run a configuration file (`process`).
"""

import os

from . import COMMANDS, OWN_FLAGS, OWN_SHORTS, WITH_SERVICE, WITH_SETTINGS, Reading, gunicorn, uvicorn
from .collected import Collected, Given, as_json

#: Flags that mean a command, or are the command's own. oxicorn reads them itself in every dialect.
_PASSED_ON = {"-v": "--version", "--version": "--version", "--check-config": "--check-config"}
_PASSED_ON |= {"--print-config": "--print-config", "--help": "--help"}

_TABLES = {"gunicorn": gunicorn, "uvicorn": uvicorn}
_FLAGS = {
    dialect: {flag: option for option in table.OPTIONS.values() for flag in option.flags}
    for dialect, table in _TABLES.items()
}

#: What a file of settings is called. Any other name after `-c` is one of Gunicorn's, if the line is Gunicorn's.
_TOML, _PYTHON = ".toml", (".py", ".pyc")


class Flag:
    """A flag of the command line: its name as it was typed, its value, and the words that it is made of."""

    __slots__ = ("name", "value", "words")

    def __init__(self, name, value, words):
        self.name, self.value, self.words = name, value, words

    @property
    def long(self):
        """The long form of the name, as far as oxicorn has it."""
        return OWN_SHORTS.get(self.name, self.name)

    def __str__(self):
        return " ".join(self.words)


def read(words, environ, server=None):
    """Reads a command line that may be another server's, with its environment.

    `server` is "gunicorn" or "uvicorn" for the words after that server's name: there are no commands in these, and no
    file of oxicorn counts."""
    parts = split(words)
    plain = [part for part in parts if isinstance(part, str)]
    command = plain[0] if plain and plain[0] in COMMANDS and not server else "run"
    if command not in WITH_SETTINGS | WITH_SERVICE:
        return Reading("oxicorn", list(words), "")
    flags = [part for part in parts if isinstance(part, Flag)]
    from_environ = split(_cmd_args(environ))
    dialect = server or _dialect(flags, environ)
    configuration, own_file = _configuration(flags, from_environ, dialect, environ, server)
    if dialect == "oxicorn" and configuration:
        dialect = "gunicorn"
    collected = Collected(own_file)
    given = {"gunicorn": {}, "uvicorn": {}}
    _take_variables(dialect, from_environ, environ, given, collected)
    kept = []
    for part in parts:
        if not isinstance(part, Flag):
            kept.append(part)
        elif part.long == "--config" and is_configuration(part.value, dialect):
            pass
        elif part.name in _PASSED_ON and part.value is None and command in WITH_SETTINGS:
            kept.append(_PASSED_ON[part.name])
        elif command in WITH_SERVICE or not _take_flag(part, dialect, given, collected):
            kept += part.words
    paste = given["gunicorn"].get("paste")
    if paste and "logconfig" not in given["gunicorn"] and (log_config := gunicorn.logging_of_paste(paste)):
        given["gunicorn"]["logconfig"] = log_config
    _translate(dialect, given, collected, configuration, environ)
    kept = _with_app(kept, None if server else command, given["uvicorn"], collected)
    worker = _for_workers(given, configuration)
    if worker and command in WITH_SETTINGS:
        from . import logconfig

        # What a configuration says of this is known once it has run.
        logconfig.settle_access(worker, {} if configuration else worker.get("cfg", {}), collected)
    compat = collected.as_dict()
    if command in WITH_SERVICE:
        # A mistake must not prevent `oxicorn stop`.
        compat["notes"] = compat["problems"] = []
    if not (configuration or worker or any(compat.values())):
        return Reading(dialect, kept, "")
    compat = {"argv": list(words), "dialect": dialect, **compat, "configuration": configuration}
    if worker:
        compat["worker"] = worker
    return Reading(dialect, kept, as_json(compat))


def split(words):
    """Returns the words as flags with their values, and plain words as they are."""
    parts, words = [], list(words)
    while words:
        word = words.pop(0)
        if word == "--":
            parts += [word, *words]
            break
        if not word.startswith("-") or word == "-":
            parts.append(word)
        elif word.startswith("--"):
            parts.append(_long(word, words))
        else:
            parts += _shorts(word, words)
    return parts


def _long(word, words):
    name, equals, value = word.partition("=")
    if equals:
        return Flag(name, value, [word])
    kind = _kind(name)
    if kind == "switch" or not words:
        return Flag(name, None, [word])
    if kind == "proxy" and words[0].lower() not in gunicorn.PROXY_PROTOCOL:
        return Flag(name, None, [word])
    if kind is None:
        # An unknown flag: oxicorn's own command line says so.
        return Flag(name, None, [word])
    value = words.pop(0)
    return Flag(name, value, [word, value])


def _shorts(word, words):
    """Returns the flags of a word such as `-w4` or `-RD`."""
    flags = []
    for at in range(1, len(word)):
        name, rest = f"-{word[at]}", word[at + 1 :].removeprefix("=")
        kind = _kind(name)
        if kind == "switch":
            flags.append(Flag(name, None, [name]))
            continue
        if kind is None:
            flags.append(Flag(name, None, [f"-{word[at:]}"]))
        elif rest or not words:
            flags.append(Flag(name, rest or None, [f"-{word[at:]}"]))
        else:
            value = words.pop(0)
            flags.append(Flag(name, value, [name, value]))
        break
    return flags


def _kind(name):
    """Returns "switch" for a flag without a value, "value" or "proxy" for one with a value, None for an unknown one."""
    own = OWN_FLAGS.get(OWN_SHORTS.get(name, name), "?")
    if own != "?":
        return "switch" if own == "-" else "value"
    for dialect, table in _TABLES.items():
        if option := _FLAGS[dialect].get(name):
            return "switch" if option.kind in table.SWITCHES else "proxy" if option.kind == "proxy" else "value"
    return "switch" if name == "-v" else None


def _dialect(flags, environ):
    """Returns whose words these are. The first flag that only one server has decides."""
    for flag in flags:
        if flag.long == "--config" and is_configuration(flag.value, "oxicorn"):
            return "gunicorn"
        if flag.long in OWN_FLAGS:
            continue
        has = [dialect for dialect in _TABLES if flag.name in _FLAGS[dialect]]
        if len(has) == 1:
            return has[0]
    if environ.get("GUNICORN_CMD_ARGS"):
        return "gunicorn"
    return "uvicorn" if _uvicorn_variables(environ) else "oxicorn"


def _cmd_args(environ):
    if not environ.get("GUNICORN_CMD_ARGS"):
        return []
    import shlex

    try:
        return shlex.split(environ["GUNICORN_CMD_ARGS"])
    except ValueError:
        # A quotation mark is missing. The words are taken as they are, and the one with the mark is refused.
        return environ["GUNICORN_CMD_ARGS"].split()


def _uvicorn_variables(environ):
    """Returns the options that variables of the environment set, each with the name and the value of its variable."""
    variables = ((option, f"UVICORN_{option.name.upper()}") for option in uvicorn.OPTIONS.values())
    return [(option, name, environ[name]) for option, name in variables if environ.get(name)]


def is_configuration(value, dialect):
    """Says whether `-c VALUE` names a configuration of Gunicorn, and not a file of oxicorn."""
    if not value or value.endswith(_TOML):
        return False
    return dialect == "gunicorn" or value.startswith(("python:", "file:")) or value.endswith(_PYTHON)


def _configuration(flags, from_environ, dialect, environ, server):
    """Returns the configuration of Gunicorn, or None, and whether a settings file of oxicorn is read."""
    named = [flag.value for flag in flags if flag.long == "--config" and flag.value]
    if named and is_configuration(named[-1], dialect):
        return named[-1], False
    if named:
        return None, True
    if dialect == "gunicorn":
        also = [part.value for part in from_environ if isinstance(part, Flag) and part.long == "--config"]
        if also:
            return also[-1], False
    if not server and (environ.get("OXICORN_CONFIG") or os.path.exists("supervisor.toml")):
        return None, True
    found = dialect != "uvicorn" and os.path.exists("gunicorn.conf.py")
    return ("gunicorn.conf.py" if found else None), False


def _take_variables(dialect, from_environ, environ, given, collected):
    variables = _uvicorn_variables(environ)
    if dialect == "uvicorn":
        for option, name, value in variables:
            _give(given["uvicorn"], option, value, f"env {name}", f"{name}={value}", "env", collected)
        if from_environ:
            collected.note("GUNICORN_CMD_ARGS", "warn", "is not read, because the command is Uvicorn's")
        return
    for _, name, _ in variables:
        collected.note(name, "warn", "is not read, because the command is Gunicorn's")
    for part in from_environ:
        if not isinstance(part, Flag):
            text = f"the word {part} is not read: the app is named on the command line"
            collected.note("GUNICORN_CMD_ARGS", "warn", text)
        elif option := _FLAGS["gunicorn"].get(part.name):
            origin = f"GUNICORN_CMD_ARGS: {_origin(part, option)}"
            _give_flag(given["gunicorn"], part, option, origin, f"GUNICORN_CMD_ARGS: {part}", "env", collected)
        else:
            collected.problem(f"GUNICORN_CMD_ARGS: {part}", "Gunicorn has no such flag")


def _take_flag(flag, dialect, given, collected):
    """Takes a flag, unless it is for oxicorn's own command line."""
    if dialect == "oxicorn" and flag.long in OWN_FLAGS:
        return False
    other = "gunicorn" if dialect == "uvicorn" else "uvicorn"
    for whose in (dialect, other) if dialect != "oxicorn" else ("uvicorn", "gunicorn"):
        option = _FLAGS[whose].get(flag.name)
        if option is not None:
            _give_flag(given[whose], flag, option, _origin(flag, option), str(flag), "flag", collected)
            return True
        if flag.long in OWN_FLAGS:
            return False
    return False


def _origin(flag, option):
    """Returns the long form of a flag, with which `oxicorn config` shows where a value came from."""
    return flag.name if flag.name.startswith("--") else option.flags[-1]


def _give_flag(given, flag, option, origin, typed, strength, collected):
    value = flag.value
    if option.kind == "off":
        value = False
    elif option.kind == "pair":
        value = flag.name == option.flags[0]
    elif option.kind == "proxy":
        value = value or "auto"
    elif option.kind == "bool":
        value = True
    elif value is None:
        collected.problem(typed, "a value is missing")
        return
    if option.kind == "list":
        before = given.get(option.name)
        before = before.value if before and before.strength == strength else []
        value = [*before, value]
    _give(given, option, value, origin, typed, strength, collected)


def _give(given, option, value, origin, typed, strength, collected):
    table = gunicorn if option is gunicorn.OPTIONS.get(option.name) else uvicorn
    try:
        value = table.read_value(option, value)
    except ValueError as error:
        if any(flag in OWN_FLAGS for flag in option.flags) and isinstance(value, str):
            # The flag is oxicorn's too, with more forms, such as `--timeout 2m`. If it is none, oxicorn says so.
            collected.put(option.key, value, origin, strength)
            return
        collected.problem(typed, str(error))
        return
    given[option.name] = Given(option, value, origin, typed, strength)


def _translate(dialect, given, collected, configuration, environ):
    folder = given["gunicorn"]["chdir"].value if "chdir" in given["gunicorn"] else ""
    for entry in given["gunicorn"].values():
        gunicorn.translate(entry, collected, folder)
    for entry in given["uvicorn"].values():
        uvicorn.translate(entry, collected)
    if dialect == "gunicorn" and environ.get("SCRIPT_NAME") and "root_path" not in given["gunicorn"]:
        collected.put("python.root_path", environ["SCRIPT_NAME"], "env SCRIPT_NAME", "env")
    counted = bool(environ.get("WEB_CONCURRENCY")) or _counts(given["uvicorn"].get("env_file"))
    if configuration is None:
        # Else the helper process does this, which also knows what the file says.
        gunicorn.combine(given["gunicorn"], collected, folder, dialect == "gunicorn" and not counted)
    uvicorn.combine(given["uvicorn"], collected, dialect == "uvicorn", counted)


def _counts(env_file):
    """Says whether a file of variables seems to set the number of workers. oxicorn reads it later."""
    try:
        with open(env_file.value if env_file else "", encoding="utf-8", errors="replace") as file:
            return "WEB_CONCURRENCY" in file.read()
    except OSError:
        return False


def _with_app(kept, command, given, collected):
    """Returns the words with the app's name as oxicorn has it."""
    # The command itself is the first plain word. What follows a flag of oxicorn's own is its value.
    at = _place_of_app(kept, command)
    if at is not None:
        kept[at] = uvicorn.app_of(kept[at], given, collected)
    elif app := given.get("app"):
        collected.put("python.app", uvicorn.app_of(app.value, given, collected), app.origin, app.strength)
    return kept


def _place_of_app(kept, command):
    seen_command = False
    at = 0
    while at < len(kept):
        word = kept[at]
        if word == "--":
            return None
        if word.startswith("-") and word != "-":
            kind = _kind(word.partition("=")[0] if word.startswith("--") else word[:2])
            whole = "=" in word or (not word.startswith("--") and len(word) > 2)
            at += 2 if kind == "value" and not whole else 1
            continue
        if word == command and not seen_command:
            seen_command = True
        elif command in WITH_SERVICE:
            return None
        else:
            return at
        at += 1
    return None


def _for_workers(given, configuration):
    """Returns what the workers must know beside the settings, or None."""
    theirs = {name: entry.value for name, entry in given["gunicorn"].items() if entry.value is not None}
    worker = {}
    if configuration or {"access_log_format", *gunicorn.LOG_CONFIGS} & set(theirs):
        worker = {"configuration": configuration, "cfg": theirs}
    if given["uvicorn"].get("log_config"):
        names = ("log_config", "log_level", "access_log")
        worker.update((name, given["uvicorn"][name].value) for name in names if name in given["uvicorn"])
    return {"folder": os.getcwd(), **worker} if worker else None
