"""Loads the plugin `plc_all_reduce`, for a TensorRT that has no layer for sums over ranks.

Its source is `runtime/plugins/all_reduce.cc`. A user who needs it compiles it and says where it is.
Never run by this project, which had no GPU.
"""

import ctypes
import os
from pathlib import Path
from typing import Any

from pl_compile.errors import RankError

VARIABLE = "PLC_ALL_REDUCE_PLUGIN"


def load_plugin(trt: Any) -> Path:
    """Registers the plugin with TensorRT, so that it parses graphs and loads plans with it.

    Args:
        trt: the package.

    Raises:
        RankError: the variable that names the library is not set, or TensorRT does not take it.
    """
    doing = f"loading the plugin plc_all_reduce into TensorRT {trt.__version__}"
    name = os.environ.get(VARIABLE)
    if not name:
        raise RankError(
            doing,
            found=f"{VARIABLE} is not set, and this TensorRT has no layer for sums over ranks",
            expected="the path of libplc_all_reduce.so, or TensorRT 10.16 or newer",
            fix="runtime/plugins/README.md says how to build it.",
        )
    path = Path(name)
    if not path.is_file():
        raise RankError(doing, found=f"no file {path}", fix=f"Set {VARIABLE} to the library.")
    if trt.get_plugin_registry().load_library(str(path)) is None:
        raise RankError(doing, found=f"TensorRT does not take {path}", fix="Build it again.")
    return path


def give_communicator(path: Path, address: int) -> None:
    """Gives the plugin NCCL's communicator.

    Args:
        path: of the library, as `load_plugin` gave it.
        address: of an `ncclComm_t` that outlives all contexts.
    """
    give = ctypes.CDLL(str(path)).plc_all_reduce_set_communicator
    give.argtypes, give.restype = [ctypes.c_void_p], None
    give(address)
