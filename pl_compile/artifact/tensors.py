"""Reads safetensors files, or raises one clear error; writes equal content as equal bytes."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pl_compile.artifact.mapped_file import Mapping as Mapped
from pl_compile.artifact.mapped_file import can_map
from pl_compile.config.damage import damage_of
from pl_compile.config.floats import check_floats
from pl_compile.config.utf8 import check_regular
from pl_compile.errors import ArtifactError, reason_of


@dataclass(frozen=True)
class TensorFile:
    """What a safetensors file holds.

    Attributes:
        tensors: arrays by name.
        metadata: text by name; empty where the file has none.
    """

    tensors: dict[str, NDArray[Any]]
    metadata: dict[str, str]


def read_tensor_file(
    path: Path, *, doing: str, prefix: str = "", floats: bool = False, mapped: bool = False
) -> TensorFile:
    """Reads a safetensors file.

    Args:
        path: the file.
        doing: what an error says was being done.
        prefix: only tensors whose name begins with it are read.
        floats: whether each of them must hold floats, as weights do.
        mapped: whether float32 tensors are the file's own pages (`mapped_file.py`), where the
            system can do so. They cannot be written to, and the file must not be.

    Raises:
        ArtifactError: the file is missing or damaged, or has numbers of another kind.
    """
    from safetensors import SafetensorError, safe_open  # imported only when a tensor is read

    try:
        check_regular(path)
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            kinds = {name: str(file.get_slice(name).get_dtype()) for name in names}
            if floats:
                check_floats(kinds, ArtifactError, doing)
            single = (
                {name for name, kind in kinds.items() if kind == "F32"}
                if mapped and can_map()
                else set()
            )
            tensors = {name: file.get_tensor(name) for name in names if name not in single}
            if single:
                tensors |= _mapped(path, single)
    except SafetensorError as error:
        found, fix = damage_of(path)
        where = "" if path.name in doing else f"{path.name}: "
        raise ArtifactError(
            doing,
            found=f"{where}{found or reason_of(error)}",
            expected="a safetensors file",
            fix=fix,
        ) from error
    except OSError as error:
        raise ArtifactError(doing, found=reason_of(error), expected="a safetensors file") from error
    except ValueError as error:  # an empty tensor may have any sizes beside the 0
        raise ArtifactError(doing, found=f"a tensor that numpy cannot hold: {error}") from error
    except (TypeError, AttributeError) as error:
        found = f"numbers that numpy cannot hold: {', '.join(sorted({*kinds.values()}))}"
        raise ArtifactError(doing, found=found) from error
    return TensorFile(tensors, metadata)


def _mapped(path: Path, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Float32 tensors of a file that the library has read without an error."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    mapping = Mapped(path)
    return {
        name: mapping.floats(8 + length + record["data_offsets"][0], tuple(record["shape"]))
        for name, record in header.items()
        if name in names
    }


def tensor_bytes(
    tensors: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
    *,
    multiple: int = 8,
) -> bytes:
    """The bytes of a safetensors file; equal content gives equal bytes.

    The library sorts tensors, but its order of metadata differs from process to process. So the
    header is written again with its keys sorted
    (https://github.com/huggingface/safetensors#format).

    Args:
        tensors: by name.
        metadata: texts by name.
        multiple: of this many bytes the data begins at, counted from the start of the file.
    """
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    whole = save(arrays, None if metadata is None else dict(metadata))
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    encoded = text.encode()
    encoded += b" " * (-(8 + len(encoded)) % multiple)
    return len(encoded).to_bytes(8, "little") + encoded + whole[8 + length :]
