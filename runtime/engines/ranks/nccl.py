"""NCCL's communicator for ranks on GPUs, by NVIDIA's `nccl4py`. Never run by this project."""

import ctypes
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pl_compile.errors import MissingExtraError, PlcError, RankError, first_line_of

_CAPSULE = b"ncclComm_t"


def unique_id() -> bytes:
    """An id that the leader gives to all ranks, so that they find each other.

    Raises:
        MissingExtraError: `nccl4py` is not installed.
        RankError: NCCL's library is not there, or does not work here.
    """
    with _in_our_words("starting NCCL"):
        return bytes(_nccl().get_unique_id())


def communicator_of(rank: int, ranks: int, shared: bytes) -> Any:
    """The communicator of a rank. Every rank calls this; it returns when all have called it.

    The communicator must outlive each context that it is given to.

    Raises:
        MissingExtraError: `nccl4py` is not installed.
        RankError: NCCL's library is not there, or does not work here.
    """
    nccl = _nccl()
    with _in_our_words(f"joining {ranks} ranks as rank {rank} by NCCL"):
        identity = nccl.UniqueId.from_bytes(shared)
        return nccl.Communicator.init(nranks=ranks, rank=rank, unique_id=identity)


def capsule_of(address: int) -> Any:
    """What TensorRT's `IExecutionContext.set_communicator` takes, of an `ncclComm_t`."""
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(address, _CAPSULE, None)


@contextmanager
def _in_our_words(doing: str) -> Iterator[None]:
    try:
        yield
    except PlcError:
        raise
    except Exception as error:  # from nccl4py, from the search for its library, or from CUDA
        raise RankError(
            doing,
            found=first_line_of(error),
            fix="Install NVIDIA's driver, and pip install 'pl-compile[nccl]': see plc doctor.",
        ) from error


def _nccl() -> Any:
    try:
        return importlib.import_module("nccl.core")
    except ImportError as error:
        raise MissingExtraError(
            "starting ranks on GPUs", package="nccl4py", extra="nccl"
        ) from error
