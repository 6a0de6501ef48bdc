"""An attention becomes the one kernel of ours that does all of it.

before:  y, pk, pv = plc::Attention(qkv, , , past_key, past_value, past_lengths,
                                    positions, cos, sin, q_norm, k_norm, scale=0.25, ...)
after:   y, pk, pv = plc::PackedAttention(qkv, past_key, past_value, past_lengths,
                                          cos, sin, q_norm, k_norm, ...)

and where rows are ragged:

after:   y, pk, pv = plc::PagedAttention(qkv, past_key, past_value, positions, token_rows,
                                         block_tables, prefixes, parents,
                                         cos, sin, q_norm, k_norm, layer=0, ...)

or `plc::PagedAttention16`, with caches of float16.

Queries, keys and values that are not one product (something stands between, or only some have a
bias) are joined before it. The kernel of padded rows counts positions itself. What a call leaves
out is left out, and so is a scale of 1 / sqrt(head_dim), which the kernel takes by default.
"""

from dataclasses import dataclass

import onnx_ir as ir

from pl_compile.config.contract import CacheBits
from pl_compile.graph.kernel_operators import (
    PACKED_ATTENTION,
    PACKED_ATTENTION_INPUTS,
    PAGED_ATTENTION,
    PAGED_ATTENTION_16,
    PAGED_ATTENTION_INPUTS,
)
from pl_compile.graph.operators import (
    ATTENTION,
    PLC_DOMAIN,
    AttentionSettings,
    attention_inputs,
    cache_sizes,
)
from pl_compile.passes.edit import Edit, is_op
from pl_compile.passes.graph_pass import GraphPass


@dataclass(frozen=True)
class UsePackedAttention(GraphPass):
    """Replaces every attention.

    Attributes:
        cache_bits: of each number of ragged rows' caches.
    """

    cache_bits: CacheBits = 32

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        edit = Edit(model)
        calls = _calls(model)
        for layer, call in enumerate(calls):
            edit.replace(call, _insert(edit, call, layer, self.cache_bits))
        edit.drop_unused()
        return bool(calls)

    def ensures(self, model: ir.Model) -> None:
        """None is left."""
        assert not _calls(model)


def _calls(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if is_op(node, ATTENTION, PLC_DOMAIN)]


def _insert(edit: Edit, call: ir.Node, layer: int, cache_bits: CacheBits) -> tuple[ir.Value, ...]:
    given = attention_inputs(call)
    if "key" in given:
        parts = [given.pop(name) for name in ("query", "key", "value")]
        (given["query"],) = edit.insert(call, "Concat", parts, f"{call.name}.q_k_v", axis=-1)
    paged = "block_tables" in given
    names = PAGED_ATTENTION_INPUTS if paged else PACKED_ATTENTION_INPUTS
    inputs = [given.get(name) for name in names]
    while inputs[-1] is None:
        inputs.pop()
    _, head_dim = cache_sizes(given["past_key"])
    settings = AttentionSettings.of(call, head_dim)
    attributes = settings.attributes
    if settings.has_usual_scale(head_dim):
        del attributes["scale"]
    if paged:
        attributes["layer"] = layer
    operator = PAGED_ATTENTION if paged else PACKED_ATTENTION
    if paged and cache_bits == 16:
        operator = PAGED_ATTENTION_16
        for name in ("past_key", "past_value"):
            given[name].type = ir.TensorType(ir.DataType.FLOAT16)
    y, *presents = edit.insert(
        call,
        operator,
        inputs,
        f"{call.name}.packed",
        domain=PLC_DOMAIN,
        outputs=3,
        **attributes,
    )
    for present, name in zip(presents, ("past_key", "past_value"), strict=True):
        present.type = given[name].type
    return y, *presents
