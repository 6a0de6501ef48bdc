"""Safetensors files: read whole, or one clear error; written with the same bytes every time."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pl_compile.artifact.files import check_regular
from pl_compile.config.damage import damage_of
from pl_compile.errors import ArtifactError, reason_of

# How safetensors' names of floats of 8 bits and fewer begin: numpy has none of them, and they mean
# nothing without the scales beside them.
_CODES = ("F8_", "F6_", "F4")


@dataclass(frozen=True)
class TensorFile:
    """What a safetensors file holds.

    Attributes:
        tensors: arrays by name.
        metadata: text by name; empty where the file has none.
    """

    tensors: dict[str, NDArray[Any]]
    metadata: dict[str, str]


def read_tensor_file(path: Path, *, doing: str, prefix: str = "") -> TensorFile:
    """Reads a safetensors file.

    Args:
        path: the file.
        doing: what an error says was being done.
        prefix: only tensors whose name begins with it are read.

    Raises:
        ArtifactError: there is no such file, or it is damaged.
    """
    from safetensors import SafetensorError, safe_open  # where there is a tensor to read

    try:
        check_regular(path)
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            kinds = {name: file.get_slice(name).get_dtype() for name in names}
            codes = [
                f"'{name}' of {kind}" for name, kind in kinds.items() if kind.startswith(_CODES)
            ]
            if codes:
                raise ArtifactError(
                    doing, found=", ".join(codes[:5]), expected="floats of 16 bits or more"
                )
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, TypeError, AttributeError) as error:
        # The last two: a number format that numpy does not know.
        found, fix = damage_of(path) if isinstance(error, SafetensorError) else ("", "")
        raise ArtifactError(
            doing, found=found or reason_of(error), expected="a safetensors file", fix=fix
        ) from error
    return TensorFile(tensors, metadata)


def tensor_bytes(
    tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The bytes of a safetensors file; equal content gives equal bytes.

    The library orders tensors by itself, and writes metadata in an order that differs from process
    to process: the header is written again with its keys sorted
    (https://github.com/huggingface/safetensors#format).
    """
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    whole = save(arrays, None if metadata is None else dict(metadata))
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    encoded = text.encode()
    encoded += b" " * (-len(encoded) % 8)  # the data begins at a multiple of 8
    return len(encoded).to_bytes(8, "little") + encoded + whole[8 + length :]
