import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pl_compile.errors import ArtifactError
from pl_compile.training.pickled import tensors_of_pickle


class _Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_tensors_become_float32_arrays(tmp_path: Path) -> None:
    tensors = {
        "half": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16),
        "learned": torch.nn.Parameter(torch.ones(2)),
    }
    torch.save(tensors, tmp_path / "file.bin")

    read = tensors_of_pickle(tmp_path / "file.bin")

    assert {name: array.tolist() for name, array in read.items()} == {
        "half": [[1.5, -2.0]],
        "learned": [1.0, 1.0],
    }
    assert {str(array.dtype) for array in read.values()} == {"float32"}


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.int64, torch.float8_e4m3fn])
def test_codes_are_refused_by_name(tmp_path: Path, kind: torch.dtype) -> None:
    torch.save({"a": torch.ones(2), "b": torch.ones(2).to(kind)}, tmp_path / "file.bin")

    name = str(kind).removeprefix("torch.")
    with pytest.raises(ArtifactError, match=f"'b' of {name}; expected floats of 16 bits or more"):
        tensors_of_pickle(tmp_path / "file.bin")


def test_a_number_that_fills_any_shape_is_refused_before_it_is_written_out(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "file.bin")

    with pytest.raises(ArtifactError, match="'a', whose numbers are not all in the file"):
        tensors_of_pickle(tmp_path / "file.bin")


def _nested() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


@pytest.mark.parametrize("make", [lambda: torch.eye(3).to_sparse(), _nested])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_tensor_without_a_number_for_each_place_is_refused(
    tmp_path: Path, make: Callable[[], torch.Tensor]
) -> None:
    torch.save({"a": make()}, tmp_path / "file.bin")

    with pytest.raises(ArtifactError, match="as weights only: "):
        tensors_of_pickle(tmp_path / "file.bin")


def test_a_turned_tensor_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(6.0).reshape(2, 3).T}, tmp_path / "file.bin")

    assert tensors_of_pickle(tmp_path / "file.bin")["a"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_negative_view_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch._neg_view(torch.ones(2))}, tmp_path / "file.bin")

    assert tensors_of_pickle(tmp_path / "file.bin")["a"].tolist() == [-1, -1]


def test_what_a_pickle_would_run_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"a": _Hostile(mark)}, tmp_path / "file.bin")

    with pytest.raises(ArtifactError, match="as weights only: "):
        tensors_of_pickle(tmp_path / "file.bin")

    assert not mark.exists()


@pytest.mark.parametrize("content", [[torch.ones(1)], {"a": 3}, {3: torch.ones(1)}, None])
def test_other_things_than_tensors_by_name_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "file.bin")

    with pytest.raises(ArtifactError, match="expected tensors by name"):
        tensors_of_pickle(tmp_path / "file.bin")


@pytest.mark.parametrize("data", [b"", b"\x80\x04", b"PK\x03\x04" + bytes(99), b"text"])
def test_a_damaged_file_is_told_in_words_of_ours(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file.bin").write_bytes(data)

    with pytest.raises(ArtifactError, match="a file that is damaged, or holds something else"):
        tensors_of_pickle(tmp_path / "file.bin")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no\.bin"):
        tensors_of_pickle(tmp_path / "no.bin")
