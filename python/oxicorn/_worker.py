"""A worker's interpreter, from the fork to its end.

Owns: the environment, `site` and `sys.path` of the worker, the import of the app, the sentence for an app that cannot
be imported, and the end of the process. Refuses: to tell ASGI from WSGI (`_interface`), and to run the event loop
(`_loop`) and the lifespan (`_lifespan`).
"""

import ast
import gc
import os
import signal
import sys
import time
import traceback

from . import _interface, _lazy_loop, _oxicorn
from ._interface import AppError

FOLDER = os.path.dirname(os.path.abspath(__file__))

#: What an app's name may look like, for messages.
FORMS = "pkg.module:attr, pkg.module, pkg.module:factory() or path/to/main.py"

#: The names that are tried if only a module is given.
DEFAULT_ATTRIBUTES = ("application", "app")

#: Whether Python's own handler of SIGTERM was called.
_term_seen = False

#: The number of the worker's slot, its generation, and the number of its fork.
slot = generation = age = 0

#: The descriptor of the file for the stacks of a worker that hangs or crashes, or None.
stacks = None

#: How long the threads of the app may take to end, in seconds: `python.shutdown_grace`.
threads_grace = 5.0

#: The most characters of an exception's text in a sentence.
TEXT_MAX = 300


def take_sigterm():
    """Sets a handler of SIGTERM that the handlers of libraries can chain to. Without one, some of them end the process
    when they have done their work. The handler of the process stays the supervisor's, which begins the drain. The
    worker calls Python's handler after it."""
    signal.signal(signal.SIGTERM, _on_term)
    os.register_at_fork(after_in_child=_give_sigterm_up)


def _give_sigterm_up():
    """Gives SIGTERM the meaning that Python knows. It runs in a process that the app has forked, such as one of
    multiprocessing's pool: this is no worker, and nothing there would act on the supervisor's handler."""
    handler = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL if handler in (_on_term, None) else handler)


def _on_term(number, frame):
    global _term_seen
    _term_seen = True


def hold_sigterm(loop):
    """Gives SIGTERM back to the supervisor, after the app may have set a handler of its own."""
    loop._hold_sigterm()
    raise_early_sigterm()


def raise_early_sigterm():
    """Repeats a SIGTERM that came too early."""
    if _term_seen:
        # It came while a handler of the app was in the place of the supervisor's.
        signal.raise_signal(signal.SIGTERM)


def prepare(environment, raw_env, chdir, pythonpath):
    """Turns the interpreter of the master into that of a worker, as if it had been started without -S."""
    _take_environment(environment)
    os.environ.update(raw_env)
    # The master has no `site`, so its flags say so. A child that is made from these flags, such as one of
    # multiprocessing's, would lack `site` too.
    sys.flags = _oxicorn.flags_with_site()
    main = sys.modules["__main__"]
    _, how, path, compat, *arguments = sys.argv
    if compat:
        import json

        arguments = json.loads(compat)["argv"]
    sys.argv = [path if how == "script" else os.path.join(FOLDER, "__main__.py"), *arguments]
    import site

    site.main()
    _name_main(main)
    if chdir:
        os.chdir(chdir)
    sys.path[0:0] = [os.getcwd(), *pythonpath]


def _take_environment(variables):
    """Makes `os.environ` equal to the environment of the process, which changed after the interpreter had read it."""
    for name in [name for name in os.environb if name not in variables]:
        del os.environb[name]
    for name, value in variables.items():
        if os.environb.get(name) != value:
            os.environb[name] = value


def _name_main(main):
    """Gives the module `__main__` the name of the command. multiprocessing does not run a module of this name again."""
    from importlib.machinery import ModuleSpec

    main.__file__ = os.path.join(FOLDER, "__main__.py")
    main.__spec__ = ModuleSpec("oxicorn.__main__", None)


