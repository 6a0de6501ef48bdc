"""Checkpoints as they come: shards, bfloat16, names without a prefix, and damaged ones."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pl_compile.checkpoints.checkpoint import open_checkpoint
from pl_compile.errors import BaseModelError
from pl_compile.families.read import read_decoder_config
from pl_compile.families.registry import FAMILIES
from pl_compile.weights.bases import find_base
from pl_compile.weights.fingerprint import fingerprint_base
from pl_compile.weights.listed import weight_shapes
from pl_compile.weights.load import load_weights
from pl_compile.weights.open_base import open_base


def copy_of(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    return folder


def fingerprint(folder: Path) -> str:
    return fingerprint_base(open_checkpoint(folder), read_decoder_config(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_has_our_name_and_shape(tiny_bases: dict[str, Path], family: str) -> None:
    config = read_decoder_config(tiny_bases[family])

    weights = load_weights(open_checkpoint(tiny_bases[family]), config)

    assert {name: array.shape for name, array in weights.items()} == weight_shapes(config)
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}


def test_bfloat16_weights_are_read(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(tiny_bases["llama"], tmp_path / "bf16")
    tensors = load_file(folder / "model.safetensors")
    halves = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(halves, folder / "model.safetensors")

    weights = load_weights(open_checkpoint(folder), read_decoder_config(folder))

    expected = halves["model.norm.weight"].float().numpy()
    assert np.array_equal(weights["final_norm.weight"], expected)
    assert fingerprint(folder) != fingerprint(tiny_bases["llama"])


def test_gpt2_names_without_a_prefix_are_found(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(tiny_bases["gpt2"], tmp_path / "bare")
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    assert set(bare) != set(tensors)
    save_file(bare, folder / "model.safetensors")
    config = read_decoder_config(folder)

    weights = load_weights(open_checkpoint(folder), config)

    original = load_weights(open_checkpoint(tiny_bases["gpt2"]), config)
    assert all(np.array_equal(weights[name], original[name]) for name in original)


def test_all_missing_and_misshapen_tensors_are_named(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy_of(tiny_bases["llama"], tmp_path / "damaged")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.embed_tokens.weight"] = torch.zeros(397, 23)
    save_file(tensors, folder / "model.safetensors")

    with pytest.raises(BaseModelError) as caught:
        open_base(folder)

    assert "'model.norm.weight' is missing" in str(caught.value)
    assert "'model.embed_tokens.weight' is (397, 23), expected (397, 24)" in str(caught.value)


def test_a_base_is_found_by_folder_or_by_fetched_name(
    tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLC_CACHE", str(tmp_path))
    cached = copy_of(tiny_bases["llama"], tmp_path / "bases/tiny")

    assert find_base("tiny") == cached
    assert find_base(str(tiny_bases["gpt2"])) == tiny_bases["gpt2"]


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"holds no config\.json"):
        find_base(str(tmp_path))


def test_the_folder_of_a_model_in_a_cache_of_hugging_face_has_the_base_deeper(
    tmp_path: Path,
) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "5eed"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")

    with pytest.raises(BaseModelError) as error:
        find_base(str(tmp_path / "models--org--name"))

    assert str(error.value).endswith(f"Name the snapshot in it: {snapshot}.")
