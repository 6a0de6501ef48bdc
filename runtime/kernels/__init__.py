"""This project's own operators for ONNX Runtime on CPU, in C++: where their library is.

They are compiled when the package is installed on a machine with a C++ compiler. Bundles of target
`native-cpu` use them; each of their calls has a body in standard operators too, which ONNX Runtime
runs where the library is missing.
"""

import ctypes
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


def library_path() -> Path | None:
    """The compiled library; None where it was not built."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_kernels{suffix}")
        if path.is_file():
            return path
    return None


def instruction_set() -> str | None:
    """What the kernels run on here: "amx", "avx512", "avx2" or "portable"; None without them."""
    path = library_path()
    if path is None:
        return None
    name = ctypes.CDLL(str(path)).plc_kernels_name
    name.restype = ctypes.c_char_p
    text: bytes = name()
    return text.decode()
