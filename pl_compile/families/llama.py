"""The Llama family (arXiv:2302.13971; grouped queries arXiv:2305.13245)."""

import re
from collections.abc import Iterator

from pl_compile.config.decoder import DecoderConfig
from pl_compile.families.blocks import Blocks, Frequencies, V, rotary_frequencies
from pl_compile.families.family import Family
from pl_compile.families.keys import family_keys
from pl_compile.families.names import layer_name
from pl_compile.families.settings import Settings
from pl_compile.families.weights import TRANSPOSED, Biases, Weight, product_weights, rms_norm_weight

_SILU = ("silu", "swish")  # two names of one function

_KEYS = family_keys(
    read={
        "attention_bias",
        "bos_token_id",
        "eos_token_id",
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "mlp_bias",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "tie_word_embeddings",
        "vocab_size",
    },
    fixed={
        "hidden_act": _SILU,
        "hidden_activation": (None, *_SILU),
        "mlp_hidden_act": (None, *_SILU),
        "position_embedding_type": (None, "rope", "rotary"),
    },
    without_effect={
        "attention_dropout",
        "pretraining_tp",  # how products are cut in pieces: the same sums
    },
    architectures=(
        "LlamaForCausalLM",
        "LLaMAForCausalLM",  # as the first conversions spelled it
        "LlamaModel",
        "LlamaForSequenceClassification",
    ),
)


def _read(hf: Settings) -> DecoderConfig:
    heads, hidden = hf.heads_of("num_attention_heads", "hidden_size")
    vocab = hf.size("vocab_size", "vocab")
    hf.pad_id_within(vocab)
    return DecoderConfig(
        family="llama",
        layers=hf.size("num_hidden_layers", "layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=hf.size("num_key_value_heads", "kv_heads", heads, null=True),
        head_dim=hf.size("head_dim", "head_dim", hidden // heads, null=True),
        ffn=hf.size("intermediate_size", "ffn"),
        vocab=vocab,
        positions=hf.size("max_position_embeddings", "positions", 2048),
        norm_eps=hf.epsilon("rms_norm_eps", 1e-6),
        tied=hf.get("tie_word_embeddings", bool, False),
        rope_theta=hf.rope_theta(),
        bos_id=hf.token_id("bos_token_id"),
        own=Biases(
            attention_bias=hf.get("attention_bias", bool, False),
            mlp_bias=hf.get("mlp_bias", bool, False),
        ),
    )


def _weights(config: DecoderConfig) -> Iterator[Weight]:
    biases: Biases = config.own
    width = config.hidden
    for i in range(config.layers):
        ours, theirs = layer_name(i), f"model.layers.{i}"
        yield rms_norm_weight(width, f"{ours}.attention_norm", f"{theirs}.input_layernorm")
        for part in "qkvo":
            name, stored = f"{ours}.attention.{part}", f"{theirs}.self_attn.{part}_proj"
            yield from product_weights(config, name, stored, TRANSPOSED, bias=biases.attention_bias)
        yield rms_norm_weight(width, f"{ours}.mlp_norm", f"{theirs}.post_attention_layernorm")
        for part in ("gate", "up", "down"):
            name, stored = f"{ours}.mlp.{part}", f"{theirs}.mlp.{part}_proj"
            yield from product_weights(config, name, stored, TRANSPOSED, bias=biases.mlp_bias)
    yield rms_norm_weight(width, "final_norm", "model.norm")


def _definition(b: Blocks[V]) -> V:
    rotary = rotary_frequencies(b.config.rope_theta, b.config.head_dim)
    x = b.with_virtual_rows(b.embedding())
    for i in range(b.config.layers):
        x = _layer(b.layer(i), x, rotary)
    return b.head(b.rms_norm(b.last_token(x), "final_norm"))


def _layer(b: Blocks[V], x: V, rotary: Frequencies) -> V:
    h = b.rms_norm(x, "attention_norm")
    query, key, value = (b.linear(h, f"attention.{part}") for part in "qkv")
    y = b.attention(query, key, value, rotary=rotary)
    x = b.add(x, b.row_parallel(y, "attention.o"))
    h = b.rms_norm(x, "mlp_norm")
    y = b.swiglu(b.linear(h, "mlp.gate"), b.linear(h, "mlp.up"))
    return b.add(x, b.row_parallel(y, "mlp.down"))


LLAMA = Family(
    name="llama",
    title="Llama",
    docs="RMS norms, rotary positions that are not scaled, SwiGLU, grouped queries",
    keys=_KEYS,
    read=_read,
    prefix="model.",
    embedding="model.embed_tokens.weight",
    head="lm_head.weight",
    weights=_weights,
    # Rotary frequencies, which are computed from the config.
    without_effect=re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"),
    definition=_definition,
    attention_options=frozenset({"scaling"}),
    fast_layers={"LlamaRMSNorm": "rms_norm", "LlamaMLP": "swiglu_mlp"},
    tiny={
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 40,
        "max_position_embeddings": 96,
        "initializer_range": 0.3,
    },
    tiny_blocks={
        "hidden_size": 96,
        "head_dim": 16,
        "intermediate_size": 160,
        "initializer_range": 0.1,
    },
)
