"""Whatever gives tensors by name is a checkpoint: nothing above the room asks for a file format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pl_compile.checkpoints.checkpoint import Checkpoint, Header, open_checkpoint
from pl_compile.families.read import read_decoder_config
from pl_compile.families.registry import FAMILIES
from pl_compile.weights.check import check_tensors
from pl_compile.weights.fingerprint import fingerprint_base
from pl_compile.weights.load import load_weights


class InMemory:
    """Tensors of another checkpoint, from no file."""

    def __init__(self, other: Checkpoint) -> None:
        self.folder = Path("memory")
        self._tensors = {name: other.tensor(name) for name in other.names}

    @property
    def headers(self) -> Mapping[str, Header]:
        return {name: Header("F32", array.shape) for name, array in self._tensors.items()}

    @property
    def names(self) -> list[str]:
        return sorted(self._tensors)

    def tensor(self, name: str) -> NDArray[Any]:
        return self._tensors[name]

    def rows(self, name: str, rows: slice) -> NDArray[Any]:
        return self._tensors[name][rows]


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_fingerprint_are_those_of_the_same_tensors_in_files(
    tiny_bases: dict[str, Path], family: str
) -> None:
    files = open_checkpoint(tiny_bases[family])
    config = read_decoder_config(tiny_bases[family])
    memory = InMemory(files)

    check_tensors(memory, config)

    assert fingerprint_base(memory, config) == fingerprint_base(files, config)
    ours, theirs = load_weights(memory, config), load_weights(files, config)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
