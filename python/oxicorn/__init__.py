"""oxicorn: a pre-fork supervisor and server for ASGI apps.

Owns: the public names of the package. Refuses: to import anything at once, because the master imports this file too.
"""

__all__ = ["ClientDisconnected", "__version__"]


def __getattr__(name):
    if name in __all__:
        from . import _oxicorn

        return getattr(_oxicorn, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
