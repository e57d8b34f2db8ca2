"""The interface of an app: ASGI or WSGI.

Owns: how both are told apart, and the sentence for what is neither. Refuses: to import the app (`_worker`).
"""

import inspect

#: The attributes under which middleware keeps the app that it wraps.
WRAPPED = ("app", "application", "wsgi_app", "asgi_app", "wrapped", "_app")

#: How many layers of middleware are looked into.
DEPTH = 10


class AppError(Exception):
    """The name of the app is wrong, or does not name an app. The text is the whole sentence."""


def of(app, name, wanted):
    """Returns `asgi` or `wsgi`. `wanted` is `python.interface`."""
    if inspect.iscoroutine(app):
        app.close()
        raise AppError(f"{name} is a coroutine: the factory of an app must be a plain function")
    if not callable(app):
        raise AppError(f"{name} is an object of the type {type(app).__name__!r}, and not an app that can be called")
    signature = _signature(app)
    asgi, wsgi = _takes(signature, 3), _takes(signature, 2)
    if not asgi and not wsgi:
        if _takes(signature, 0):
            raise AppError(f"{name} takes no arguments, so it is no app; if it is a factory, write {name}()")
        raise AppError(
            f"{name} takes neither the arguments of an ASGI 3 app (scope, receive, send) nor those of a WSGI app "
            "(environ, start_response)"
        )
    if wanted == "asgi" and not asgi:
        raise AppError(f'{name} is a WSGI app, and python.interface is "asgi"')
    if wanted == "wsgi" and not wsgi:
        raise AppError(f'{name} is an ASGI app, and python.interface is "wsgi"')
    return wanted if wanted != "auto" else _guess(app, signature, asgi, wsgi)


def _guess(app, signature, asgi, wsgi):
    if asgi != wsgi:
        return "asgi" if asgi else "wsgi"
    # The arguments fit both, as those of a decorator do that takes any: `*args`.
    for _ in range(DEPTH):
        known = _known(app, signature)
        if known is not None:
            return known
        app = next((inner for inner in map(app_attributes(app).get, WRAPPED) if callable(inner)), None)
        if app is None:
            break
        signature = _signature(app)
        asgi, wsgi = _takes(signature, 3), _takes(signature, 2)
        if asgi != wsgi:
            return "asgi" if asgi else "wsgi"
    return "asgi"


def app_attributes(app):
    """Returns the attributes of an object that it keeps itself."""
    try:
        return vars(app)
    except TypeError:
        return {}


def _known(app, signature):
    """Returns the interface of an app that takes the arguments of both, by the names of its arguments or because it is
    an `async def`. Returns None if neither tells."""
    call = app if inspect.isroutine(app) else type(app).__call__
    if inspect.iscoroutinefunction(call):
        return "asgi"
    names = [] if signature is None else [parameter.name for parameter in signature.parameters.values()]
    if names[:1] and names[0] in ("environ", "env") or names[1:2] and names[1].startswith("start"):
        return "wsgi"
    if names[:1] == ["scope"]:
        return "asgi"
    return None


def _signature(app):
    """Returns the signature of the app, or None if it has none, as some functions written in C."""
    try:
        return inspect.signature(app)
    except (TypeError, ValueError):
        return None


def _takes(signature, count):
    if signature is None:
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True
