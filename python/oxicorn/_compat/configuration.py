"""A configuration file of Gunicorn.

Owns: running the file, the lines on which its settings stand, their values with Gunicorn's defaults, and the sentence
for a file that fails. Refuses: to run it in the master (`process`, and `worker` for the workers).
"""

import ast
import importlib.machinery
import importlib.util
import inspect
import os
import sys
import traceback

from . import gunicorn
from .collected import Given

#: The name under which the file is a module while it runs, and afterwards.
MODULE = "__config__"

#: The most characters of an exception's text in a sentence.
TEXT_MAX = 300


class Failed(Exception):
    """The file cannot be run. `origin` is the file, with the line if there is one."""

    def __init__(self, origin, text):
        super().__init__(text)
        self.origin, self.text = origin, text


def text_of(location, folder):
    """Returns the file that `location` names, a character for each byte, so that JSON can have it. Returns None if it
    is no file of text, or cannot be read."""
    name = location.removeprefix("file:")
    if location.startswith("python:") or name.endswith(".pyc"):
        return None
    try:
        with open(os.path.join(folder, name), "rb") as opened:
            return opened.read().decode("latin-1")
    except OSError:
        return None


def load(location, folder, text=None):
    """Runs the configuration that `location` names, as Gunicorn does, and returns its globals.

    `folder` is the one in which the command was given. It is on `sys.path` while the file runs, and stays there. `text`
    is what `text_of` has returned, now or when the master took the settings."""
    os.chdir(folder)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        if location.startswith("python:"):
            return vars(importlib.import_module(location[7:]))
        return vars(_run_file(location.removeprefix("file:"), text))
    except Failed:
        raise
    except BaseException as error:
        raise _failed(location, error) from error


def _run_file(name, text):
    path = os.path.abspath(name)
    if text is None and not os.path.isfile(path):
        raise Failed(name, "there is no such file")
    # Whatever the file is called.
    loader = importlib.machinery.SourceFileLoader(MODULE, path)
    if name.endswith(".pyc"):
        loader = importlib.machinery.SourcelessFileLoader(MODULE, path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location(MODULE, path, loader=loader))
    sys.modules[MODULE] = module
    if text is None:
        loader.exec_module(module)
    else:
        exec(loader.source_to_code(text.encode("latin-1"), path), vars(module))
    return module


def _failed(location, error):
    """Returns the sentence for an exception of the file."""
    if isinstance(error, SyntaxError) and error.filename:
        return Failed(f"{shown_path(error.filename)}:{error.lineno}", f"{type(error).__name__}: {error.msg}")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    file = None if location.startswith("python:") else os.path.abspath(location.removeprefix("file:"))
    own = [frame for frame in frames if frame.filename == file]
    if isinstance(error, SystemExit):
        text = "the file called sys.exit(%s)" % ("" if error.code is None else repr(error.code))
    else:
        lines = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        text = f"{type(error).__name__}: {lines[:TEXT_MAX]}" if lines else type(error).__name__
    if own and frames[-1].filename != file:
        text += f" (raised in {shown_path(frames[-1].filename)}, line {frames[-1].lineno})"
    if own:
        return Failed(f"{shown_path(file)}:{own[-1].lineno}", text)
    outside = [frame for frame in frames if os.path.dirname(__file__) not in frame.filename]
    outside = [frame for frame in outside if not _is_of_python(frame.filename)]
    if outside:
        return Failed(f"{shown_path(outside[-1].filename)}:{outside[-1].lineno}", text)
    return Failed(shown_path(location), text)


def _is_of_python(file):
    return file.startswith(os.path.dirname(os.__file__) + os.sep) and "site-packages" not in file


def shown_path(path):
    """Returns a path as it is shown: relative, if it lies in the present folder."""
    here = os.getcwd() + os.sep
    return path.removeprefix(here)


