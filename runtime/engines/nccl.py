"""NCCL's communicator for ranks on GPUs, by NVIDIA's `nccl4py`. Never run by this project."""

import ctypes
import importlib
from typing import Any

from pl_compile.errors import MissingExtraError

_CAPSULE = b"ncclComm_t"


def unique_id() -> bytes:
    """What the leader gives to all ranks, so that they find each other.

    Raises:
        MissingExtraError: `nccl4py` is not installed.
    """
    return bytes(_nccl().get_unique_id())


def communicator_of(rank: int, ranks: int, shared: bytes) -> Any:
    """The communicator of a rank; every rank calls this, and none returns before all have.

    It must outlive each context that it is given to.

    Raises:
        MissingExtraError: `nccl4py` is not installed.
    """
    nccl = _nccl()
    identity = nccl.UniqueId.from_bytes(shared)
    return nccl.Communicator.init(nranks=ranks, rank=rank, unique_id=identity)


def capsule_of(address: int) -> Any:
    """What TensorRT's `IExecutionContext.set_communicator` takes, of an `ncclComm_t`."""
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(address, _CAPSULE, None)


def _nccl() -> Any:
    try:
        return importlib.import_module("nccl.core")
    except ImportError as error:
        raise MissingExtraError(
            "starting ranks on GPUs", package="nccl4py", extra="nccl"
        ) from error
