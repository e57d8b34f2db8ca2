"""The first process of the command `oxicorn`, which becomes the master.

Owns: the command line and the environment of the master. Refuses: to know the words of other servers (`_compat`), and
to run the command, because this interpreter has imported `site`: it is larger than a master needs to be, and a
`sitecustomize` may have started threads in it.
"""

import os
import sys

from . import _compat


def main():
    """Executes the master in place of this process. Returns only if that fails."""
    if sys.argv[1:2] == ["import"]:
        from ._compat import importer

        sys.exit(importer.main(sys.argv[2:]))
    if not sys.executable:
        sys.exit("oxicorn: error: sys.executable is empty, so the interpreter of the master is not known")
    command = _command(sys.argv, sys.orig_argv, _compat.read(sys.argv[1:], os.environ))
    os.execve(command[0], command, _environment())


def _command(argv, orig_argv, reading):
    """Returns the command line of the master.

    The master runs without `site` (-S): each worker imports it later. `_master.py` first gets the way in which this
    program was started, so that an upgrade can start it anew. Then come what is foreign in the operator's words, and
    the words for oxicorn's own command line.

    Links in the folders of the interpreter and of the package are followed here. A virtual environment often stands
    behind a link that is turned to the next one before an upgrade, and the way back needs this one. The last part of
    the interpreter's path is kept: it is a link that leads out of the environment.
    """
    folder, name = os.path.split(sys.executable)
    executable = os.path.join(os.path.realpath(folder), name)
    master = os.path.join(os.path.realpath(os.path.dirname(__file__)), "_master.py")
    started = ("-m", sys.executable) if _is_module() else ("script", os.path.abspath(argv[0]))
    return [executable, *_interpreter_options(orig_argv[1:]), "-S", master, *started, reading.compat, *reading.words]


def _is_module():
    """Says whether this program was started by `python -m oxicorn`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name == "oxicorn.__main__"


def _interpreter_options(words):
    """Returns the interpreter's own options, such as `-X dev`, from the words after the interpreter's name."""
    options = []
    words = iter(words)
    for word in words:
        if word == "--check-hash-based-pycs":
            options += [word, next(words, "default")]
        elif word in ("-", "--") or not word.startswith("-"):
            break
        else:
            option, ends = _short_option(word, words)
            options += option
            if ends:
                break
    return options


def _short_option(word, words):
    """Returns the options of one word such as `-Bm`, and whether the options end there."""
    kept = "-"
    for at, letter in enumerate(word[1:], 1):
        if letter in "cm":
            return ([kept] if kept != "-" else []), True
        kept += letter
        if letter in "WX":
            value = word[at + 1 :] or next(words, "")
            return [kept + value], False
    return [kept], False


def _environment():
    """Returns the environment with which this process was started.

    `opentelemetry-instrument` and its like work through a `sitecustomize` on PYTHONPATH, which removes its folder from
    os.environ when it has run. The workers must run it again.
    """
    try:
        with open("/proc/self/environ", "rb") as file:
            block = file.read()
    except OSError:
        return os.environb
    variables = (variable.partition(b"=") for variable in block.split(b"\0") if b"=" in variable)
    return {name: value for name, _, value in variables if name}


if __name__ == "__main__":
    main()