class Lines:
    """The lines of a file on which its globals get their values."""

    def __init__(self, namespace):
        file = namespace.get("__file__") or namespace.get("__name__", "")
        self.file = shown_path(file)
        self._found = {}
        #: The modules of which the file imports all names.
        self._stars = []
        try:
            with open(file, "rb") as opened:
                self._text = importlib.util.decode_source(opened.read())
            self._look(ast.parse(self._text).body)
        except (OSError, SyntaxError, ValueError):
            # A compiled file has no lines to show.
            return

    def origin(self, name, value):
        """Returns the file, and the line that gave the global its value, as far as that can be seen."""
        found = self._found.get(name, [])
        if len(found) > 1:
            # The branches of an `if` often have literals: that with the value is the one that ran.
            found = [entry for entry in found if _is_literal(entry[1], value)] or found
        if found:
            return f"{self.file}:{found[-1][0]}"
        modules = (sys.modules.get(name) for name in reversed(self._stars))
        there = next((module for module in modules if getattr(module, name, self) is value), None)
        return Lines(vars(there)).origin(name, value) if there else self.file

    def expression(self, name, value):
        """Returns the expression that computed the value of a global, or None if it stands there as it is."""
        found = [node for _, node in self._found.get(name, []) if node is not None]
        if not found or any(_is_literal(node, value) for node in found):
            return None
        try:
            ast.literal_eval(found[-1])
        except ValueError:
            return " ".join((ast.get_source_segment(self._text, found[-1]) or "").split())
        return None

    def _look(self, body):
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                self._add(node.name, node.lineno, None)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                if node.names[0].name == "*":
                    self._stars.append(node.module)
                for alias in node.names:
                    self._add(alias.asname or alias.name, node.lineno, None)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    self._add_target(target, node)
            elif isinstance(node, (ast.AnnAssign, ast.AugAssign)):
                self._add_target(node.target, node)
            else:
                for field in ("body", "orelse", "finalbody", "handlers", "cases"):
                    self._look(getattr(node, field, []))

    def _add_target(self, target, node):
        if isinstance(target, ast.Name):
            self._add(target.id, node.lineno, None if isinstance(node, ast.AugAssign) else node.value)
        elif isinstance(target, (ast.Tuple, ast.List)):
            for item in target.elts:
                self._add_target(item, ast.Assign([item], None, lineno=node.lineno))

    def _add(self, name, line, value):
        self._found.setdefault(name, []).append((line, value))


def _is_literal(node, value):
    try:
        return node is not None and ast.literal_eval(node) == value
    except (ValueError, TypeError, SyntaxError):
        return False


def given_in(namespace, collected):
    """Returns the settings among the globals of a file, by their names. A wrong value becomes a problem."""
    lines = Lines(namespace)
    given = {}
    for name, value in list(namespace.items()):
        option = gunicorn.OPTIONS.get(name)
        # The name of the file itself has no meaning in the file.
        if option is None or name == "config" or value is None:
            continue
        origin = lines.origin(name, value)
        typed = f"{origin}: {name}"
        try:
            value = gunicorn.read_value(option, value)
            if option.kind == "hook":
                namespace[name] = value = _hook(name, value)
        except ValueError as error:
            collected.problem(typed, str(error))
            continue
        given[name] = Given(option, value, origin, typed, None)
    return given


def _hook(name, value):
    """Returns a hook as a function with Gunicorn's number of arguments."""
    if isinstance(value, str):
        module, _, attribute = value.rpartition(".")
        try:
            value = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"{value} cannot be imported: {error}") from None
    wanted = gunicorn.HOOK_ARGUMENTS.get(name)
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return value
    if wanted and not any(_takes(signature, count) for count in wanted):
        counts = " or ".join(map(str, wanted))
        raise ValueError(f"the hook must take {counts} argument{'s' if wanted != (1,) else ''}")
    return value


def _takes(signature, count):
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def given_outside(cfg):
    """Returns the settings of the command line and the environment, which override the file."""
    given = {}
    for name, value in cfg.items():
        option = gunicorn.OPTIONS[name]
        flag = option.flags[-1] if option.flags else name
        given[name] = Given(option, value, flag, flag, None)
    return given


def values(given):
    """Returns every setting of Gunicorn with its value: what was given, or else Gunicorn's default."""
    cfg = {name: option.default for name, option in gunicorn.OPTIONS.items()}
    if os.environ.get("PORT"):
        cfg["bind"] = [f"0.0.0.0:{os.environ['PORT']}"]
    if os.environ.get("WEB_CONCURRENCY", "").isdigit():
        cfg["workers"] = int(os.environ["WEB_CONCURRENCY"])
    if trusted := os.environ.get("FORWARDED_ALLOW_IPS"):
        cfg["forwarded_allow_ips"] = [item.strip() for item in trusted.split(",")]
    cfg |= {"user": os.geteuid(), "group": os.getegid(), "chdir": os.getcwd()}
    for name, entry in given.items():
        cfg[name] = entry.value
    cfg["chdir"] = os.path.abspath(cfg["chdir"])
    return cfg


def settings(given, everything, collected):
    """Translates the settings of a file. `everything` also has those that override it."""
    folder = everything["chdir"].value if "chdir" in everything else ""
    for name, entry in given.items():
        if everything[name] is not entry:
            # A flag overrides it.
            continue
        if entry.option.kind == "hook":
            collected.tell(entry)
        else:
            gunicorn.translate(entry, collected, folder)
    count = "workers" not in everything and not os.environ.get("WEB_CONCURRENCY")
    gunicorn.combine(everything, collected, folder, count)


def environment(cfg):
    """Returns the variables that `raw_env` sets."""
    pairs = (item.partition("=") for item in cfg["raw_env"] or ())
    return {name: value for name, equals, value in pairs if equals}
