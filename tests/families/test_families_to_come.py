"""Families that are not read yet, each described in a file's worth: a row more is all they need.

They are short of what a real one needs (every key of config.json, refusals), but compute what
transformers does, in training too. They and those that are read ask all of their blocks that a
definition may.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy_blocks import STEPS, Numpy, compare_steps, randomise_norms

from pl_compile.artifact.bundle import read_bundle
from pl_compile.config.build import BuildOptions
from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.targets import TARGETS
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import ExportError
from pl_compile.families.blocks import Blocks, Frequencies, V, rotary_frequencies
from pl_compile.families.family import Family
from pl_compile.families.gemma3 import GEMMA3
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
from pl_compile.runtime.engines.opening import open_engine
from pl_compile.runtime.stepping import Batch
from pl_compile.testing import assert_close, random_table, write_tiny_base
from pl_compile.text.render import Rendered
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.data.dataset import TrainingSequence
from pl_compile.training.data.packing import pack
from pl_compile.training.soft_prompt import SoftPrompt


def family(name: str, title: str, fixed: Mapping[str, tuple[Any, ...]], **parts: Any) -> Family:
    """A family with the names of Llama where it says no other.

    Args:
        name: of the family.
        title: the beginning of its classes' names.
        fixed: keys of which one value is computed; those that its `read` asks for are read.
        parts: what else it says.
    """
    tiny = Settings({**parts["tiny"], "vocab_size": 397}, "reading a tiny base")
    parts["read"](tiny)
    dropouts = {"attention_dropout", "hidden_dropout"}
    keys = family_keys(
        read=tiny.asked | {"eos_token_id"},
        fixed=fixed,
        without_effect=dropouts | (parts["tiny"].keys() - tiny.asked - fixed.keys()),
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
        head_norms=("attention.q_norm", "attention.k_norm"),
    )
    x = b.add(x, b.row_parallel(y, "attention.o"))
    return b.add(x, swiglu_mlp(b, b.rms_norm(x, "mlp_norm")))


QWEN3 = family(
    "qwen3",
    "Qwen3",
    {"attention_bias": (False,), "hidden_act": ("silu",), "max_window_layers": (28,)},
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
    frequencies: tuple[float, ...]


def read_granite(hf: Settings) -> DecoderConfig:
    names = ("embedding", "residual", "attention")
    multipliers = {f"{n}_multiplier": hf.get(f"{n}_multiplier", float) for n in names}
    frequencies = llama3_frequencies(hf.get("rope_parameters", dict), hf.get("head_dim", int))
    own = Granite(**multipliers, frequencies=frequencies)
    return replace(sizes(hf, "granite", own), logits_scale=1 / hf.get("logits_scaling", float))


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
    return b.head(b.rms_norm(b.last_token(x), "final_norm"))


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
    {"attention_bias": (False,), "hidden_act": ("silu",), "mlp_bias": (False,)},
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
    {"hidden_act": ("silu",), "use_parallel_residual": (True,)},
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


# OLMo 2: norms after attention and MLP, and of all queries and all keys at once


def olmo2_weights(config: DecoderConfig) -> Iterator[Weight]:
    widths = {"q": config.heads * config.head_dim, "k": config.kv_heads * config.head_dim}
    for i in range(config.layers):
        ours, theirs = layer_name(i), f"model.layers.{i}"
        for part, width in widths.items():
            stored = f"{theirs}.self_attn.{part}_norm"
            yield rms_norm_weight(width, f"{ours}.attention.{part}_norm", stored)
        for name, stored in (("attention", "attention"), ("mlp", "feedforward")):
            after = f"{theirs}.post_{stored}_layernorm"
            yield rms_norm_weight(config.hidden, f"{ours}.{name}_end_norm", after)
        yield from products(config, i)
    yield rms_norm_weight(config.hidden, "final_norm", "model.norm")


def olmo2(b: Blocks[V]) -> V:
    rotary = rotary_frequencies(b.config.rope_theta, b.config.head_dim)
    x = b.with_virtual_rows(b.embedding())
    for i in range(b.config.layers):
        x = olmo2_layer(b.layer(i), x, rotary)
    return b.head(b.rms_norm(b.last_token(x), "final_norm"))


def olmo2_layer(b: Blocks[V], x: V, rotary: Frequencies) -> V:
    query, key, value = qkv(b, x)
    query, key = b.rms_norm(query, "attention.q_norm"), b.rms_norm(key, "attention.k_norm")
    y = b.row_parallel(b.attention(query, key, value, rotary=rotary), "attention.o")
    x = b.add(x, b.rms_norm(y, "attention_end_norm"))
    return b.add(x, b.rms_norm(swiglu_mlp(b, x), "mlp_end_norm"))


OLMO2 = family(
    "olmo2",
    "Olmo2",
    {"attention_bias": (False,), "hidden_act": ("silu",)},
    read=lambda hf: sizes(hf, "olmo2", None),
    weights=olmo2_weights,
    definition=olmo2,
    tiny=TINY,
)


# Gemma 2: caps on scores and on logits


@dataclass(frozen=True)
class Gemma2:
    """Numbers of a Gemma 2."""

    windows: tuple[int, ...]
    query_scalar: int
    softcap: float


def read_gemma2(hf: Settings) -> DecoderConfig:
    layers, window = hf.size("num_hidden_layers", "layers"), hf.size("sliding_window", "capacity")
    kinds = hf.layer_kinds(("sliding_attention", "full_attention"), ["full_attention"] * layers)
    own = Gemma2(
        windows=tuple(window if kind == "sliding_attention" else 0 for kind in kinds),
        query_scalar=hf.size("query_pre_attn_scalar", "hidden"),
        softcap=hf.get("attn_logit_softcapping", float),
    )
    config = sizes(hf, "gemma2", own)
    cap = hf.get("final_logit_softcapping", float)
    return replace(config, embedding_scale=math.sqrt(config.hidden), logits_cap=cap)


def gemma2_weights(config: DecoderConfig) -> Iterator[Weight]:
    for weight in GEMMA3.weights(replace(config, own=Biases(False, mlp_bias=False))):
        if not weight.name.endswith((".q_norm.weight", ".k_norm.weight")):
            yield weight


def gemma2(b: Blocks[V]) -> V:
    x = b.with_virtual_rows(b.scale(b.embedding(), b.config.embedding_scale))
    for i, window in enumerate(b.config.own.windows):
        x = gemma2_layer(b.layer(i), x, window)
    return b.head(b.rms_norm(b.last_token(x), "final_norm"))


def gemma2_layer(b: Blocks[V], x: V, window: int) -> V:
    own: Gemma2 = b.config.own
    y = b.attention(
        *qkv(b, b.rms_norm(x, "attention_norm")),
        rotary=rotary_frequencies(b.config.rope_theta, b.config.head_dim),
        scale=own.query_scalar**-0.5,
        window=window,
        softcap=own.softcap,
    )
    x = b.add(x, b.rms_norm(b.row_parallel(y, "attention.o"), "attention_end_norm"))
    h = b.rms_norm(x, "mlp_norm")
    y = b.row_parallel(b.geglu(b.linear(h, "mlp.gate"), b.linear(h, "mlp.up")), "mlp.down")
    return b.add(x, b.rms_norm(y, "mlp_end_norm"))


GEMMA2 = family(
    "gemma2",
    "Gemma2",
    {"attention_bias": (False,), "hidden_activation": ("gelu_pytorch_tanh",)},
    read=read_gemma2,
    weights=gemma2_weights,
    definition=gemma2,
    tiny=TINY
    | {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 5,
        "query_pre_attn_scalar": 12,
        "attn_logit_softcapping": 1.0,
        "final_logit_softcapping": 3.0,
        "pad_token_id": None,
    },
)

COMPILED = [QWEN3, GRANITE, OLMO2]

BARE: Any = SimpleNamespace(rows=np.zeros((0, 0), np.float32), prefix_kv=None, task_id=0)


@pytest.mark.parametrize("new", [*COMPILED, GEMMA2, STABLELM], ids=lambda new: new.name)
@pytest.mark.parametrize("tied", [True, False])
def test_a_family_that_comes_is_a_file_and_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: Family, tied: bool
) -> None:
    monkeypatch.setitem(cast(dict[str, Family], FAMILIES), new.name, registered(new)[new.name])

    ours = compare_steps(write_tiny_base(tmp_path / "base", new.name, tied=tied))

    assert ours.used == ours.weights.keys()


# StableLM is not among them: see below.
@pytest.mark.parametrize("target", ["onnx-cpu", "native-cpu"])
@pytest.mark.parametrize("new", COMPILED, ids=lambda new: new.name)
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


@pytest.mark.parametrize("new", COMPILED, ids=lambda new: new.name)
def test_a_family_that_comes_is_trained_without_another_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: Family
) -> None:
    monkeypatch.setitem(cast(dict[str, Family], FAMILIES), new.name, new)
    base = FrozenBase(write_tiny_base(tmp_path / "base", new.name))
    ids = np.arange(5, 25)
    rendered = Rendered(ids, np.full_like(ids, -1), len(ids))
    sequence = TrainingSequence(0, rendered, np.ones(len(ids), bool), "here")

    with torch.no_grad():
        losses = base.token_losses(pack([sequence]), {0: SoftPrompt()})
        logits = base.model(input_ids=torch.from_numpy(ids)[None]).logits[0]

    expected = torch.nn.functional.cross_entropy(
        logits[:-1], torch.from_numpy(ids[1:]), reduction="none"
    )
    assert_close(losses.numpy(), expected.numpy(), relative=1e-5)


@pytest.mark.parametrize("target", ["onnx-cpu", "native-cpu"])
def test_caps_on_scores_and_logits_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """transformers has no fast attention with a cap, which the comparison of an export needs."""
    monkeypatch.setitem(cast(dict[str, Family], FAMILIES), "gemma2", GEMMA2)
    base = write_tiny_base(tmp_path / "base", "gemma2", blocks=True)
    table = random_table(base, tmp_path / "table.safetensors")
    request = ExportRequest(table, base, tmp_path / "b", target=target, measure_parity=False)
    bundle = read_bundle(export_bundle(request).bundle)
    engine, ours = open_engine(bundle), Numpy(base)
    batch = Batch(engine)
    batch.admit(0, BARE)

    for step in STEPS:
        ids = [abs(token) for token in step]
        logits = batch.feed({0: np.asarray(ids)})[0].logits
        expected = ours.step(ids, np.zeros((len(ids), ours.config.hidden)))
        assert_close(logits, expected, relative=1e-5)
        assert np.abs(expected).max() > 1.5  # the cap, 3, has an effect


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
