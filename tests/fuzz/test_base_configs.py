"""Bases of strangers: `config.json`, and the tensors beside it.

The oracle is transformers: what we read as the same base must be the same base there.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from fuzzing import (
    VALUES,
    Arrays,
    attempt,
    copy_of,
    damaged,
    fuzzed,
    json_texts,
    spoiled,
    spoiled_arrays,
    tiny_base,
    utf8,
)
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from pl_compile.config.decoder import DecoderConfig
from pl_compile.errors import PlcError
from pl_compile.families.gemma3 import Gemma3
from pl_compile.families.registry import FAMILIES
from pl_compile.families.weights import Biases
from pl_compile.testing import assert_close
from pl_compile.weights.fingerprint import fingerprint_base
from pl_compile.weights.load import Weights, load_weights
from pl_compile.weights.open_base import open_base

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

# Names of other families' settings, and of older and newer releases'.
_FOREIGN = (
    "attn_logit_softcapping",
    "embedding_multiplier",
    "layer_types",
    "logit_scale",
    "partial_rotary_factor",
    "quantization_config",
    "residual_multiplier",
    "rope_scaling",
    "rotary_pct",
    "sliding_window",
    "torch_dtype",
    "unsloth_version",
    "use_qk_norm",
)

_ROPES = st.dictionaries(
    st.sampled_from(("rope_theta", "rope_type", "type", "factor", "partial_rotary_factor")),
    st.sampled_from((500000.0, 10000.0, "default", "linear", 0.5, 2.0, None, 4)),
    max_size=3,
)
_SETTINGS = st.one_of(
    VALUES,
    st.sampled_from(("gelu", "silu", "relu", "gelu_new", "LlamaForCausalLM", "GPT2LMHeadModel")),
    st.sampled_from((1e-3, 1e-6, 2, 24, 96, 8, 40, 12)),
    _ROPES,
)


@functools.cache
def _config(family: str) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads((tiny_base(family) / "config.json").read_text())
    return plain


@functools.cache
def _keys(family: str) -> list[str]:
    known = transformers.CONFIG_MAPPING[family]()
    return sorted({*known.to_dict(), *known.attribute_map, *_config(family), *_FOREIGN})


@st.composite
def configs(draw: st.DrawFn) -> tuple[str, str]:
    """A family, and the text of a `config.json` with a few settings that matter or do not."""
    family = draw(st.sampled_from([*FAMILIES]))
    config = dict(_config(family))
    if draw(st.integers(0, 3)) == 0:
        return family, draw(json_texts(config))
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(_keys(family)))
        if key in config and draw(st.booleans()):
            del config[key]
        else:
            config[key] = draw(_ROPES if key.startswith("rope_") else _SETTINGS)
    return family, json.dumps(config)


def _read(folder: Path) -> tuple[DecoderConfig, Weights]:
    """What an export reads of a base."""
    checkpoint, config = open_base(folder)
    fingerprint_base(checkpoint, config)
    return config, load_weights(checkpoint, config)


@functools.cache
def _original(family: str) -> tuple[DecoderConfig, Weights, NDArray[np.float32]]:
    folder = tiny_base(family)
    logits = _logits(folder)
    assert logits is not None
    return (*_read(folder), logits)


def _logits(folder: Path) -> NDArray[np.float32] | None:
    """What transformers computes; None where it cannot load the base."""
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        )
        with torch.no_grad():
            logits: NDArray[np.float32] = model(torch.arange(2, 20)[None]).logits.numpy()
    except Exception:  # whatever it is: nobody can be told another answer
        return None
    return logits


def _same(ours: Weights, theirs: Weights) -> bool:
    return ours.keys() == theirs.keys() and all(
        np.array_equal(ours[name], theirs[name]) for name in ours
    )


def _of_llama(theirs: Any) -> dict[str, Any]:
    return {
        "kv_heads": theirs.num_key_value_heads,
        "head_dim": theirs.head_dim,
        "ffn": theirs.intermediate_size,
        "norm_eps": theirs.rms_norm_eps,
        "rope_theta": theirs.rope_parameters["rope_theta"],
        "own": Biases(theirs.attention_bias, theirs.mlp_bias),
    }


def _of_gemma3(theirs: Any) -> dict[str, Any]:
    windows = {"sliding_attention": theirs.sliding_window, "full_attention": 0}
    ropes = {kind: theirs.rope_parameters[kind]["rope_theta"] for kind in windows}
    return {
        "kv_heads": theirs.num_key_value_heads,
        "head_dim": theirs.head_dim,
        "ffn": theirs.intermediate_size,
        "norm_eps": theirs.rms_norm_eps,
        "rope_theta": ropes["full_attention"],
        "own": Gemma3(
            theirs.attention_bias,
            tuple(windows[kind] for kind in theirs.layer_types),
            ropes["sliding_attention"],
            theirs.query_pre_attn_scalar,
        ),
    }


_OF_FAMILY: dict[str, Callable[[Any], dict[str, Any]]] = {
    "llama": _of_llama,
    "gpt2": lambda theirs: {"norm_eps": theirs.layer_norm_epsilon},
    "gemma3_text": _of_gemma3,
}


def _check(family: str, folder: Path) -> None:
    found = attempt(lambda: _read(folder))
    if isinstance(found, PlcError):
        return
    config, weights = found
    assert all(np.isfinite(array).all() for array in weights.values())
    expected, their_weights, logits = _original(family)
    try:
        theirs = transformers.AutoConfig.from_pretrained(folder)
    except Exception:  # as above
        return
    sizes = {
        "layers": theirs.num_hidden_layers,
        "hidden": theirs.hidden_size,
        "heads": theirs.num_attention_heads,
        "vocab": theirs.vocab_size,
        "positions": theirs.max_position_embeddings,
        "tied": theirs.tie_word_embeddings,
    }
    sizes |= _OF_FAMILY[family](theirs)
    assert {name: getattr(config, name) for name in sizes} == sizes
    same_numbers = all(getattr(config, name) == getattr(expected, name) for name in sizes)
    if same_numbers and _same(weights, their_weights):
        again = _logits(folder)
        if again is not None:
            assert_close(again, logits, relative=1e-5)  # a setting may change an order of sums


@fuzzed(80, given=configs())
def test_a_config_means_what_it_means_to_transformers_or_is_refused(given: tuple[str, str]) -> None:
    family, text = given
    folder = copy_of(tiny_base(family), but=("config.json",))
    (folder / "config.json").write_bytes(utf8(text))

    _check(family, folder)


_NAMES = (
    "weight",
    "lm_head.weight",
    "score.weight",
    "model.layers.0.self_attn.q_norm.weight",
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.0.self_attn.q_proj.weight_scale",
    "model.layers.0.self_attn.q_proj.SCB",
    "model.layers.0.mlp.down_proj.bias",
    "model.layers.2.mlp.down_proj.weight",
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "transformer.h.0.attn.bias",
    "transformer.h.0.attn.masked_bias",
    "transformer.h.0.attn.q_norm.weight",
    "transformer.h.3.attn.c_attn.weight",
    "h.0.attn.c_attn.weight",
    "wte.weight",
    "model.embed_tokens.weight",
    "embed_tokens.weight",
    "base_model.model.model.norm.weight",
    "_orig_mod.model.norm.weight",
)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, Arrays]:
    """A family and its tensors, some of them wrong."""
    family = draw(st.sampled_from([*FAMILIES]))
    names = st.sampled_from(_NAMES) | st.text(min_size=1, max_size=5)
    return family, draw(spoiled_arrays(load_file(tiny_base(family) / "model.safetensors"), names))


@fuzzed(60, given=tensors())
def test_tensors_are_those_that_transformers_reads_or_are_refused(
    given: tuple[str, Arrays],
) -> None:
    family, found = given
    folder = copy_of(tiny_base(family), but=("model.safetensors",))
    save_file(found, folder / "model.safetensors", {"format": "pt"})

    _check(family, folder)


@st.composite
def weight_files(draw: st.DrawFn) -> bytes:
    """The file of a base's tensors, damaged most of all in its header."""
    data = (tiny_base("llama") / "model.safetensors").read_bytes()
    return draw(damaged(data, first=8 + int.from_bytes(data[:8], "little")))


