"""This project's own operators for ONNX Runtime on CPU, in C++: where their library is.

They are compiled when the package is installed on Linux where GCC is. Bundles of target
`native-cpu` use them; each of their calls has a body in standard operators too, which ONNX Runtime
runs where the library is missing. They use the best instruction set of the processor; the
environment's PLC_KERNELS (amx, avx512, avx2 or portable) names another one, to compare them.

Sums over ranks are theirs too; those have no other body.
"""

import ctypes
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from pl_compile.errors import RankError


def library_path() -> Path | None:
    """The compiled library; None where it was not built."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_kernels{suffix}")
        if path.is_file():
            return path
    return None


def register(options: Any) -> None:
    """Makes the operators known to a session that these options are for; nothing without them."""
    path = library_path()
    if path is None:
        return
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # the library's errors share no base of their own
        warnings.warn(
            f"the kernels of target native-cpu do not load, its bundles run slower: {error}",
            RuntimeWarning,
            stacklevel=2,
        )


def instruction_set() -> str | None:
    """What the kernels run on here: "amx", "avx512", "avx2" or "portable"; None without them.

    Raises:
        OSError: the library is there and does not load.
    """
    path = library_path()
    if path is None:
        return None
    name = ctypes.CDLL(str(path)).plc_kernels_name
    name.restype = ctypes.c_char_p
    text: bytes = name()
    return text.decode()


def group_bytes(ranks: int) -> int:
    """Bytes of shared memory in which this many ranks meet.

    Raises:
        RankError: the library was not built, or does not load.
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
    """
    use = _library().plc_use_communicator
    use.argtypes = [ctypes.c_void_p]
    _expect_null(use, "giving NCCL's communicator to the kernels", address)


def _library() -> ctypes.CDLL:
    path = library_path()
    if path is None:
        raise RankError(
            "summing over ranks",
            found="the C++ kernels were not built",
            expected="Linux with g++ when pl-compile was installed",
            fix="Install g++, then pl-compile again.",
        )
    return ctypes.CDLL(str(path))


def _expect_null(function: Any, doing: str, *arguments: Any) -> None:
    function.restype = ctypes.c_char_p
    message: bytes | None = function(*arguments)
    if message is not None:
        raise RankError(doing, found=message.decode())
