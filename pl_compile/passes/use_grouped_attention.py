"""Attention, its cache, its rotary positions and its layout of heads become one kernel.

before:  q, k, v = Split(qkv)
         q'      = RotaryEmbedding(Transpose(Reshape(q)), cos, sin, positions)      and k' alike
         v'      = Transpose(Reshape(v))
         y, pk, pv = plc::CachedAttention(q', k', v', past_key, past_value, past_lengths)
         z       = Reshape(Transpose(y))
after:   z, pk, pv = com.microsoft::GroupQueryAttention(qkv, , , past_key, past_value,
                                                        last entries, longest row, cos, sin)

Without rotary positions cos and sin are left out; without a common product q, k and v are given
each. Every row is computed over its own entries, so its numbers do not depend on its neighbours.
ONNX Runtime's kernel takes several tokens behind a filled cache for one row at a time only.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pl_compile.config.contract import INPUT_IDS, PAST_LENGTHS
from pl_compile.graph.builder import PLC_DOMAIN
from pl_compile.passes.edit import Edit, is_op
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.heads import before_heads, behind_heads, common_product


@dataclass(frozen=True)
class UseGroupedAttention(GraphPass):
    """Replaces every cached attention.

    Attributes:
        heads: query heads.
        kv_heads: key and value heads.
    """

    heads: int
    kv_heads: int

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        edit = Edit(model)
        calls = [node for node in model.graph if is_op(node, "CachedAttention", PLC_DOMAIN)]
        if not calls:
            return False
        lengths = _lengths(edit, model)
        for node in calls:
            self._replace(edit, node, lengths)
        edit.drop_unused()
        model.graph.opset_imports["com.microsoft"] = 1
        return True

    def ensures(self, model: ir.Model) -> None:
        """None is left."""
        assert not any(is_op(node, "CachedAttention", PLC_DOMAIN) for node in model.graph)

    def _replace(self, edit: Edit, node: ir.Node, lengths: tuple[ir.Value, ir.Value]) -> None:
        query, key, value, past_key, past_value, _ = node.inputs
        flat, tables = zip(*(before_heads(v) for v in (query, key, value)), strict=True)
        packed = common_product(flat)
        given = [packed, None, None] if packed is not None else list(flat)
        rotary = tables[0]
        z, present_key, present_value = edit.insert(
            node,
            "GroupQueryAttention",
            [*given, past_key, past_value, *lengths, *rotary],
            str(node.name).removesuffix(".cached") + ".grouped",
            domain="com.microsoft",
            outputs=3,
            num_heads=self.heads,
            kv_num_heads=self.kv_heads,
            do_rotary=int(bool(rotary)),
        )
        turned, joined = behind_heads(node.outputs[0])
        edit.replace(joined, [z])
        edit.graph.remove(turned, safe=True)
        edit.replace(node, [node.outputs[0], present_key, present_value])


def _lengths(edit: Edit, model: ir.Model) -> tuple[ir.Value, ir.Value]:
    """int32 `[batch]`, each row's last entry after the step; int32 `[1]`, the longest's entries."""
    inputs = {value.name: value for value in model.graph.inputs}
    first = next(iter(model.graph))
    one = edit.initializer("int64_1", np.asarray([1], np.int64))
    (seq,) = edit.insert(first, "Shape", [inputs[INPUT_IDS]], "grouped.seq", start=1, end=2)
    (total,) = edit.insert(first, "Add", [inputs[PAST_LENGTHS], seq], "grouped.entries")
    (last,) = edit.insert(first, "Sub", [total, one], "grouped.last_entry")
    (longest,) = edit.insert(first, "ReduceMax", [total], "grouped.longest", keepdims=1)
    kind = ir.DataType.INT32
    (last,) = edit.insert(first, "Cast", [last], "grouped.last_entry.int32", to=kind)
    (longest,) = edit.insert(first, "Cast", [longest], "grouped.longest.int32", to=kind)
    return last, longest
