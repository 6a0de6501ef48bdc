"""Tensors that are the pages of their file."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pl_compile.artifact.mapped_file import Mapping, untouch
from pl_compile.artifact.tensors import read_tensor_file, tensor_bytes
from pl_compile.errors import ArtifactError

pytestmark = pytest.mark.skipif(
    sys.platform not in ("linux", "darwin"),
    reason="needs Linux or macOS; without mapping: tests/artifact/test_bundle_hostility.py",
)

NUMBERS = np.arange(3000, dtype=np.float32).reshape(5, 600)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file.safetensors"
    tensors: dict[str, NDArray[Any]] = {
        "numbers": NUMBERS,
        "others": np.arange(4),
        "none": np.zeros((0, 7), np.float32),
    }
    path.write_bytes(tensor_bytes(tensors, {"said": "so"}, multiple=64))
    return path


def test_mapped_tensors_are_those_that_are_read(path: Path) -> None:
    read = read_tensor_file(path, doing="reading")
    mapped = read_tensor_file(path, doing="reading", mapped=True)

    assert mapped.metadata == read.metadata == {"said": "so"}
    assert mapped.tensors.keys() == read.tensors.keys()
    for name, tensor in read.tensors.items():
        np.testing.assert_array_equal(mapped.tensors[name], tensor)
        assert mapped.tensors[name].dtype == tensor.dtype
    assert mapped.tensors["numbers"].flags.c_contiguous


def test_they_cannot_be_written_to(path: Path) -> None:
    numbers = read_tensor_file(path, doing="reading", mapped=True).tensors["numbers"]

    with pytest.raises(ValueError, match="read-only"):
        numbers[0, 0] = 1


def test_they_outlive_their_file(path: Path) -> None:
    """A bundle may be exported again or deleted while it is served."""
    numbers = read_tensor_file(path, doing="reading", mapped=True).tensors["numbers"]
    untouch(numbers)  # so that it must be read again

    other = path.with_name("other")
    other.write_bytes(tensor_bytes({"numbers": NUMBERS + 1}))
    other.replace(path)
    np.testing.assert_array_equal(numbers, NUMBERS)
    path.unlink()
    untouch(numbers)
    np.testing.assert_array_equal(numbers, NUMBERS)


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="needs /proc of Linux; what is mapped, anywhere: test_they_outlive_their_file",
)
def test_they_keep_no_file_open_and_end_with_the_array(path: Path) -> None:
    """A process may have 1,024 open files; a bundle may hold more tasks."""

    def mapped() -> int:
        return Path("/proc/self/maps").read_text(encoding="utf-8").count(str(path))

    opened = len(os.listdir("/proc/self/fd"))
    numbers = read_tensor_file(path, doing="reading", mapped=True).tensors["numbers"]
    part = numbers[1:]

    assert len(os.listdir("/proc/self/fd")) == opened
    assert mapped() == 1
    del numbers
    np.testing.assert_array_equal(part, NUMBERS[1:])
    del part
    assert mapped() == 0


def test_an_array_that_is_not_mapped_may_be_untouched(path: Path) -> None:
    numbers = NUMBERS.copy()

    untouch(numbers)

    np.testing.assert_array_equal(numbers, NUMBERS)


def test_errors_are_those_of_reading(path: Path) -> None:
    cut = path.read_bytes()[:-4]
    for content in (cut, b"", b"\xff" * 30):
        path.write_bytes(content)
        with pytest.raises(ArtifactError) as read:
            read_tensor_file(path, doing="reading")
        with pytest.raises(ArtifactError) as mapped:
            read_tensor_file(path, doing="reading", mapped=True)
        assert str(mapped.value) == str(read.value)
    with pytest.raises(OSError, match=r"nothing"):
        Mapping(path.with_name("nothing"))


@pytest.mark.parametrize("multiple", [8, 64])
def test_data_begins_at_a_multiple(multiple: int) -> None:
    for length in range(1, 80, 7):
        content = tensor_bytes({"numbers": NUMBERS}, {"said": "x" * length}, multiple=multiple)
        begin = 8 + int.from_bytes(content[:8], "little")

        assert begin % multiple == 0
        assert content[begin:] == NUMBERS.tobytes()
