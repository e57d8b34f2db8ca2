"""What was understood of another server's settings.

Owns: the settings, notes and problems that translations collect, and the reading of plain values. Refuses: to know the
settings of any server (`gunicorn`, `uvicorn`).
"""

import json


def as_json(value):
    """Returns JSON. What is not UTF-8 in a word, in the environment or in an exception becomes `?`: JSON has no such
    text, and the master could not read the rest either."""
    text = json.dumps(value)
    if "\\ud" not in text:
        return text
    return json.dumps(json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace")))


class Option:
    """A setting of another server, as its table describes it."""

    __slots__ = ("name", "flags", "kind", "default", "how", "key", "text")

    def __init__(self, name, flags, kind, default, how, key, text):
        self.name = name
        self.flags = tuple(flags.split())
        self.kind = kind
        self.default = default
        self.how = how
        self.key = key
        self.text = text


class Given:
    """A value for a setting of another server, and where it was given.

    `origin` names the place, such as `--workers` or `gunicorn.conf.py:12`. `typed` says it with the value.
    """

    __slots__ = ("option", "value", "origin", "typed", "strength")

    def __init__(self, option, value, origin, typed, strength):
        self.option, self.value, self.origin, self.typed, self.strength = option, value, origin, typed, strength


class Collected:
    """The settings of oxicorn, notes and problems."""

    def __init__(self, own_file=False, derived="env"):
        self.settings = []
        self.notes = []
        self.problems = []
        #: Whether a settings file of oxicorn is read beside. Another server's defaults do not override it.
        self.own_file = own_file
        #: The strength of what follows from settings, or is the default of another server: OXICORN_* is stronger.
        self.derived = derived

    def put(self, key, value, origin, strength):
        entry = {"key": key, "value": as_text(key, value), "origin": origin}
        if strength:
            entry["strength"] = strength
        self.settings.append(entry)

    def has(self, key):
        return any(entry["key"] == key for entry in self.settings)

    def note(self, origin, level, text):
        self.notes.append({"origin": origin, "level": level, "text": text})

    def problem(self, origin, text):
        self.problems.append({"origin": origin, "text": text})

    def tell(self, given):
        """Says what becomes of a setting whose meaning is not the same, as the table does."""
        how = given.option.how
        if how == "refused":
            self.problem(given.typed, given.option.text)
        elif how != "same":
            self.note(given.typed, "warn" if how == "instead" else "info", given.option.text)

    def as_dict(self):
        return {"settings": self.settings, "notes": self.notes, "problems": self.problems}


def as_text(key, value):
    """Returns a value in the form in which a variable of the environment has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        # The lists of the supervisor's own tables have commas; a string of an app's list may have one inside.
        items = [str(item) for item in value]
        return json.dumps(items, ensure_ascii=False) if key.startswith("python.") else ",".join(items)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def whole(value):
    """Reads a whole number that is not negative."""
    try:
        number = int(value, 0) if isinstance(value, str) else int(value)
    except (OverflowError, TypeError, ValueError):
        raise ValueError(f"{shown(value)} is not a whole number") from None
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number


def octal(value):
    """Reads permission bits as Gunicorn does: `022`, `0o22` and `18` are the same."""
    if isinstance(value, str):
        digits = value.strip()
        if digits[:1] == "0" and digits[1:].isdigit():
            digits = "0o" + digits[1:]
        value = digits
    return whole(value)


def boolean(value):
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("true", "false"):
        return text == "true"
    raise ValueError(f"{shown(value)} is neither True nor False")


def string(value):
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is not a string")
    return value.strip()


def strings(value):
    """Reads a list of strings. One string is a list of one."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple, set)):
        raise ValueError(f"{shown(value)} is not a list of strings")
    return [string(item) for item in value]


def by_commas(value):
    """Reads a list that Gunicorn and Uvicorn write as one string with commas."""
    items = value.split(",") if isinstance(value, str) else strings(value)
    return [item.strip() for item in items if item.strip()]


def shown(value):
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def certificate(everything, names, collected, place):
    """Translates the settings of certificates, which count together. `place` turns a path into that of the file."""
    chain, key, wanted, authorities = map(everything.get, names)
    if chain and chain.value and not (key and key.value):
        # Python's ssl reads the key from this file too.
        collected.put("tls.keyfile", place(chain.value), chain.origin, chain.strength)
    level = int(wanted.value) if wanted else 0
    named = authorities is not None and bool(authorities.value)
    if level == 1:
        text = "a client certificate cannot be optional here: require it with 2, or leave it out"
        collected.problem(wanted.typed, text)
    elif level == 2 and named:
        collected.put("tls.client_ca", place(authorities.value), authorities.origin, authorities.strength)
    elif level == 2:
        text = f"the authorities that issue the certificates of clients are missing: {_flag(names[3])}"
        collected.problem(wanted.typed, text)
    elif named:
        collected.note(authorities.typed, "info", f"has no effect without {_flag(names[2])} 2")


def _flag(name):
    return "--" + name.replace("_", "-")
