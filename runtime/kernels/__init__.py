"""This project's own operators for ONNX Runtime on CPU, in C++: finds and loads their library.

They are compiled when the package is installed, if g++ or Clang is there. Bundles of target
`native-cpu` use them. Each call also has a body in standard operators, which ONNX Runtime runs if
the library is missing. The operators use the best instruction set of the processor. The environment
variable PLC_KERNELS names another one, to compare them (`instruction_sets` lists all).

The library also makes sums over ranks; these have no body in standard operators.
"""

import ctypes
import os
import struct
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from pl_compile.errors import KernelsError, RankError

# The version of the interface between this file and the library, which states its own in
# `plc_kernels_interface`.
INTERFACE = 3
# The version of the kernels' arithmetic, noted in bundles. Every change to the bits of a result
# raises it.
_ARITHMETIC = 2

# In the header of a library: where its table of sections begins, the size and the number of
# entries.
_ELF_OF_64_BITS = b"\x7fELF\x02\x01"
_ELF = struct.Struct("<40xQ10xHH2x")

# AVX-VNNI and AMX came with these versions.
HOW_TO_BUILD = "Install g++ 11 or Clang 12, or a later one, then pl-compile again."


def library_path() -> Path | None:
    """The compiled library; None where it was not built."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_kernels{suffix}")
        if path.is_file():
            return path
    return None


def register(options: Any) -> None:
    """Makes the operators known to a session through its options. Does nothing without the library.

    Raises:
        KernelsError: the library belongs to another version of this package, or PLC_KERNELS names
            an instruction set that it does not have here.
    """
    path = library_path()
    if path is None:
        return
    try:
        library = _loaded(path)
    except OSError as error:
        _warn(error)
        return
    _check_interface(library, path)
    _check_wanted(library)
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # ONNX Runtime's errors have no common base class
        _warn(error)


def instruction_set() -> str | None:
    """The instruction set in use, one of `instruction_sets`; None without the library.

    Raises:
        OSError: the library is there and does not load.
        KernelsError: as `register`.
    """
    path = library_path()
    if path is None:
        return None
    library = _loaded(path)
    _check_interface(library, path)
    _check_wanted(library)
    return _text(library.plc_kernels_name)


def instruction_sets() -> list[str]:
    """All instruction sets that the library was built with and this processor has, best first.

    Raises:
        OSError: the library is there and does not load.
        KernelsError: it belongs to another version of this package.
    """
    path = library_path()
    if path is None:
        return []
    library = _loaded(path)
    _check_interface(library, path)
    return _text(library.plc_kernels_available).split()


def arithmetic() -> str:
    """What computes the operators here, as bundles note it: equal notes mean equal bits.

    Raises:
        KernelsError: as `register`.
    """
    try:
        found = instruction_set()
    except OSError:  # it does not load, so ONNX Runtime runs the operators' bodies
        found = None
    if found is None:
        return "standard operators"
    return f"{_ARITHMETIC} portable" if found == "portable" else str(_ARITHMETIC)


def _loaded(path: Path) -> ctypes.CDLL:
    """The library.

    Raises:
        OSError: it does not load.
    """
    _check_whole(path)
    return ctypes.CDLL(str(path))


def _check_whole(path: Path) -> None:
    """Raises `OSError` if a library was cut short: loading it would end this process (SIGBUS).

    A Linux library ends in a table, and its header says where (`man elf`). Libraries of other
    systems are not checked.
    """
    with path.open("rb") as file:
        header = file.read(_ELF.size)
    if header and not header.startswith(_ELF_OF_64_BITS):
        return
    if len(header) == _ELF.size:
        table, size, count = _ELF.unpack(header)
        if path.stat().st_size >= table + size * count:
            return
    raise OSError(f"{path} was cut short")


def _warn(error: Exception) -> None:
    warnings.warn(
        f"the kernels of target native-cpu do not load, so its bundles run slower: {error}",
        RuntimeWarning,
        stacklevel=3,
    )


def _check_interface(library: ctypes.CDLL, path: Path) -> None:
    number = getattr(library, "plc_kernels_interface", None)
    found = 1 if number is None else number()  # the first one had no number
    if found != INTERFACE or not hasattr(library, "plc_kernels_name"):
        raise KernelsError(
            f"loading the kernels {path}",
            found=f"they have interface {found}, so another version of pl-compile built them",
            expected=f"interface {INTERFACE}",
            fix="Install pl-compile again. Without the file bundles run, but slower.",
        )


def _check_wanted(library: ctypes.CDLL) -> None:
    if not _text(library.plc_kernels_name):
        sets = ", ".join(_text(library.plc_kernels_available).split())
        raise KernelsError(
            "choosing kernels for this processor",
            found=f"PLC_KERNELS={os.environ.get('PLC_KERNELS')}",
            expected=f"a set that this processor has and the library was built with: {sets}",
            fix="Name one of them, or unset PLC_KERNELS to get the first.",
        )


def _text(function: Any) -> str:
    function.restype = ctypes.c_char_p
    text: bytes = function()
    return text.decode()


def group_bytes(ranks: int) -> int:
    """Bytes of shared memory that this many ranks need to sum.

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
    """Makes this process a rank that sums with the others in shared memory.

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
    path = library_path()
    if path is None:
        raise RankError(
            "summing over ranks",
            found="the C++ kernels were not built",
            fix=HOW_TO_BUILD,
        )
    try:
        library = _loaded(path)
    except OSError as error:
        raise RankError(
            "summing over ranks",
            found=f"the C++ kernels do not load: {error}",
            fix="Install pl-compile again.",
        ) from error
    _check_interface(library, path)
    return library


def _expect_null(function: Any, doing: str, *arguments: Any) -> None:
    function.restype = ctypes.c_char_p
    message: bytes | None = function(*arguments)
    if message is not None:
        raise RankError(doing, found=message.decode())
