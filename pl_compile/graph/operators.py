"""The operators of the main graph that ONNX does not have: what a call of each means.

They say what a layer computes, and no more. Each target lowers them once: into a kernel by a pass
(attention by `passes/use_*_attention.py`, gates by `passes/use_own_products.py`), or by the body
that `LinkFunctions` gives to the call. What those passes write is in `kernel_operators.py`.

    y, present_key, present_value = plc::Attention(
        query, key, value, past_key, past_value, past_lengths,
        positions?, cos?, sin?, q_norm?, k_norm?,
        token_rows?, block_tables?, prefixes?, parents?,
        heads=, kv_heads=, scale=, window=0, softcap=0.0, epsilon=0.0)

        query           float [batch, seq, heads * head_dim]
        key, value      float [batch, seq, kv_heads * head_dim]
        past_*          float [batch, kv_heads, capacity, head_dim]
        past_lengths    int64 [batch]; row b is written from entry past_lengths[b] on
        positions       int64 [batch, seq]: past_lengths plus 0, 1, ...
        cos, sin        float [capacity, head_dim / 2], with positions: query and key are rotated
                        (arXiv:2104.09864)
        q_norm, k_norm  float [head_dim]: weights of a root mean square norm of each head
                        (arXiv:1910.07467), before it is rotated; epsilon is that of both
        y               float [batch, seq, heads * head_dim]

    Where rows are ragged, `batch` is 1 and `seq` all tokens of a step. The last four inputs and
    the caches, in blocks, are those of `config/contract.py`; past_lengths is left out.

    y = plc::SwiGlu(gate, up)    silu(gate) * up             (arXiv:2002.05202)
    y = plc::GeGlu(gate, up)     gelu(gate) * up, tanh form  (arXiv:2002.05202)

The packed forms leave out what follows the first input: `plc::Attention(qkv, , , ...)` takes
queries, keys and values side by side, `plc::SwiGlu(gate_up)` takes gate and up. `MergeProducts`
writes them.
"""

from dataclasses import dataclass, fields
from math import sqrt
from typing import Any

import numpy as np
import onnx_ir as ir

# Calls into the library that each target links: see exporters/.
PLC_DOMAIN = "plc"

# ONNX Runtime's own operators.
ORT_DOMAIN = "com.microsoft"

# TensorRT's own operators. Its parser looks at an operator's name alone; a domain of their own
# keeps checkers quiet.
TRT_DOMAIN = "trt"

ATTENTION, SWIGLU, GEGLU = "Attention", "SwiGlu", "GeGlu"

# The inputs of an attention, in their order.
ATTENTION_INPUTS = (
    *("query", "key", "value", "past_key", "past_value", "past_lengths"),
    *("positions", "cos", "sin", "q_norm", "k_norm"),
    *("token_rows", "block_tables", "prefixes", "parents"),
)

# How many inputs of a call are parts of one product in the packed form.
PARTS = {ATTENTION: 3, SWIGLU: 2, GEGLU: 2}


@dataclass(frozen=True)
class AttentionSettings:
    """What an attention computes: the attributes of a call.

    Attributes:
        heads: query heads.
        kv_heads: key and value heads; `heads % kv_heads == 0`.
        scale: of the scores.
        window: how many entries a token sees, itself and those before it; 0 for all.
        softcap: scores become `softcap * tanh(score / softcap)` (arXiv:2408.00118); 0 for none.
        epsilon: of the norms of queries and keys; 0 without norms.
    """

    heads: int
    kv_heads: int
    scale: float
    window: int = 0
    softcap: float = 0.0
    epsilon: float = 0.0

    @staticmethod
    def of(call: ir.Node, head_dim: int) -> "AttentionSettings":
        """Those of a call; a scale that is left out is `1 / sqrt(head_dim)`."""
        known = [field.name for field in fields(AttentionSettings)]
        given = {name: each.value for name, each in call.attributes.items() if name in known}
        return AttentionSettings(**{"scale": 1 / sqrt(head_dim), **given})

    @property
    def attributes(self) -> dict[str, Any]:
        """As a call has them: scale always, anything else where it does something."""
        settings = vars(self)
        return {name: value for name, value in settings.items() if value or name == "scale"}

    def has_usual_scale(self, head_dim: int) -> bool:
        """Whether the scale is what attentions of ONNX take by default: `1 / sqrt(head_dim)`."""
        return bool(np.float32(self.scale) == np.float32(1 / sqrt(head_dim)))


def attention_inputs(call: ir.Node) -> dict[str, ir.Value]:
    """The inputs of an attention by name, without those that are left out."""
    given = zip(ATTENTION_INPUTS, call.inputs, strict=False)
    return {name: value for name, value in given if value is not None}


def cache_sizes(past: ir.Value) -> tuple[int, int]:
    """Capacity of a slot (or a block) and head_dim: every target compiles for fixed ones."""
    assert past.shape is not None
    capacity, head_dim = past.shape[2], past.shape[3]
    assert isinstance(capacity, int)
    assert isinstance(head_dim, int)
    return capacity, head_dim
