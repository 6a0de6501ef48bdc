"""Folders of safetensors as they come: damaged ones, and weights under other names."""

import json
import shutil
from pathlib import Path

import pytest

from pl_compile.checkpoints.checkpoint import open_checkpoint
from pl_compile.errors import BaseModelError


def copy_of(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    return folder


def test_headers_say_kind_and_shape_of_the_tensors_that_are_read(
    tiny_bases: dict[str, Path],
) -> None:
    checkpoint = open_checkpoint(tiny_bases["llama"])

    assert checkpoint.names == sorted(checkpoint.headers)
    for name, header in checkpoint.headers.items():
        tensor = checkpoint.tensor(name)
        assert (header.kind, header.shape) == ("F32", tensor.shape)
        assert (checkpoint.rows(name, slice(1, 3)) == tensor[1:3]).all()


def test_a_folder_without_safetensors_says_what_is_read(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy_of(tiny_bases["llama"], tmp_path / "pickled")
    (folder / "model.safetensors").unlink()

    with pytest.raises(BaseModelError, match=r"Pickled \.bin checkpoints are not read"):
        open_checkpoint(folder)


def test_a_truncated_checkpoint_is_named(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(tiny_bases["llama"], tmp_path / "short")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(BaseModelError, match=r"model\.safetensors: .*expected a readable"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("names", "fix"),
    [
        (("model.fp16.safetensors",), "Rename it to model.safetensors"),
        (
            ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
            "Copy model.safetensors.index.json too",
        ),
        ((), "Pickled .bin checkpoints are not read"),
    ],
)
def test_weights_under_other_names_are_named(
    tmp_path: Path, names: tuple[str, ...], fix: str
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")

    with pytest.raises(BaseModelError) as error:
        open_checkpoint(tmp_path)

    assert all(name in str(error.value) for name in names)
    assert fix in str(error.value)


def test_a_tensor_that_cannot_be_read_is_named_with_its_file(tmp_path: Path) -> None:
    header = {"x": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}  # no numpy has it
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(3))
    index = {"weight_map": {"x": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(BaseModelError, match=r"a\.safetensors: Dtype not understood"):
        open_checkpoint(tmp_path).tensor("x")
