"""`python -m oxicorn._compat.docs gunicorn`, or `uvicorn`: the table of the page in docs/reference, for `make docs`.

Owns: the form of the tables. Refuses: to know a setting (`gunicorn`, `uvicorn`).
"""

import sys

from . import gunicorn, uvicorn


def gunicorn_table():
    rows = [(f"`{option.name}`", _code(option.flags), option) for option in gunicorn.OPTIONS.values()]
    return _table("| setting | flags | | oxicorn | |", rows)


def uvicorn_table():
    variable = lambda option: "" if option.name == "version" else f"`UVICORN_{option.name.upper()}`"
    rows = [(_code(option.flags) or "`APP`", variable(option), option) for option in uvicorn.OPTIONS.values()]
    return _table("| option | variable | | oxicorn | |", rows)


def _table(head, rows):
    lines = [head, "|---|---|---|---|---|"]
    for first, second, option in rows:
        key = f"`{option.key}`" if option.key and not option.key.startswith("`") else option.key
        cells = (first, second, option.how, key, option.text)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _code(flags):
    return ", ".join(f"`{flag}`" for flag in flags)


if __name__ == "__main__":
    print({"gunicorn": gunicorn_table, "uvicorn": uvicorn_table}[sys.argv[1]]())
