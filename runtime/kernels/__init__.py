"""This project's own operators for ONNX Runtime on CPU, in C++: where their library is.

They are compiled when the package is installed on Linux where GCC is. Bundles of target
`native-cpu` use them; each of their calls has a body in standard operators too, which ONNX Runtime
runs where the library is missing. They use the best instruction set of the processor; the
environment's PLC_KERNELS (amx, avx512, avx2 or portable) names another one, to compare them.
"""

import ctypes
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any


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
