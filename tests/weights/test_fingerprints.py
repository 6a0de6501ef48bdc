"""The fingerprint of a base: what changes it, what does not, and how often it reads a tensor."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from pl_compile.checkpoints.checkpoint import open_checkpoint
from pl_compile.checkpoints.safetensors import SafetensorsCheckpoint
from pl_compile.errors import BaseModelError
from pl_compile.families.read import read_decoder_config
from pl_compile.families.registry import FAMILIES
from pl_compile.weights.fingerprint import FingerprintedCheckpoint, fingerprint_base
from pl_compile.weights.load import load_weights
from pl_compile.weights.open_base import open_base


def copy_of(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    return folder


def fingerprint(folder: Path) -> str:
    return fingerprint_base(open_checkpoint(folder), read_decoder_config(folder))


def shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def test_the_fingerprint_does_not_depend_on_shards(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy_of(tiny_bases["llama"], tmp_path / "sharded")
    whole = fingerprint(folder)

    shard(folder)

    assert fingerprint(folder) == whole


def test_the_fingerprint_sees_one_changed_number(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy_of(tiny_bases["llama"], tmp_path / "changed")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] += 1e-3
    save_file(tensors, folder / "model.safetensors")

    assert fingerprint(folder) != fingerprint(tiny_bases["llama"])


def test_the_fingerprint_sees_a_changed_config(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(tiny_bases["llama"], tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.125}))

    assert fingerprint(folder) != fingerprint(tiny_bases["llama"])


@pytest.mark.parametrize(
    "change",
    [
        {"sliding_window": 6},
        {"layer_types": ["full_attention", "full_attention", "sliding_attention"]},
        {"query_pre_attn_scalar": 13},
        {"rope_parameters": {"full_attention": {"rope_theta": 5e3}}},
        {"rope_parameters": {"sliding_attention": {"rope_theta": 1e2}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_fingerprint_sees_what_only_a_gemma_has(
    tiny_bases: dict[str, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = copy_of(tiny_bases["gemma3_text"], tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))

    assert fingerprint(folder) != fingerprint(tiny_bases["gemma3_text"])


class CountedCheckpoint(SafetensorsCheckpoint):
    """Counts how often each tensor is read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.reads: Counter[str] = Counter()

    def tensor(self, name: str) -> NDArray[Any]:
        self.reads[name] += 1
        return super().tensor(name)


@pytest.mark.parametrize("family", FAMILIES)
def test_loading_the_weights_and_their_fingerprint_reads_each_tensor_once(
    tiny_bases: dict[str, Path], family: str
) -> None:
    base = tiny_bases[family]
    counted, config = CountedCheckpoint(base), read_decoder_config(base)
    checkpoint = FingerprintedCheckpoint(counted, config)

    weights = load_weights(checkpoint, config)

    assert checkpoint.fingerprint() == fingerprint(base)
    assert counted.reads == dict.fromkeys(counted.names, 1)
    expected = load_weights(*open_base(base))
    assert weights.keys() == expected.keys()
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)


def test_the_order_in_which_tensors_are_asked_for_changes_no_fingerprint(
    tiny_bases: dict[str, Path],
) -> None:
    plain, config = open_base(tiny_bases["gpt2"])
    checkpoint = FingerprintedCheckpoint(plain, config)

    for name in [*plain.names[::-1], plain.names[3]]:
        assert np.array_equal(checkpoint.tensor(name), plain.tensor(name))

    assert checkpoint.fingerprint() == fingerprint(tiny_bases["gpt2"])


def test_all_tensors_without_numbers_are_named_when_the_first_is_asked_for(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy_of(tiny_bases["llama"], tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        tensors[name][0] = float("inf")
    save_file(tensors, folder / "model.safetensors")
    checkpoint, config = open_base(folder)

    with pytest.raises(BaseModelError) as error:
        load_weights(FingerprintedCheckpoint(checkpoint, config), config)

    assert "'model.embed_tokens.weight' holds infinity" in str(error.value)
    assert "'model.norm.weight' holds infinity" in str(error.value)
