"""Numbers of a file as they lie in it: mapped into memory, never copied, never written.

Pages of a mapped file are read when they are touched, and all processes that map the file share
them. The system may take them back, and reads them again from the file.

A mapping stays valid when its file is deleted or another one takes its name. What happens when the
file itself is written to or cut short is not defined: the numbers change, or the process ends with
SIGBUS (mmap(2)). So files are replaced whole, never changed: `artifact/files.py` does so.

Python's `mmap` would keep a file descriptor open for each mapping: a thousand of them are as many
as a process may have by default. So the system is called directly.
"""

import ctypes
import mmap
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FAILED = ctypes.c_void_p(-1).value


def can_map() -> bool:
    """Whether files are mapped on this system: on Linux and macOS, of 64 bits."""
    return sys.platform in ("linux", "darwin") and sys.maxsize > 1 << 32


class Mapping:
    """A file in memory, as long as this object lives.

    Args:
        path: the file, not empty.

    Raises:
        OSError: it cannot be opened, or the system refuses to map it.
    """

    def __init__(self, path: Path) -> None:
        self.address = 0
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.size = os.fstat(descriptor).st_size
            found = _system().mmap(None, self.size, mmap.PROT_READ, mmap.MAP_PRIVATE, descriptor, 0)
            if found == _FAILED:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(path))
            self.address = found
        finally:
            os.close(descriptor)

    def floats(self, begin: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Numbers of the file: float32 of `shape`, which cannot be written to.

        Args:
            begin: their first byte in the file. All of them must lie in it.
            shape: of the array, which keeps this object.
        """
        found: NDArray[np.float32] = np.asarray(_Numbers(self, begin, shape))
        return found

    def untouch(self) -> None:
        """Makes the process forget the pages that it has touched; it may touch them again."""
        _system().madvise(self.address, self.size, mmap.MADV_DONTNEED)

    def __del__(self) -> None:
        """Ends the mapping."""
        if self.address:
            _system().munmap(self.address, self.size)


class _Numbers:
    """What an array of a mapping begins from: numpy keeps it as the `base` of the array."""

    def __init__(self, mapping: Mapping, begin: int, shape: tuple[int, ...]) -> None:
        self.mapping = mapping
        self.__array_interface__ = {
            "data": (mapping.address + begin, True),  # True: not to be written
            "shape": shape,
            "typestr": "<f4",
            "version": 3,
        }


def untouch(array: NDArray[Any]) -> None:
    """Takes the pages of an array of `Mapping.floats` out of this process's memory.

    Something that reads an array once, such as a check, need not leave it in memory. For an array
    that is not mapped nothing is done.
    """
    if isinstance(array.base, _Numbers):
        array.base.mapping.untouch()


@cache
def _system() -> Any:
    """The C library, with the types of what is called."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library
