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
    """Zeros that cost nothing until they are written to: the system's smallest page at a time.

    numpy asks Linux for pages of 2 MiB for its larger arrays. Where parts of an array are in use
    that lie far apart, as in a cache whose rows are not full, each of them then takes 2 MiB. The
    array begins at the start of a page. On other systems it is one of numpy's own.

    Args:
        shape: of the array.
        dtype: of its numbers.

    Raises:
        RequestError: the system does not give so much memory.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        # No memory can be mapped for an array without numbers.
        if size == 0 or not sys.platform.startswith("linux"):
            return np.zeros(shape, dtype)
        return _mapped(shape, dtype, size)
    except (OSError, MemoryError, OverflowError) as error:
        raise RequestError(
            "taking memory for the rows of a batch",
            found=f"{size} bytes, which the system refuses",
            expected="as many as it has left",
            fix="Lower --batch (max_batch), or export with a smaller --capacity.",
        ) from error


def _mapped(shape: tuple[int, ...], dtype: Any, size: int) -> NDArray[Any]:
    # Private: Python's default is memory shared with forked processes, which is accounted for, and
    # given large pages, by other rules.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel that was built without large pages knows no such advice
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.ndarray(shape, dtype, buffer=memory)
