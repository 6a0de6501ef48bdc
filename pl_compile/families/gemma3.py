"""The text models of the Gemma 3 family (arXiv:2503.19786)."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pl_compile.config.decoder import DecoderConfig
from pl_compile.families.blocks import Blocks, V, rotary_frequencies
from pl_compile.families.family import Family
from pl_compile.families.keys import family_keys
from pl_compile.families.names import layer_name
from pl_compile.families.settings import Settings
from pl_compile.families.weights import TRANSPOSED, Form, Weight, product_weights, rms_norm_weight

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"

_KEYS = family_keys(
    read={
        "attention_bias",
        "bos_token_id",
        "eos_token_id",
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "layer_types",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "query_pre_attn_scalar",
        "rms_norm_eps",
        "rope_local_base_freq",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "sliding_window",
        "sliding_window_pattern",
        "tie_word_embeddings",
        "vocab_size",
    },
    fixed={
        "hidden_act": (None, "gelu_pytorch_tanh"),
        "hidden_activation": ("gelu_pytorch_tanh",),
        "is_causal": (True,),  # null, too, lets tokens with a window see later ones
        "mlp_hidden_act": (None, "gelu_pytorch_tanh"),
        "position_embedding_type": (None, "rope", "rotary"),
    },
    without_effect={"attention_dropout"},
    architectures=(
        "Gemma3ForCausalLM",
        "Gemma3TextModel",
        "Gemma3TextForSequenceClassification",
    ),
)


@dataclass(frozen=True)
class Gemma3:
    """What only a Gemma 3 has.

    Attributes:
        attention_bias: whether q, k, v and the attention's output have biases.
        windows: of each layer: how many tokens one sees, itself included; 0 of global layers, where
            it sees all.
        local_rope_theta: base of the rotary frequencies of layers with a window; `rope_theta` is
            that of the others.
        query_scalar: scores are divided by its root.
    """

    attention_bias: bool
    windows: tuple[int, ...]
    local_rope_theta: float
    query_scalar: int


def _read(hf: Settings) -> DecoderConfig:
    heads, hidden = hf.heads_of("num_attention_heads", "hidden_size")
    vocab = hf.size("vocab_size", "vocab")
    layers = hf.size("num_hidden_layers", "layers")
    window = hf.size("sliding_window", "capacity", 4096)
    kinds = _kinds(hf, layers)
    hf.pad_id_within(vocab)
    return DecoderConfig(
        family="gemma3_text",
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=hf.size("num_key_value_heads", "kv_heads", 4),
        head_dim=hf.size("head_dim", "head_dim", 256),
        ffn=hf.size("intermediate_size", "ffn"),
        vocab=vocab,
        positions=hf.size("max_position_embeddings", "positions", 131072),
        norm_eps=hf.epsilon("rms_norm_eps", 1e-6),
        tied=hf.get("tie_word_embeddings", bool, True),
        rope_theta=hf.rope_theta(_GLOBAL, default=1e6),
        bos_id=hf.token_id("bos_token_id"),
        embedding_scale=math.sqrt(hidden),
        own=Gemma3(
            attention_bias=hf.get("attention_bias", bool, False),
            windows=tuple(window if kind == _LOCAL else 0 for kind in kinds),
            local_rope_theta=hf.rope_theta(_LOCAL, theta="rope_local_base_freq", scaling=""),
            query_scalar=hf.size("query_pre_attn_scalar", "hidden", 256),
        ),
    )


def _kinds(hf: Settings, layers: int) -> Sequence[str]:
    """The kind of each layer: as a list says, or every so-and-so-manyth is global."""
    pattern = hf.size("sliding_window_pattern", "layers", 6)
    usual = [_LOCAL if (i + 1) % pattern else _GLOBAL for i in range(layers)]
    return hf.layer_kinds((_LOCAL, _GLOBAL), usual)


# A norm multiplies by one more than its stored weight.
_PLUS_ONE = Form(lambda array: array + np.float32(1), lambda shape: shape)

# Our names of a layer's norms, and those of the checkpoint.
_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_end_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_end_norm": "post_feedforward_layernorm",
}


def _weights(config: DecoderConfig) -> Iterator[Weight]:
    own: Gemma3 = config.own
    for i in range(config.layers):
        ours, theirs = layer_name(i), f"model.layers.{i}"
        for name, stored in _NORMS.items():
            yield rms_norm_weight(config.hidden, f"{ours}.{name}", f"{theirs}.{stored}", _PLUS_ONE)
        for part in "qk":
            name, stored = f"{ours}.attention.{part}_norm", f"{theirs}.self_attn.{part}_norm"
            yield rms_norm_weight(config.head_dim, name, stored, _PLUS_ONE)
        for part in "qkvo":
            name, stored = f"{ours}.attention.{part}", f"{theirs}.self_attn.{part}_proj"
            yield from product_weights(config, name, stored, TRANSPOSED, bias=own.attention_bias)
        for part in ("gate", "up", "down"):
            name, stored = f"{ours}.mlp.{part}", f"{theirs}.mlp.{part}_proj"
            yield from product_weights(config, name, stored, TRANSPOSED, bias=False)
    yield rms_norm_weight(config.hidden, "final_norm", "model.norm", _PLUS_ONE)


def _definition(b: Blocks[V]) -> V:
    x = b.with_virtual_rows(b.scale(b.embedding(), b.config.embedding_scale))
    for i, window in enumerate(b.config.own.windows):
        x = _layer(b.layer(i), x, window)
    return b.head(b.rms_norm(b.last_token(x), "final_norm"))


def _layer(b: Blocks[V], x: V, window: int) -> V:
    own: Gemma3 = b.config.own
    h = b.rms_norm(x, "attention_norm")
    query, key, value = (b.linear(h, f"attention.{part}") for part in "qkv")
    theta = own.local_rope_theta if window else b.config.rope_theta
    y = b.attention(
        query,
        key,
        value,
        rotary=rotary_frequencies(theta, b.config.head_dim),
        scale=own.query_scalar**-0.5,
        window=window,
        head_norms=("attention.q_norm", "attention.k_norm"),
    )
    x = b.add(x, b.rms_norm(b.row_parallel(y, "attention.o"), "attention_end_norm"))
    h = b.rms_norm(x, "mlp_norm")
    y = b.geglu(b.linear(h, "mlp.gate"), b.linear(h, "mlp.up"))
    return b.add(x, b.rms_norm(b.row_parallel(y, "mlp.down"), "mlp_end_norm"))


GEMMA3 = Family(
    name="gemma3_text",
    title="Gemma 3",
    docs="four RMS norms a layer and norms of queries and keys, layers with a window and without, "
    "each kind with its own rotary positions, which are not scaled, GeGLU, grouped queries",
    keys=_KEYS,
    read=_read,
    prefix="model.",
    embedding="model.embed_tokens.weight",
    head="lm_head.weight",
    weights=_weights,
    without_effect=re.compile(r"rotary_emb\.\w*inv_freq"),  # computed from the config
    definition=_definition,
    attention_options=frozenset({"scaling", "sliding_window"}),
    fast_layers={"GELUTanh": "gelu_tanh"},
    tiny={
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 40,
        "max_position_embeddings": 96,
        "initializer_range": 0.05,  # more, and a tied head repeats one token
        "pad_token_id": None,  # its row would be all zeros
        "layer_types": [_LOCAL, _GLOBAL, _LOCAL],
        "sliding_window": 5,
        "query_pre_attn_scalar": 12,
        "rope_parameters": {
            _LOCAL: {"rope_type": "default", "rope_theta": 100.0},
            _GLOBAL: {"rope_type": "default", "rope_theta": 5000.0},
        },
    },
    tiny_blocks={
        "hidden_size": 96,
        "head_dim": 16,
        "intermediate_size": 160,
        "initializer_range": 0.05,
    },
)
