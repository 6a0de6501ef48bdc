"""What stands around a cached attention: how heads are split, rotated and joined again."""

from collections.abc import Sequence

import onnx_ir as ir

from pl_compile.passes.edit import is_op


def before_heads(value: ir.Value | None) -> tuple[ir.Value, list[ir.Value | None]]:
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


def behind_heads(value: ir.Value) -> tuple[ir.Node, ir.Node]:
    """The nodes that turn and join the heads of an attention's result."""
    turned = _only_user(value, "Transpose")
    return turned, _only_user(turned.outputs[0], "Reshape")


def common_product(parts: Sequence[ir.Value]) -> ir.Value | None:
    """The product that q, k and v are parts of, in this order; None if there is none."""
    producers = {value.producer() for value in parts}
    node = producers.pop()
    if producers or node is None or not is_op(node, "Split"):
        return None
    return node.inputs[0] if tuple(node.outputs) == tuple(parts) else None


def _only_user(value: ir.Value, op_type: str) -> ir.Node:
    (user,) = [user for user, _ in value.uses()]
    assert is_op(user, op_type)
    return user
