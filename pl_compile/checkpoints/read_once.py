"""A checkpoint for two readers: what the first one reads is kept until the second takes it.

An export looks at weights to choose how they are stored, and then loads them all. It holds all of
them then, so to keep them until then takes no more memory in the end.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pl_compile.checkpoints.checkpoint import Checkpoint, Header


class ReadOnce:
    """A `Checkpoint` that keeps the tensors that are read of another one, up to `give_away`.

    Args:
        checkpoint: the tensors.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._kept: dict[str, NDArray[Any]] = {}
        self._keeps = True

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

    def tensor(self, name: str) -> NDArray[Any]:
        """The tensor `name` with the shape and dtype it is stored in."""
        found = self._kept.pop(name, None)
        array = self._checkpoint.tensor(name) if found is None else found
        if self._keeps:
            self._kept[name] = array
        return array

    def rows(self, name: str, rows: slice) -> NDArray[Any]:
        """Some rows of the tensor `name`."""
        return self._checkpoint.rows(name, rows)

    def give_away(self) -> None:
        """From here on nothing more is kept, and what was kept goes as it is asked for."""
        self._keeps = False
