"""The GPT-2 family (Radford et al. 2019)."""

import re
from collections.abc import Iterator

from pl_compile.config.decoder import DecoderConfig
from pl_compile.families.blocks import Blocks, V
from pl_compile.families.family import Family
from pl_compile.families.keys import family_keys
from pl_compile.families.names import POSITIONS, layer_name
from pl_compile.families.settings import Settings
from pl_compile.families.weights import (
    AS_IS,
    Biases,
    Weight,
    layer_norm_weights,
    product_weights,
    third,
)

_KEYS = family_keys(
    read={
        "bos_token_id",
        "eos_token_id",
        "layer_norm_epsilon",
        "n_embd",
        "n_head",
        "n_inner",
        "n_layer",
        "n_positions",
        "tie_word_embeddings",
        "vocab_size",
    },
    fixed={
        "activation_function": ("gelu_new",),
        "add_cross_attention": (False,),
        "hidden_act": (None, "gelu_new"),
        "hidden_activation": (None, "gelu_new"),
        "mlp_hidden_act": (None, "gelu_new"),
        "position_embedding_type": (None, "absolute", "learned"),
        "rope_parameters": (None, {}),
        "rope_scaling": (None, {}),
        "rope_theta": (None,),
        "rotary": (None, False),
        "scale_attn_by_inverse_layer_idx": (False,),
        "scale_attn_weights": (True,),
    },
    without_effect={
        "attn_pdrop",
        "classifier_dropout",
        "embd_pdrop",
        "hidden_dropout",
        "n_ctx",  # the older name of n_positions, which stands beside it
        "reorder_and_upcast_attn",  # in which order float16 is computed
        "resid_pdrop",
        "summary_activation",  # summary_…: of a head for several choices
        "summary_first_dropout",
        "summary_last_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    },
    architectures=("GPT2LMHeadModel", "GPT2Model", "GPT2ForSequenceClassification"),
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
)


def _read(hf: Settings) -> DecoderConfig:
    heads, hidden = hf.heads_of("n_head", "n_embd")
    return DecoderConfig(
        family="gpt2",
        layers=hf.size("n_layer", "layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        ffn=hf.size("n_inner", "ffn", 4 * hidden, null=True),
        vocab=hf.size("vocab_size", "vocab"),
        positions=hf.size("n_positions", "positions", 1024),
        norm_eps=hf.epsilon("layer_norm_epsilon", 1e-5),
        tied=hf.get("tie_word_embeddings", bool, True),
        bos_id=hf.token_id("bos_token_id"),
        own=Biases(attention_bias=True, mlp_bias=True),
    )


def _weights(config: DecoderConfig) -> Iterator[Weight]:
    width = config.hidden
    yield Weight(POSITIONS, (config.positions, width), "transformer.wpe.weight")
    for i in range(config.layers):
        ours, theirs = layer_name(i), f"transformer.h.{i}"
        yield from layer_norm_weights(width, f"{ours}.attention_norm", f"{theirs}.ln_1")
        for index, part in enumerate("qkv"):
            name, stored = f"{ours}.attention.{part}", f"{theirs}.attn.c_attn"
            yield from product_weights(config, name, stored, third(index), bias=True)
        for part, their_part in _PRODUCTS.items():
            name, stored = f"{ours}.{part}", f"{theirs}.{their_part}"
            yield from product_weights(config, name, stored, AS_IS, bias=True)
        yield from layer_norm_weights(width, f"{ours}.mlp_norm", f"{theirs}.ln_2")
    yield from layer_norm_weights(width, "final_norm", "transformer.ln_f")


# Our names of a layer's products, and those of the checkpoint, which has them inputs first.
_PRODUCTS = {"attention.o": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}


def _definition(b: Blocks[V]) -> V:
    x = b.add(b.with_virtual_rows(b.embedding()), b.learned_positions())
    for i in range(b.config.layers):
        x = _layer(b.layer(i), x)
    return b.head(b.layer_norm(b.last_token(x), "final_norm"))


def _layer(b: Blocks[V], x: V) -> V:
    h = b.layer_norm(x, "attention_norm")
    query, key, value = (b.linear(h, f"attention.{part}") for part in "qkv")
    x = b.add(x, b.row_parallel(b.attention(query, key, value), "attention.o"))
    h = b.layer_norm(x, "mlp_norm")
    return b.add(x, b.row_parallel(b.gelu(b.linear(h, "mlp.up")), "mlp.down"))


GPT2 = Family(
    name="gpt2",
    title="GPT-2",
    docs="layer norms, learned positions, GELU in its tanh form",
    keys=_KEYS,
    read=_read,
    prefix="transformer.",
    embedding="transformer.wte.weight",
    head="lm_head.weight",
    weights=_weights,
    without_effect=re.compile(r"h\.\d+\.attn\.(masked_)?bias"),  # causal masks
    definition=_definition,
    attention_options=frozenset({"scaling"}),
    fast_layers={"NewGELUActivation": "gelu_tanh"},
    tiny={
        "n_embd": 24,
        "n_layer": 3,
        "n_head": 3,
        "n_inner": 56,
        "n_positions": 96,
        "initializer_range": 0.3,
    },
    tiny_blocks={"n_embd": 96, "n_inner": 160, "initializer_range": 0.1},
)
