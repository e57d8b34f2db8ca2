"""What a WSGI app gets from its worker and is written in Python.

Owns: `wsgi.file_wrapper`, and the stack of a thread for the log. Refuses: all else, which is native.
"""

import os
import stat
import sys
import traceback


class FileWrapper:
    """The iterator over a file that PEP 3333 wants. A real file is sent by the worker, without Python."""

    def __init__(self, filelike, blksize=8192):
        self.filelike = filelike
        self.blksize = blksize
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __getitem__(self, key):
        data = self.filelike.read(self.blksize)
        if data:
            return data
        raise IndexError

    def __iter__(self):
        return self

    def __next__(self):
        data = self.filelike.read(self.blksize)
        if data:
            return data
        raise StopIteration


def descriptor_of(wrapper):
    """Returns the descriptor of the wrapper's file and the position in it, or None if it is no regular file."""
    filelike = wrapper.filelike
    try:
        descriptor = filelike.fileno()
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return descriptor, filelike.tell() if hasattr(filelike, "tell") else os.lseek(descriptor, 0, os.SEEK_CUR)
    except (AttributeError, OSError, TypeError, ValueError):
        # io.UnsupportedOperation is an OSError.
        return None


def stack_of(ident):
    """Returns where a thread is now, or None if it has ended."""
    frame = sys._current_frames().get(ident)
    return None if frame is None else "".join(traceback.format_stack(frame)).rstrip("\n")