@fuzzed(40, data=weight_files())
def test_damaged_weights_are_refused_or_are_finite(data: bytes) -> None:
    folder = copy_of(tiny_base("llama"), but=("model.safetensors",))
    (folder / "model.safetensors").write_bytes(data)

    found = attempt(lambda: _read(folder))

    if not isinstance(found, PlcError):
        assert all(np.isfinite(array).all() for array in found[1].values())


@functools.cache
def _sharded() -> Path:
    folder = copy_of(tiny_base("llama"), but=("model.safetensors",))
    shards = folder.parent / "shards"
    folder.rename(shards)
    found = load_file(tiny_base("llama") / "model.safetensors")
    names = sorted(found)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for part, inside in parts.items():
        save_file({name: found[name] for name in inside}, shards / part, {"format": "pt"})
    weight_map = {name: part for part, inside in parts.items() for name in inside}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    return shards


@st.composite
def shard_indexes(draw: st.DrawFn) -> str:
    """An index of shards with names that are wrong, double, or of files elsewhere."""
    index = json.loads((_sharded() / "model.safetensors.index.json").read_text())
    if draw(st.booleans()):
        return draw(json_texts(index))
    places = st.sampled_from(("one.safetensors", "two.safetensors", "../x.safetensors", ".", ""))
    return json.dumps(draw(spoiled(index, places)))


@fuzzed(40, text=shard_indexes())
def test_an_index_gives_all_tensors_or_is_refused(text: str) -> None:
    folder = copy_of(_sharded(), but=("model.safetensors.index.json",))
    (folder / "model.safetensors.index.json").write_bytes(utf8(text))

    found = attempt(lambda: _read(folder))

    assert isinstance(found, PlcError) or _same(found[1], _original("llama")[1])
