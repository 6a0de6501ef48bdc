"""Families that are not read yet, each described in a file's worth: a row more is all they need.

They are short of what a real one needs (every key of config.json, refusals), but compute what
transformers does. They and those that are read ask all of their blocks that a definition may.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy_blocks import compare_steps, randomise_norms

from pl_compile.config.build import BuildOptions
from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.targets import TARGETS
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import ExportError
from pl_compile.families.blocks import Blocks, Frequencies, V, rotary_frequencies
from pl_compile.families.family import Family
from pl_compile.families.keys import family_keys
from pl_compile.families.llama import LLAMA
from pl_compile.families.names import layer_name
from pl_compile.families.registry import FAMILIES, registered
from pl_compile.families.settings import Settings
from pl_compile.families.weights import (
    TRANSPOSED,
    Biases,
    Weight,
    layer_norm_weights,
    product_weights,
    rms_norm_weight,
)
from pl_compile.testing import random_table, write_tiny_base

_READ = LLAMA.keys.read - {"attention_bias", "mlp_bias", "rope_scaling", "rope_theta"}


def family(name: str, title: str, *own_keys: str, **parts: Any) -> Family:
    """A family with the names of Llama where it says no other."""
    keys = family_keys(
        read=_READ | {*own_keys} | {*parts["tiny"]},
        fixed={},
        without_effect={"attention_dropout", "hidden_act", "hidden_activation"},
        architectures=(f"{title}ForCausalLM",),
    )
    return replace(
        LLAMA,
        name=name,
        title=title,
        docs="not yet",
        keys=keys,
        fast_layers={},
        without_effect=re.compile("nothing"),
        **parts,
    )


def sizes(hf: Settings, name: str, own: Any, *, eps: str = "rms_norm_eps") -> DecoderConfig:
    heads, hidden = hf.heads_of("num_attention_heads", "hidden_size")
    return DecoderConfig(
        family=name,
        layers=hf.size("num_hidden_layers", "layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=hf.size("num_key_value_heads", "kv_heads"),
        head_dim=hf.size("head_dim", "head_dim", hidden // heads, null=True),
        ffn=hf.size("intermediate_size", "ffn"),
        vocab=hf.size("vocab_size", "vocab"),
        positions=hf.size("max_position_embeddings", "positions"),
        norm_eps=hf.epsilon(eps, 1e-6),
        tied=hf.get("tie_word_embeddings", bool, False),
        rope_theta=10000.0,
        bos_id=hf.token_id("bos_token_id"),
        own=own,
    )


def products(config: DecoderConfig, i: int, *, bias: str = "") -> Iterator[Weight]:
    ours, theirs = layer_name(i), f"model.layers.{i}"
    for part in "qkvo":
        name, stored = f"{ours}.attention.{part}", f"{theirs}.self_attn.{part}_proj"
        yield from product_weights(config, name, stored, TRANSPOSED, bias=part in bias)
    for part in ("gate", "up", "down"):
        name, stored = f"{ours}.mlp.{part}", f"{theirs}.mlp.{part}_proj"
        yield from product_weights(config, name, stored, TRANSPOSED, bias=False)


def head_norms(config: DecoderConfig, i: int) -> Iterator[Weight]:
    for part in "qk":
        stored = f"model.layers.{i}.self_attn.{part}_norm"
        yield rms_norm_weight(config.head_dim, f"layers.{i}.attention.{part}_norm", stored)


def qkv(b: Blocks[V], h: V) -> tuple[V, V, V]:
    query, key, value = (b.linear(h, f"attention.{part}") for part in "qkv")
    return query, key, value


def swiglu_mlp(b: Blocks[V], h: V) -> V:
    return b.row_parallel(b.swiglu(b.linear(h, "mlp.gate"), b.linear(h, "mlp.up")), "mlp.down")


TINY = {**LLAMA.tiny, "rms_norm_eps": 1e-6}


# Qwen 3: norms of heads


def qwen3_weights(config: DecoderConfig) -> Iterator[Weight]:
    for i in range(config.layers):
        ours, theirs = layer_name(i), f"model.layers.{i}"
        yield rms_norm_weight(config.hidden, f"{ours}.attention_norm", f"{theirs}.input_layernorm")
        yield rms_norm_weight(
            config.hidden, f"{ours}.mlp_norm", f"{theirs}.post_attention_layernorm"
        )
        yield from head_norms(config, i)
        yield from products(config, i)
    yield rms_norm_weight(config.hidden, "final_norm", "model.norm")


def qwen3(b: Blocks[V]) -> V:
    rotary = rotary_frequencies(b.config.rope_theta, b.config.head_dim)
    x = b.with_virtual_rows(b.embedding())
    for i in range(b.config.layers):
        x = qwen3_layer(b.layer(i), x, rotary)
    return b.head(b.rms_norm(b.last_token(x), "final_norm"))


def qwen3_layer(b: Blocks[V], x: V, rotary: Frequencies) -> V:
    y = b.attention(
        *qkv(b, b.rms_norm(x, "attention_norm")),
        rotary=rotary,
        q_norm="attention.q_norm",
        k_norm="attention.k_norm",
    )
    x = b.add(x, b.row_parallel(y, "attention.o"))
    return b.add(x, swiglu_mlp(b, b.rms_norm(x, "mlp_norm")))


QWEN3 = family(
    "qwen3",
    "Qwen3",
    "sliding_window",
    "layer_types",
    "use_sliding_window",
    "max_window_layers",
    "attention_bias",
    read=lambda hf: sizes(hf, "qwen3", None),
    weights=qwen3_weights,
    definition=qwen3,
    tiny=TINY,
)


# Granite: multipliers everywhere, and Llama 3's rotary frequencies for good measure


@dataclass(frozen=True)
class Granite:
    """Numbers of a Granite."""

    embedding_multiplier: float
    residual_multiplier: float
    attention_multiplier: float
    logits_scaling: float
    frequencies: tuple[float, ...]


def read_granite(hf: Settings) -> DecoderConfig:
    names = ("embedding", "residual", "attention")
    multipliers = {f"{n}_multiplier": hf.get(f"{n}_multiplier", float) for n in names}
    frequencies = llama3_frequencies(hf.get("rope_parameters", dict), hf.get("head_dim", int))
    scaling = hf.get("logits_scaling", float)
    own = Granite(**multipliers, logits_scaling=scaling, frequencies=frequencies)
    return sizes(hf, "granite", own)


def llama3_frequencies(rope: dict[str, Any], width: int) -> tuple[float, ...]:
    """As Llama 3.1 has them: low frequencies are divided, those between are blended."""
    plain = rotary_frequencies(rope["rope_theta"], width)
    turns = rope["original_max_position_embeddings"] * plain / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    scaled: tuple[float, ...] = tuple((plain * (kept + (1 - kept) / rope["factor"])).tolist())
    return scaled


def granite_weights(config: DecoderConfig) -> Iterator[Weight]:
    for i in range(config.layers):
        ours, theirs = layer_name(i), f"model.layers.{i}"
        yield rms_norm_weight(config.hidden, f"{ours}.attention_norm", f"{theirs}.input_layernorm")
        yield rms_norm_weight(
            config.hidden, f"{ours}.mlp_norm", f"{theirs}.post_attention_layernorm"
        )
        yield from products(config, i)
    yield rms_norm_weight(config.hidden, "final_norm", "model.norm")


def granite(b: Blocks[V]) -> V:
    own: Granite = b.config.own
    x = b.scale(b.with_virtual_rows(b.embedding()), own.embedding_multiplier)
    for i in range(b.config.layers):
        x = granite_layer(b.layer(i), x, own)
    return b.scale(b.head(b.rms_norm(b.last_token(x), "final_norm")), 1 / own.logits_scaling)


def granite_layer(b: Blocks[V], x: V, own: Granite) -> V:
    y = b.attention(
        *qkv(b, b.rms_norm(x, "attention_norm")),
        rotary=np.asarray(own.frequencies),
        scale=own.attention_multiplier,
    )
    x = b.add(x, b.scale(b.row_parallel(y, "attention.o"), own.residual_multiplier))
    y = swiglu_mlp(b, b.rms_norm(x, "mlp_norm"))
    return b.add(x, b.scale(y, own.residual_multiplier))


GRANITE = family(
    "granite",
    "Granite",
    "attention_bias",
    "mlp_bias",
    read=read_granite,
    weights=granite_weights,
    definition=granite,
    tiny=TINY
    | {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.3,
        "attention_multiplier": 0.2,
        "logits_scaling": 5.0,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 24,
        },
    },
)


# StableLM: attention and MLP side by side, rotary positions of a part of each head


def stablelm_weights(config: DecoderConfig) -> Iterator[Weight]:
    for i in range(config.layers):
        stored = f"model.layers.{i}.input_layernorm"
        yield from layer_norm_weights(config.hidden, f"layers.{i}.attention_norm", stored)
        yield from products(config, i, bias="qkv" if config.own.attention_bias else "")
    yield from layer_norm_weights(config.hidden, "final_norm", "model.norm")


def stablelm(b: Blocks[V]) -> V:
    rotary = rotary_frequencies(b.config.rope_theta, b.config.head_dim // 2)
    x = b.with_virtual_rows(b.embedding())
    for i in range(b.config.layers):
        x = stablelm_layer(b.layer(i), x, rotary)
    return b.head(b.layer_norm(b.last_token(x), "final_norm"))


def stablelm_layer(b: Blocks[V], x: V, rotary: Frequencies) -> V:
    h = b.layer_norm(x, "attention_norm")
    y = b.row_parallel(b.attention(*qkv(b, h), rotary=rotary), "attention.o")
    return b.add(b.add(x, y), swiglu_mlp(b, h))


STABLELM = family(
    "stablelm",
    "StableLm",
    "qk_layernorm",
    "hidden_dropout",
    read=lambda hf: sizes(
        hf, "stablelm", Biases(hf.get("use_qkv_bias", bool), mlp_bias=False), eps="layer_norm_eps"
    ),
    weights=stablelm_weights,
    definition=stablelm,
    tiny={name: value for name, value in LLAMA.tiny.items() if name != "head_dim"}
    | {
        "num_attention_heads": 6,
        "use_qkv_bias": True,
        "use_parallel_residual": True,
        "layer_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
    },
)


@pytest.mark.parametrize("new", [QWEN3, GRANITE, STABLELM], ids=lambda new: new.name)
@pytest.mark.parametrize("tied", [True, False])
def test_a_family_that_comes_is_a_file_and_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: Family, tied: bool
) -> None:
    monkeypatch.setitem(cast(dict[str, Family], FAMILIES), new.name, registered(new)[new.name])

    ours = compare_steps(write_tiny_base(tmp_path / "base", new.name, tied=tied))

    assert ours.used == ours.weights.keys()


# StableLM is not among them: see below.
@pytest.mark.parametrize("target", ["onnx-cpu", "native-cpu"])
@pytest.mark.parametrize("new", [QWEN3, GRANITE], ids=lambda new: new.name)
def test_a_family_that_comes_is_compiled_without_another_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: Family, target: str
) -> None:
    monkeypatch.setitem(cast(dict[str, Family], FAMILIES), new.name, new)
    base = write_tiny_base(tmp_path / "base", new.name, blocks=True)
    randomise_norms(base)
    table = random_table(base, tmp_path / "table.safetensors", prefix=True)

    result = export_bundle(
        ExportRequest(table, base, tmp_path / "bundle", target=target, capacity=80)
    )

    # Both sides compute float32; a window, a scale or a norm that is left out shows at once.
    assert len(result.parity) == 3
    for parity in result.parity:
        assert parity.max_abs_difference <= 1e-5 * parity.largest_logit


@pytest.mark.parametrize("target", TARGETS)
def test_rotary_positions_of_a_part_of_a_head_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setitem(cast(dict[str, Family], FAMILIES), "stablelm", STABLELM)
    base = write_tiny_base(tmp_path / "base", "stablelm", blocks=True)
    table = random_table(base, tmp_path / "table.safetensors")
    plans = BuildOptions("none", defer_build=TARGETS[target].has_plan)

    with pytest.raises(ExportError, match=r"layers\.0\.attention: .* turn 8 of the 16 numbers"):
        export_bundle(ExportRequest(table, base, tmp_path / "b", target=target, options=plans))

    assert not (tmp_path / "b").exists()
