"""Attention, its cache, its rotary positions and its layout of heads become one kernel of ours.

before:  q, k, v = Split(qkv)
         q'      = RotaryEmbedding(Transpose(Reshape(q)), cos, sin, positions)      and k' alike
         v'      = Transpose(Reshape(v))
         y, pk, pv = plc::CachedAttention(q', k', v', past_key, past_value, past_lengths)
         z       = Reshape(Transpose(y))
after:   z, pk, pv = plc::PackedAttention(qkv, past_key, past_value, past_lengths, cos, sin)

Without rotary positions cos and sin are left out. A call names its variant in `overload`, by which
a model finds the body in standard operators that stands for it where the kernels are not.
"""

from dataclasses import dataclass

import onnx_ir as ir

from pl_compile.graph.builder import PLC_DOMAIN
from pl_compile.passes.edit import Edit, is_op
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.heads import before_heads, behind_heads, common_product

ROTARY, PLAIN = "rotary", "plain"


@dataclass(frozen=True)
class UsePackedAttention(GraphPass):
    """Replaces every cached attention.

    Attributes:
        heads: query heads.
        kv_heads: key and value heads.
    """

    heads: int
    kv_heads: int

    def requires(self, model: ir.Model) -> None:
        """Queries, keys and values of a layer are parts of one product."""
        for node in _calls(model):
            assert common_product(tuple(before_heads(value)[0] for value in node.inputs[:3]))

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        edit = Edit(model)
        calls = _calls(model)
        for node in calls:
            flat, tables = zip(*(before_heads(value) for value in node.inputs[:3]), strict=True)
            z, present_key, present_value = edit.insert(
                node,
                "PackedAttention",
                [common_product(flat), *node.inputs[3:6], *tables[0]],
                str(node.name).removesuffix(".cached") + ".packed",
                domain=PLC_DOMAIN,
                overload=ROTARY if tables[0] else PLAIN,
                outputs=3,
                heads=self.heads,
                kv_heads=self.kv_heads,
            )
            turned, joined = behind_heads(node.outputs[0])
            edit.replace(joined, [z])
            edit.graph.remove(turned, safe=True)
            edit.replace(node, [node.outputs[0], present_key, present_value])
        edit.drop_unused()
        return bool(calls)

    def ensures(self, model: ir.Model) -> None:
        """None is left."""
        assert not _calls(model)


def _calls(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if is_op(node, "CachedAttention", PLC_DOMAIN)]
