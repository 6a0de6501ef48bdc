"""Keys and values that the compiler computed for a task's opening, and what they came from.

    tensor "folded_kv"      float32 [layers, 2, kv_heads, opening, head_dim]: of positions 0 to
                            `opening - 1`, keys as the attention uses them
    metadata "identity"     JSON: the fields of `PrefixIdentity`

A cache entry of the wrong origin gives fluent wrong answers, never a crash. So a reader works out
again what it must have been computed from, and refuses it where a part differs.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pl_compile.artifact.json_files import record_of
from pl_compile.artifact.mapped_file import untouch
from pl_compile.artifact.tensors import read_tensor_file, tensor_bytes
from pl_compile.config.read import plain_from_config
from pl_compile.errors import ArtifactError, ConfigError, list_problems, reason_of

FOLDED_NAME = "folded_kv.safetensors"
_TENSOR = "folded_kv"


@dataclass(frozen=True)
class PrefixIdentity:
    """What keys and values were computed from. Every part is a sum of content, never a name.

    Attributes:
        base: fingerprint of the base.
        graph: sha256 over the files that were compiled from it: weights, passes, precision.
        prompt: sha256 of the task's rows, or of its learned prefix.
        layout: sha256 of the opening's tokens: which are real, which virtual, in which order.
        positions: how positions are counted.
        dtype: of keys and values.
        quantization: of the weights.
    """

    base: str
    graph: str
    prompt: str
    layout: str
    positions: str
    dtype: str
    quantization: str

    def differences(self, other: "PrefixIdentity") -> list[str]:
        """The parts that differ, each with both values."""
        mine, theirs = vars(self), vars(other)
        return [
            f"{part} {mine[part]}, not {theirs[part]}"
            for part in mine
            if mine[part] != theirs[part]
        ]


@dataclass(frozen=True)
class FoldedPrefix:
    """A task's computed prefix.

    Attributes:
        kv: float32 `[layers, 2, kv_heads, opening, head_dim]`.
        identity: what it was computed from.
    """

    kv: NDArray[np.float32]
    identity: PrefixIdentity


def write_folded(path: Path, prefix: FoldedPrefix) -> None:
    """Writes the file of a prefix. Its numbers begin at a multiple of 64 bytes, a cache line."""
    identity = json.dumps(plain_from_config(prefix.identity), sort_keys=True)
    path.write_bytes(tensor_bytes({_TENSOR: prefix.kv}, {"identity": identity}, multiple=64))


def read_folded(path: Path) -> FoldedPrefix:
    """Reads the file of a prefix: its numbers are the pages of the file (`mapped_file.py`).

    Raises:
        ArtifactError: it is damaged, or not such a file.
    """
    doing = f"reading {path}"
    file = read_tensor_file(path, doing=doing, mapped=True)
    kv = file.tensors.get(_TENSOR)
    if kv is None or kv.ndim != 5 or kv.dtype != np.float32 or len(file.tensors) > 1:
        raise ArtifactError(
            doing,
            found=f"tensors {[f'{n} {t.dtype} {t.shape}' for n, t in file.tensors.items()]}",
            expected=f"'{_TENSOR}' alone, float32 with 5 axes",
        )
    if not np.isfinite(kv).all():
        raise ArtifactError(doing, found="keys or values that are not finite numbers")
    untouch(kv)
    try:
        text = file.metadata.get("identity", "")
        identity = record_of(PrefixIdentity, text, name="identity", doing=doing)
    except (ValueError, RecursionError, ConfigError) as error:
        raise ArtifactError(doing, found=f"damaged identity ({reason_of(error)})") from error
    return FoldedPrefix(kv, identity)


def check_identity(found: PrefixIdentity, expected: PrefixIdentity, doing: str) -> None:
    """Raises `ArtifactError` with every part that differs."""
    problems = found.differences(expected)
    if problems:
        raise ArtifactError(
            doing,
            found=f"keys and values computed from {list_problems(problems)}",
            fix="Export the bundle again: they would give wrong answers.",
        )


def sum_of_array(array: NDArray[Any]) -> str:
    """sha256 of an array's dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps([str(array.dtype), list(array.shape)]).encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def sum_of_files(sums: Mapping[str, str]) -> str:
    """sha256 over the names and sums of files; their order does not matter."""
    return hashlib.sha256(json.dumps(sorted(sums.items())).encode()).hexdigest()
