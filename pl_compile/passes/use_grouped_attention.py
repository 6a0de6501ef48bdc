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
        flat, tables = zip(*(_before_heads(v) for v in (query, key, value)), strict=True)
        packed = _packed(flat)
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
        turned = _only_user(node.outputs[0], "Transpose")
        joined = _only_user(turned.outputs[0], "Reshape")
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


def _before_heads(value: ir.Value | None) -> tuple[ir.Value, list[ir.Value | None]]:
    """What was split into heads, and the tables of its rotary positions, if it has some."""
    assert value is not None
    node = value.producer()
    tables: list[ir.Value | None] = []
    if is_op(node, "RotaryEmbedding"):
        assert node is not None
        tables = list(node.inputs[1:3])
        assert node.inputs[0] is not None
        node = node.inputs[0].producer()
    assert is_op(node, "Transpose")
    assert node is not None
    assert node.inputs[0] is not None
    split = node.inputs[0].producer()
    assert is_op(split, "Reshape")
    assert split is not None
    assert split.inputs[0] is not None
    return split.inputs[0], tables


def _packed(parts: tuple[ir.Value, ...]) -> ir.Value | None:
    """The product that q, k and v are parts of, in this order; None if there is none."""
    producers = {value.producer() for value in parts}
    node = producers.pop()
    if producers or node is None or not is_op(node, "Split") or tuple(node.outputs) != parts:
        return None
    return node.inputs[0]


def _only_user(value: ir.Value, op_type: str) -> ir.Node:
    (user,) = [user for user, _ in value.uses()]
    assert is_op(user, op_type)
    return user
