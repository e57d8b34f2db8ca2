"""The master: `python -S _master.py PROGRAM ARGUMENTS`.

Owns: the load of the extension module, which runs the command. Refuses: to import the app, `site`, `asyncio` or
anything else that a master can do without. The workers are forked from this process.
"""

import _signal
import sys


def _extension():
    # The folder of this file is not on `sys.path` for long: its modules are private.
    folder = __file__.rpartition("/")[0]
    if not sys.flags.safe_path:
        del sys.path[0]
    sys.path.insert(0, folder.rpartition("/")[0])
    import oxicorn._oxicorn

    del sys.path[0]
    return oxicorn._oxicorn


def main():
    # The supervisor has its own handler, which would call Python's too. That one raises KeyboardInterrupt.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    code = _extension().main(sys.argv[1:])
    # A worker returns here too, with the app in it.
    worker = sys.modules.get("oxicorn._worker")
    if worker is not None:
        worker.end(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
