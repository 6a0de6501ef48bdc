"""Every tensor of a checkpoint is read, has no effect, or is refused; weights are finite."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pl_compile.errors import BaseModelError
from pl_compile.testing import write_tiny_base
from pl_compile.weights import check
from pl_compile.weights.fingerprint import fingerprint_base
from pl_compile.weights.load import load_weights
from pl_compile.weights.open_base import open_base

Tensors: TypeAlias = dict[str, Tensor]
Edit: TypeAlias = Callable[[Tensors], Tensors]

EMBEDDINGS = {"llama": "model.embed_tokens.weight", "gpt2": "transformer.wte.weight"}
Q = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"


def altered(base: Path, folder: Path, edit: Edit, **settings: object) -> Path:
    """A copy of a base with other tensors and settings; a setting of `...` is taken away."""
    shutil.copytree(base, folder)
    weights = folder / "model.safetensors"
    save_file(
        {name: tensor.contiguous() for name, tensor in edit(load_file(weights)).items()}, weights
    )
    config = json.loads((folder / "config.json").read_text()) | settings
    config = {key: value for key, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def adding(tensors: Mapping[str, Tensor]) -> Edit:
    return lambda stored: {**stored, **tensors}


def changing(name: str, change: Callable[[Tensor], Tensor]) -> Edit:
    return lambda stored: {**stored, name: change(stored[name])}


def refusal(folder: Path) -> str:
    with pytest.raises(BaseModelError) as error:
        fingerprint_base(*open_base(folder))
    return str(error.value)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (changing(Q, lambda weight: weight.to(torch.int8)), f"'{Q}' (I8)"),
        (changing(Q, lambda weight: weight > 0), f"'{Q}' (BOOL)"),
        (changing(Q, lambda weight: weight.long()), f"'{Q}' (I64)"),
        (changing(Q, lambda weight: weight.to(torch.float8_e4m3fn)), f"'{Q}' (F8_E4M3)"),
        (changing(Q, lambda weight: weight.to(torch.complex64)), f"'{Q}' (C64)"),
        *(
            (adding({f"{Q.removesuffix('.weight')}{end}": torch.ones(2)}), f"{end}' (F32)")
            for end in (".SCB", ".weight_scale", ".scales", ".qweight", ".absmax")
        ),
        (adding({"model.rotary_emb.inv_freq": torch.ones(4).long()}), "inv_freq' (I64)"),
    ],
)
def test_codes_are_no_weights(
    tiny_bases: dict[str, Path], tmp_path: Path, edit: Edit, named: str
) -> None:
    text = refusal(altered(tiny_bases["llama"], tmp_path / "base", edit))

    assert named in text
    assert "dequantize" in text
    assert "ickle" not in text


@pytest.mark.parametrize(
    "name",
    [
        "weight",
        "model.lm_head.weight",
        "norm.weight",
        "_orig_mod.model.norm.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq.weight",
        "model.layers.2.mlp.up_proj.weight",
        "model.embed_positions.weight",
        "v_head.summary.weight",
    ],
)
def test_a_tensor_that_is_not_read_is_refused_by_name(
    tiny_bases: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder = altered(tiny_bases["llama"], tmp_path / "base", adding({name: torch.ones(3)}))

    assert f"'{name}' is not a tensor of this base as config.json describes it" in refusal(folder)


def test_tensors_of_older_releases_change_nothing(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    more = {
        "llama": {
            "model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4),
            "rotary_emb.inv_freq": torch.ones(4),
            "score.weight": torch.ones(2, 24),
        },
        "gpt2": {
            "transformer.h.0.attn.bias": torch.ones(1, 1, 96, 96).tril().to(torch.uint8),
            "h.1.attn.bias": torch.ones(1, 1, 96, 96) > 0,
            "transformer.h.2.attn.masked_bias": torch.tensor(-1e4),
        },
    }
    for family, tensors in more.items():
        folder = altered(tiny_bases[family], tmp_path / family, adding(tensors))

        weights = load_weights(*open_base(folder))

        original = load_weights(*open_base(tiny_bases[family]))
        assert weights.keys() == original.keys()
        assert all(np.array_equal(weights[name], original[name]) for name in original)
        fingerprint_base(*open_base(folder))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_head_beside_a_tied_embedding_must_be_the_same_table(
    tiny_bases: dict[str, Path], tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_ROWS", 100)  # the tables are compared in several parts
    embedding = EMBEDDINGS[family]

    def with_head(change: Callable[[Tensor], Tensor]) -> Edit:
        return lambda stored: {**stored, "lm_head.weight": change(stored[embedding].clone())}

    def last_number(table: Tensor) -> Tensor:
        table[-1, -1] += 1e-3
        return table

    # The config of a GPT-2 may leave out that it is tied.
    tied = {"llama": True, "gpt2": ...}[family]
    base = tiny_bases[family]
    same = altered(base, tmp_path / "same", with_head(Tensor.double), tie_word_embeddings=tied)
    other = altered(base, tmp_path / "other", with_head(last_number), tie_word_embeddings=tied)
    short = altered(base, tmp_path / "short", with_head(lambda t: t[:-1]), tie_word_embeddings=tied)

    assert "head.weight" not in load_weights(*open_base(same))
    for folder in (other, short):
        text = refusal(folder)
        assert "'lm_head.weight'" in text
        assert f"'{embedding}'" in text
        assert "tie_word_embeddings" in text


def test_tables_of_the_same_bytes_are_compared_without_another_type() -> None:
    class Unconvertible(np.ndarray):
        def astype(self, *arguments: object, **options: object) -> None:  # type: ignore[override]
            raise AssertionError("made a table of another type")

    table = np.array([[0.0, 1.5], [2.5, 3.5]], np.float16)
    signed = np.array([[-0.0, 1.5], [2.5, 3.5]], np.float16)

    assert check._is_same(table.view(Unconvertible), table.copy().view(Unconvertible))
    assert check._is_same(table, signed)  # zeros are equal, whatever their sign
    assert check._is_same(table, table.astype(np.float64))
    assert not check._is_same(table, table + np.float16(1))


def test_a_head_that_is_not_tied_must_be_there(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    # A bare "weight" is no head, however well its shape fits.
    bare = adding({"weight": torch.ones(397, 24)})
    folder = altered(tiny_bases["llama"], tmp_path / "base", bare, tie_word_embeddings=False)
    assert "'lm_head.weight' is missing, and config.json does not tie" in refusal(folder)

    untied = write_tiny_base(tmp_path / "untied", "llama", tied=False)
    assert "head.weight" in load_weights(*open_base(untied))


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(
    tiny_bases: dict[str, Path], tmp_path: Path, kind: torch.dtype, number: float
) -> None:
    def last_number(norm: Tensor) -> Tensor:
        norm = norm.to(kind)
        norm[-1] = number
        return norm

    text = refusal(altered(tiny_bases["llama"], tmp_path / "base", changing(NORM, last_number)))

    assert f"'{NORM}' holds infinity or NaN" in text


def test_the_largest_numbers_are_finite_and_those_beyond_float32_are_not(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        ends = torch.tensor([torch.finfo(kind).max, torch.finfo(kind).min] * 12).to(kind)
        folder = altered(tiny_bases["llama"], tmp_path / str(kind), adding({NORM: ends}))
        fingerprint_base(*open_base(folder))
    beyond = torch.full((24,), 1e300, dtype=torch.float64)
    assert NORM in refusal(altered(tiny_bases["llama"], tmp_path / "f64", adding({NORM: beyond})))


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"num_hidden_layers": 10**4}, "those of 10000 layers"),
        ({"num_hidden_layers": 1}, "'model.layers.1."),
        ({"num_hidden_layers": 3}, "'model.layers.2.mlp.up_proj.weight' is missing"),
        ({"vocab_size": 10**7}, "is (397, 24), expected (10000000, 24)"),
        ({"intermediate_size": 10**6}, "is (24, 40), expected (24, 1000000)"),
        ({"attention_bias": True}, "q_proj.bias' is missing"),
    ],
)
def test_a_config_that_does_not_fit_the_tensors_is_refused(
    tiny_bases: dict[str, Path], tmp_path: Path, setting: dict[str, object], named: str
) -> None:
    assert named in refusal(altered(tiny_bases["llama"], tmp_path / "base", dict, **setting))


def test_an_adapter_beside_a_base_is_refused(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    folder = altered(tiny_bases["llama"], tmp_path / "base", dict)
    (folder / "adapter_config.json").write_text("{}")

    assert "an adapter beside it" in refusal(folder)


def shard(folder: Path, index: Callable[[dict[str, object]], object], *, twice: str = "") -> None:
    """Makes two files and their index of a base's one file; one tensor may be in both."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    ordered = sorted(tensors)
    places: dict[str, object] = {}
    for file, part in (("a.safetensors", ordered[::2]), ("b.safetensors", ordered[1::2])):
        save_file(
            {name: tensors[name] for name in {*part, *([twice] * bool(twice))}}, folder / file
        )
        places |= dict.fromkeys(part, file)
    text = json.dumps({"weight_map": index(places)})
    (folder / "model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize(
    ("index", "named"),
    [
        (
            lambda places: {**places, "x": "../llama/model.safetensors"},
            "which is not a file beside",
        ),
        (lambda places: {**places, "x": "/model.safetensors"}, "which is not a file beside it"),
        (lambda places: {**places, "x": "a\0b"}, "which is not a file beside it"),
        (lambda places: {**places, "x": 3}, "which is not a file beside it"),
        (lambda places: {**places, "x": "x" * 5000}, "model.safetensors.index.json"),
        (lambda places: {**places, "x": "c.safetensors"}, "there is no c.safetensors"),
        (lambda places: {**places, "x": "a.safetensors"}, "'x' is not in it"),
        (lambda places: {**places, NORM: "a.safetensors"}, f"'{NORM}' is not in it"),
        (lambda places: {}, "no 'weight_map'"),
        (lambda places: [1], "no 'weight_map'"),
    ],
)
def test_an_index_that_does_not_tell_the_truth_is_refused(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    index: Callable[[dict[str, object]], object],
    named: str,
) -> None:
    folder = altered(tiny_bases["llama"], tmp_path / "base", dict)
    shard(folder, index)

    assert named in refusal(folder)


def test_a_tensor_in_two_files_is_refused(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    folder = altered(tiny_bases["llama"], tmp_path / "base", dict)
    shard(folder, dict, twice=NORM)

    assert f"'{NORM}' is in another file too" in refusal(folder)


def test_pipes_are_not_waited_for(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "a.safetensors"):
        folder = altered(tiny_bases["llama"], tmp_path / name, dict)
        if name == "a.safetensors":
            shard(folder, dict)
        (folder / name).unlink()
        os.mkfifo(folder / name)

        refusal(folder)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_what_holds_the_model_is_named_in_one_line(
    tiny_bases: dict[str, Path], tmp_path: Path, family: str, prefix: str
) -> None:
    text = refusal(
        altered(
            tiny_bases[family],
            tmp_path / "base",
            lambda stored: {prefix + name: tensor for name, tensor in stored.items()},
        )
    )

    assert f"'{prefix}' before the names of all tensors" in text
    assert "merge_and_unload()" in text
    assert "\n" not in text
