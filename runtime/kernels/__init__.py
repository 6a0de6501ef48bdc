"""This project's own operators for ONNX Runtime on CPU, in C++: finds and loads their library.

Installing the package compiles them, if the machine has g++ or Clang. Bundles of target
`native-cpu` use them. Each of their calls has a body in standard operators too, which ONNX Runtime
runs where the library is missing. They use the best instruction set of the processor. To compare
sets, name another one in the environment variable PLC_KERNELS (`instruction_sets` has all).

The library also adds up over ranks (`rank_sums.py`). That operator has no body.
"""

import ctypes
import os
import struct
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from pl_compile.errors import KernelsError

# The interface that this package and the library agree on; `plc_kernels_interface` in ops.cc has
# the library's.
INTERFACE = 5
# What bundles note of the kernels' arithmetic. It grows with every change to the bits of a result.
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


def register(options: Any) -> bool:
    """Adds the operators to a session's options. Where the library was not built, it does nothing.

    Where the library is there and does not load, it warns.

    Returns:
        Whether the session has them.

    Raises:
        KernelsError: the library belongs to another version of this package, or PLC_KERNELS names
            an instruction set that it does not have here.
    """
    path = library_path()
    if path is None:
        return False
    try:
        library = loaded(path)
    except OSError as error:
        _warn(error)
        return False
    _check_wanted(library)
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # ONNX Runtime's errors have no common base class
        _warn(error)
        return False
    return True


def instruction_set() -> str | None:
    """The instruction set in use, one of `instruction_sets`; None without the library.

    Raises:
        OSError: the library is there and does not load.
        KernelsError: as `register`.
    """
    path = library_path()
    if path is None:
        return None
    library = loaded(path)
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
    library = loaded(path)
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


def loaded(path: Path) -> ctypes.CDLL:
    """The library, for the modules of this package.

    Raises:
        OSError: it does not load.
        KernelsError: it belongs to another version of this package.
    """
    _check_whole(path)
    library = ctypes.CDLL(str(path))
    _check_interface(library, path)
    return library


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