def load(name, interface="auto"):
    """Imports the app. Returns it, and its interface: `asgi` or `wsgi`. `interface` is `python.interface`."""
    if interface == "asgi":
        _oxicorn.make_event_loop()
    if interface != "auto":
        return _load(name, interface)
    with _lazy_loop.Watch(_oxicorn.make_event_loop):
        return _load(name, interface)


def _load(name, interface):
    module_name, attribute = _parse(name)
    if module_name.endswith(".py") or "/" in module_name:
        module_name = _module_of_file(module_name)
    __import__(module_name)
    module = sys.modules[module_name]
    app = _default_app(module) if attribute is None else _evaluate(attribute, module, name)
    return app, _interface.of(app, name, interface)


def _parse(name):
    """Returns the module of the app's name, and the expression for the app, or None."""
    module_name, colon, text = name.partition(":")
    wrong = AppError(f"{name!r} is not the name of an app: write {FORMS}")
    if not module_name:
        raise wrong
    if not colon:
        return module_name, None
    try:
        expression = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise wrong from None
    if not _is_allowed(expression):
        raise wrong
    return module_name, expression


def _is_allowed(node):
    """Says whether the expression is a name, an attribute, or a call of one with literals."""
    if isinstance(node, ast.Call):
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        return _is_allowed(node.func) and all(map(_is_literal, values)) and all(k.arg for k in node.keywords)
    if isinstance(node, ast.Attribute):
        return _is_allowed(node.value)
    return isinstance(node, ast.Name)


def _is_literal(node):
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def _evaluate(node, module, name):
    if isinstance(node, ast.Call):
        function = _evaluate(node.func, module, name)
        keywords = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
        return function(*map(ast.literal_eval, node.args), **keywords)
    owner, attribute = (module, node.id) if isinstance(node, ast.Name) else (None, node.attr)
    if owner is None:
        owner = _evaluate(node.value, module, name)
    try:
        return getattr(owner, attribute)
    except AttributeError:
        what = f"the module {module.__name__!r} ({_shown(module.__file__)})" if owner is module else repr(owner)
        raise AppError(f"{name}: {what} has no attribute {attribute!r}") from None


def _default_app(module):
    for attribute in DEFAULT_ATTRIBUTES:
        app = getattr(module, attribute, None)
        if app is not None:
            return app
    # FastAPI's own command finds its apps by their class.
    names = sorted(name for name, value in vars(module).items() if _is_fastapi(value))
    if names:
        return getattr(module, "api" if "api" in names else names[0])
    names = " nor ".join(map(repr, DEFAULT_ATTRIBUTES))
    place = _shown(getattr(module, "__file__", None) or module.__name__)
    raise AppError(f"{place} has neither {names}: name the app, such as {module.__name__}:my_app")


def _is_fastapi(value):
    return any((base.__module__, base.__name__) == ("fastapi.applications", "FastAPI") for base in type(value).__mro__)


def _module_of_file(path):
    """Puts the folder of a file on `sys.path`, and returns the name of its module. A file in a package belongs to it,
    so that relative imports work."""
    file = os.path.abspath(path)
    if not os.path.exists(file) and os.path.exists(file + ".py"):
        file += ".py"
    if not os.path.isfile(file):
        raise AppError(f"there is no file {_shown(file)}")
    folder, base = os.path.split(file)
    parts = [base.removesuffix(".py")]
    if parts == ["__init__"]:
        parts = []
    while os.path.isfile(os.path.join(folder, "__init__.py")):
        folder, part = os.path.split(folder)
        parts.insert(0, part)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return ".".join(parts)


def spare_the_collector():
    """Puts what the app has made at its start out of the collector's reach. Otherwise the collector would go through
    all of it again and again, while requests wait, to find nothing. An app that has switched the collector off has
    decided for itself."""
    if gc.isenabled():
        gc.collect()
        gc.freeze()


