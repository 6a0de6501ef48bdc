"""The fingerprint of a base. It says which base a table or a bundle belongs to.

In: a base's tensors, one at a time, and its config. Out: a sha256. It does not depend on shards,
on the order in the files, or on keys that do not change the numbers.
"""

import hashlib
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from pl_compile.artifact.prompt_table import BaseIdentity
from pl_compile.checkpoints.checkpoint import Checkpoint, Header
from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.floats import FLOATS
from pl_compile.errors import BaseModelError, list_problems
from pl_compile.shapes import Shape

# Listed by name, so that a field that is added to DecoderConfig later changes no fingerprint. What
# only one family has (`DecoderConfig.own`) is a part of it too, and so are the fields below where
# they differ from their defaults.
_FINGERPRINTED = (
    "family",
    "ffn",
    "head_dim",
    "heads",
    "hidden",
    "kv_heads",
    "layers",
    "norm_eps",
    "positions",
    "rope_theta",
    "tied",
    "vocab",
)

_FINGERPRINTED_IF_GIVEN = ("embedding_scale", "logits_cap", "logits_scale")

# The bits of an exponent that is all ones, which means infinity or NaN.
_EXPONENTS: dict[str, np.unsignedinteger[Any]] = {
    FLOATS["float32"]: np.uint32(0x7F80_0000),
    FLOATS["float16"]: np.uint16(0x7C00),
    FLOATS["bfloat16"]: np.uint16(0x7F80),
}

# How many numbers are checked at a time: as many as fit a processor's cache.
_BLOCK = 1 << 16


class FingerprintedCheckpoint:
    """A checkpoint that computes the fingerprint of its base while its tensors are read.

    The sum takes the tensors in the order of their names. A caller that asks for them in that order
    has each read once; a tensor that is asked for later is read again.

    Args:
        checkpoint: the tensors.
        config: of the same base.
    """

    def __init__(self, checkpoint: Checkpoint, config: DecoderConfig) -> None:
        sizes = {name: getattr(config, name) for name in _FINGERPRINTED}
        sizes |= {
            name: getattr(config, name)
            for name in _FINGERPRINTED_IF_GIVEN
            if getattr(config, name) != getattr(DecoderConfig, name)
        }
        sizes |= {} if config.own is None else asdict(config.own)
        self._digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
        self._checkpoint, self._config = checkpoint, config
        self._waiting = deque(checkpoint.names)
        self._broken: list[str] = []
        self._last: tuple[str, NDArray[Any]] | None = None

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._checkpoint.folder

    @property
    def headers(self) -> Mapping[str, Header]:
        """What the files say of each tensor, by its name."""
        return self._checkpoint.headers

    @property
    def names(self) -> list[str]:
        """Tensor names, sorted."""
        return self._checkpoint.names

    def tensor(self, name: str) -> Annotated[NDArray[Any], Shape("...")]:
        """The tensor `name` with the shape and dtype it is stored in.

        All tensors up to it, in the order of names, are read and enter the sum first.

        Raises:
            BaseModelError: it cannot be read; or a tensor that entered the sum holds infinity or
                NaN. All other tensors are then read too, and the error names all that do.
        """
        while self._waiting and self._waiting[0] <= name:
            self._sum_next()
        if self._broken:
            self.fingerprint()  # reads all others and raises, with all that are broken
        if self._last is not None and self._last[0] == name:
            return self._last[1]
        return self._checkpoint.tensor(name)

    def rows(self, name: str, rows: slice) -> Annotated[NDArray[Any], Shape("rows ...")]:
        """Some rows of the tensor `name`; they do not enter the sum."""
        return self._checkpoint.rows(name, rows)

    def fingerprint(self) -> str:
        """The sha256 over the config and the names, shapes and bytes of all tensors.

        Raises:
            BaseModelError: a tensor cannot be read, or holds infinity or NaN.
        """
        while self._waiting:
            self._sum_next()
        self._last = None
        if self._broken:
            raise BaseModelError(
                f"reading the weights of {self.folder}",
                found=list_problems(self._broken, most=5),
                expected="finite numbers",
                fix="Copy the base again; if its source is the same, it was trained badly.",
            )
        return self._digest.hexdigest()

    def identity(self, name: str) -> BaseIdentity:
        """Which base it is; all of its tensors are read.

        Args:
            name: what the user calls it.

        Raises:
            BaseModelError: as for `fingerprint`.
        """
        return BaseIdentity(name, self.fingerprint(), self._config.hidden, self._config.vocab)

    def _sum_next(self) -> None:
        name = self._waiting.popleft()
        self._last = None  # before the next is read: one tensor is held at a time
        array = np.ascontiguousarray(self._checkpoint.tensor(name))
        self._digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        self._digest.update(array.reshape(-1).view(np.uint8).data)
        if not _is_finite(array, self.headers[name].kind):
            self._broken.append(f"'{name}' holds infinity or NaN")
        self._last = name, array


def fingerprint_base(checkpoint: Checkpoint, config: DecoderConfig) -> str:
    """The sha256 that identifies a base; all of its tensors are read.

    Raises:
        BaseModelError: a tensor cannot be read, or holds infinity or NaN.
    """
    return FingerprintedCheckpoint(checkpoint, config).fingerprint()


def identify_base(name: str, checkpoint: Checkpoint, config: DecoderConfig) -> BaseIdentity:
    """The identity of what `open_base` gave; see `FingerprintedCheckpoint.identity`."""
    return FingerprintedCheckpoint(checkpoint, config).identity(name)


def _is_finite(array: NDArray[Any], kind: str) -> bool:
    """Whether all numbers are finite as float32; True for a kind that is not a float."""
    if kind == FLOATS["float64"]:
        with np.errstate(over="ignore"):
            array, kind = array.astype(np.float32), FLOATS["float32"]
    if kind not in _EXPONENTS:
        return True
    ones = _EXPONENTS[kind]
    bits = array.reshape(-1).view(ones.dtype)
    blocks = (bits[start : start + _BLOCK] for start in range(0, bits.size, _BLOCK))
    return not any(((block & ones) == ones).any() for block in blocks)
