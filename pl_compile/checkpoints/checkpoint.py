"""What every reader of a base's weights gives: tensors by name, one at a time.

In: a folder. Out: a `Checkpoint`. Each file format has a file in this room and a line in
`open_checkpoint`. Knows no model family.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray


@dataclass(frozen=True)
class Header:
    """What a file says of a tensor before its numbers.

    Attributes:
        kind: safetensors' name of its numbers, whatever the format: "F32", "BF16", "I8", …
        shape: its sizes.
    """

    kind: str
    shape: tuple[int, ...]


class Checkpoint(Protocol):
    """The tensors of a base. A number is read only when it is asked for, and is not kept.

    Its methods raise `BaseModelError` where a file is damaged.
    """

    @property
    def folder(self) -> Path:
        """Where it lies, for messages."""

    @property
    def headers(self) -> Mapping[str, Header]:
        """What the files say of each tensor, by its name; none of its numbers is read."""

    @property
    def names(self) -> list[str]:
        """Tensor names, sorted."""

    def tensor(self, name: str) -> NDArray[Any]:
        """The tensor `name` with the shape and dtype it is stored in."""

    def rows(self, name: str, rows: slice) -> NDArray[Any]:
        """Some rows of the tensor `name`."""


def open_checkpoint(folder: Path) -> Checkpoint:
    """The tensors of a Hugging Face folder.

    Raises:
        BaseModelError: no safetensors files, a damaged one, or one that the index names is missing.
    """
    # Imported here, so that no format needs the library of another.
    from pl_compile.checkpoints.safetensors import SafetensorsCheckpoint

    return SafetensorsCheckpoint(folder)
