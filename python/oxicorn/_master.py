"""The master: `python -S _master.py HOW PATH COMPAT ARGUMENTS`. HOW and PATH tell how the program was started: `script`
and the path of the command, or `-m` and the path of the interpreter. COMPAT is what `__main__.py` has made of the words
of other servers, as JSON; it is empty if there are none.

Owns: the load of the extension module, which runs the command, and the code of this package that the workers run.
Refuses: to import the app, `site`, `asyncio` or anything else that a master can do without. The workers are forked from
this process.
"""

import _frozen_importlib
import _frozen_importlib_external
import _signal
import posix
import sys

#: The folder of the package. Its path has no links, see `__main__.py`.
FOLDER = __file__.rpartition("/")[0]

#: The modules that no worker imports.
NOT_FOR_WORKERS = ("__init__.py", "__main__.py", "_master.py")

#: Those of `_compat`.
NOT_FOR_WORKERS_OF_OTHERS = ("commandline.py", "docs.py", "hooks.py", "importer.py", "process.py", "uvicorn.py")


class _Code:
    """Imports the modules of this package from code that the master has read at its start. The files may belong to
    another version by the time a worker is forked, because `pip install -U` replaces them in place."""

    def __init__(self, compat):
        self._codes = {}
        self._read("oxicorn", FOLDER, NOT_FOR_WORKERS)
        if compat:
            self._read("oxicorn._compat", f"{FOLDER}/_compat", NOT_FOR_WORKERS_OF_OTHERS)

    def _read(self, package, folder, without):
        for file in posix.listdir(folder):
            if file.endswith(".py") and file not in without:
                name = package if file == "__init__.py" else f"{package}.{file[:-3]}"
                path = f"{folder}/{file}"
                loader = _frozen_importlib_external.SourceFileLoader(name, path)
                self._codes[name] = path, loader.get_code(name)

    def find_spec(self, name, path=None, target=None):
        if name not in self._codes:
            return None
        path = self._codes[name][0]
        spec = _frozen_importlib.ModuleSpec(name, self, origin=path, is_package=path.endswith("/__init__.py"))
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(path.rpartition("/")[0])
        spec.has_location = True
        return spec

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(self._codes[module.__name__][1], module.__dict__)


def _extension():
    # The folder of this file is not on `sys.path` for long: its modules are private.
    if not sys.flags.safe_path:
        del sys.path[0]
    sys.path.insert(0, FOLDER.rpartition("/")[0])
    import oxicorn._oxicorn

    del sys.path[0]
    return oxicorn._oxicorn


def main():
    # The supervisor has its own handler, which would call Python's too. That one raises KeyboardInterrupt.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    extension = _extension()
    how, path, compat, *arguments = sys.argv[1:]
    sys.meta_path.insert(0, _Code(compat))
    # The name in the help.
    program = path if how == "script" else "python -m oxicorn"
    options = sys.orig_argv[1 : sys.orig_argv.index("-S")]
    # The way back from an upgrade needs these.
    files = [sys.executable, __file__, extension.__file__]
    code = extension.main([program, *arguments], how == "script", path, options, files, compat)
    # A worker returns here too, with the app in it.
    worker = sys.modules.get("oxicorn._worker")
    if worker is not None:
        worker.end(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