def explain(error, name):
    """Returns the sentence and the whole traceback for an exception that ended the boot."""
    if isinstance(error, AppError):
        return str(error), None
    trace = _without_ours(error.__traceback__)
    details = "".join(traceback.format_exception(type(error), error, trace)).rstrip("\n")
    if trace is None:
        # Python leaves this line out if there is no frame, but people search a log for it.
        details = "Traceback (most recent call last):\n" + details
    cause = error
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    place = _place(cause, trace if cause is error else cause.__traceback__) or name
    words = _in_words(cause)
    if isinstance(cause, ModuleNotFoundError) and trace is None:
        words += f", and the folder of the app is {os.getcwd()}"
    return f"{place}: {words}", details


def _in_words(error):
    if isinstance(error, SystemExit):
        code = "" if error.code is None else repr(error.code)
        return f"the app called sys.exit({code})"
    return _with_type(error, error.msg if isinstance(error, SyntaxError) else _text(error))


def _with_type(error, text):
    kind = type(error)
    known = kind.__module__ in ("builtins", "__main__")
    kind = kind.__qualname__ if known else f"{kind.__module__}.{kind.__qualname__}"
    lines = "; ".join(line.strip() for line in text.splitlines() if line.strip())
    short = lines if len(lines) <= TEXT_MAX else lines[: TEXT_MAX - 1] + "…"
    return f"{kind}: {short}" if short else kind


def _text(error):
    try:
        return str(error)
    except Exception:
        return "its text cannot be made"


def _place(error, trace):
    """Returns the line of the app at which an exception was raised, or None. A line in a library counts only if there
    is none in the app, because the reader looks for his own mistake first."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(error.filename)}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(trace) if not frame.filename.startswith("<frozen")]
    frames = [frame for frame in frames if _is_of_the_app(frame.filename)] or frames
    return f"{_shown(frames[-1].filename)}, line {frames[-1].lineno}" if frames else None


def _is_of_the_app(file):
    parts = file.split(os.sep)
    library = os.path.dirname(os.__file__) + os.sep
    return not (file.startswith((library, FOLDER + os.sep, "<")) or {"site-packages", "dist-packages"} & set(parts))


def _without_ours(trace):
    """Returns a traceback without the first frames, which are those of this package."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(FOLDER + os.sep):
        trace = trace.tb_next
    return trace


def _shown(path):
    """Returns a path as it is shown: relative, if it lies in the present folder."""
    here = os.getcwd() + os.sep
    return path[len(here) :] if path and path.startswith(here) else path


def end(code):
    """Ends the process as an interpreter does that has run its program, but not by taking itself apart: a worker has
    nothing to lose, and a thread that is still in a library could crash it."""
    compat = sys.modules.get("oxicorn._compat.worker")
    if compat is not None:
        compat.end()
    _end_threads()
    import atexit

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass
    os._exit(code)


def _end_threads():
    """Waits for the threads that are not daemons, as an interpreter does at its end, but not for ever."""
    import threading

    deadline = time.monotonic() + threads_grace
    # The threads of concurrent.futures end only if these functions tell them to. The functions wait for them too.
    waiter = threading.Thread(target=_run_all, args=(threading._threading_atexits,), daemon=True)
    try:
        waiter.start()
    except RuntimeError:
        # The process may start no more threads. The kernel ends those that it has.
        return
    waiter.join(threads_grace)
    threads = {thread for thread in threading.enumerate() if not thread.daemon} - {threading.main_thread()}
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    frames = sys._current_frames()
    left = [_named(thread, frames.get(thread.ident)) for thread in threads if thread.is_alive()]
    if left:
        _oxicorn.threads_left(slot, left)


def _named(thread, frame):
    """Returns the name of a thread, with the line of the app that it is at."""
    lines = [f"{_shown(line.filename)}, line {line.lineno}" for line in _lines_of_the_app(frame)]
    return f"{thread.name} ({lines[-1]})" if lines else thread.name


def _lines_of_the_app(frame):
    return [line for line in traceback.extract_stack(frame) if _is_of_the_app(line.filename)] if frame else []


def _run_all(functions):
    for function in reversed(functions):
        function()
