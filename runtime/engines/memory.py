"""Memory that is taken as it is touched, page by page."""

import math
import mmap
import sys
from contextlib import suppress
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from pl_compile.errors import RequestError
from pl_compile.shapes import Shape


def zeros_as_touched(shape: tuple[int, ...], dtype: Any) -> Annotated[NDArray[Any], Shape("...")]:
    """Zeros that take no memory until they are written to, then one small page at a time.

    numpy asks Linux for pages of 2 MiB for its larger arrays. In a cache whose rows are not full,
    the parts in use lie far apart, and each of them would take 2 MiB. The array begins at the start
    of a page. On other systems it is an ordinary array of numpy's.

    Args:
        shape: of the array.
        dtype: of its numbers.

    Raises:
        RequestError: the system does not give so much memory.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        # An array without numbers has no memory that could be mapped.
        if size == 0 or not sys.platform.startswith("linux"):
            return np.zeros(shape, dtype)
        return _mapped(shape, dtype, size)
    except (OSError, MemoryError, OverflowError) as error:
        raise RequestError(
            "taking memory for the rows of a batch",
            found=f"{size} bytes, which the system refuses",
            expected="as many as it has left",
            fix="Lower --batch (max_batch) or --context-mib, or export with a smaller --capacity.",
        ) from error


def give_back(array: Annotated[NDArray[Any], Shape("...")], begin: int, end: int) -> None:
    """Gives the pages of `array[begin:end]` back to the system; touched again, they are zeros.

    Pages that hold other parts of the array too stay, and so does everything where the array is not
    one of `zeros_as_touched` on Linux.
    """
    memory = array.base
    if not sys.platform.startswith("linux") or not isinstance(memory, mmap.mmap):
        return
    page = mmap.PAGESIZE
    first = -(-begin * array.strides[0] // page) * page
    size = end * array.strides[0] // page * page - first
    if size > 0:
        memory.madvise(mmap.MADV_DONTNEED, first, size)


def _mapped(shape: tuple[int, ...], dtype: Any, size: int) -> NDArray[Any]:
    # Private: by default Python maps memory that forked processes share. For that the system has
    # other rules of accounting and of large pages.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a Linux without large pages refuses this advice
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.ndarray(shape, dtype, buffer=memory)
