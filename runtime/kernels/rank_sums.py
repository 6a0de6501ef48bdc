"""Sums over ranks: what a process tells the kernels' library before it opens its session.

On CPU ranks meet in shared memory (`group.cc`); on CUDA NCCL adds (`nccl.cc`).
"""

import ctypes
from pathlib import Path
from typing import Any

from pl_compile.errors import RankError
from pl_compile.runtime import kernels


def group_bytes(ranks: int) -> int:
    """Bytes of shared memory in which this many ranks meet.

    Raises:
        RankError: the library was not built, or does not load.
        KernelsError: it belongs to another version of this package.
    """
    size = _library().plc_group_bytes
    size.restype = ctypes.c_size_t
    size.argtypes = [ctypes.c_size_t]
    found: int = size(ranks)
    return found


def join_group(memory: Path, rank: int, ranks: int) -> None:
    """Makes this process a rank whose sums meet the others' in shared memory.

    Args:
        memory: a file of `group_bytes` zeros, the same for all.
        rank: which one, from 0.
        ranks: how many there are.

    Raises:
        RankError: the library was not built, or it cannot use the file.
        KernelsError: it belongs to another version of this package.
    """
    join = _library().plc_join_group
    join.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t]
    _expect_null(join, f"joining {ranks} ranks as rank {rank}", str(memory).encode(), rank, ranks)


def use_communicator(address: int) -> None:
    """Gives this process NCCL's communicator, for sums on CUDA. Never run by this project.

    Args:
        address: of an `ncclComm_t`, which must outlive every session.

    Raises:
        RankError: NCCL does not load, or does not take it.
        KernelsError: the library belongs to another version of this package.
    """
    use = _library().plc_use_communicator
    use.argtypes = [ctypes.c_void_p]
    _expect_null(use, "giving NCCL's communicator to the kernels", address)


def _library() -> ctypes.CDLL:
    path = kernels.library_path()
    if path is None:
        raise RankError(
            "summing over ranks",
            found="the C++ kernels were not built",
            fix=kernels.HOW_TO_BUILD,
        )
    try:
        return kernels.loaded(path)
    except OSError as error:
        raise RankError(
            "summing over ranks",
            found=f"the C++ kernels do not load: {error}",
            fix="Install pl-compile again.",
        ) from error


def _expect_null(function: Any, doing: str, *arguments: Any) -> None:
    function.restype = ctypes.c_char_p
    message: bytes | None = function(*arguments)
    if message is not None:
        raise RankError(doing, found=message.decode())
