"""The loop of a worker whose app may turn out to be one of WSGI, which needs no loop.

Owns: the moment at which the loop is made while the app is imported: when something imports asyncio. Refuses: to make
the loop (`_oxicorn` does).
"""

import importlib.util
import sys
import threading


class Watch:
    """A finder that calls `make` after the first import of asyncio."""

    def __init__(self, make):
        self._make = make

    def __enter__(self):
        if "asyncio" in sys.modules:
            self._make()
        else:
            sys.meta_path.insert(0, self)

    def __exit__(self, *_):
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, name, path=None, target=None):
        if name != "asyncio" or threading.current_thread() is not threading.main_thread():
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            spec.loader = _Loader(spec.loader, self._make)
        return spec


class _Loader:
    def __init__(self, loader, make):
        self._loader, self._make = loader, make

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._make()
