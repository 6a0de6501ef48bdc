"""Products of one input become one product: fewer and larger kernels.

before:  q = MatMul(x, wq)    k = MatMul(x, wk)    v = MatMul(x, wv)
after:   q, k, v = Split(MatMul(x, [wq | wk | wv]))

Biases that are added to all of them are merged alike. Where the products are the parts that one
operator of ours takes, it takes them packed:

before:  y, pk, pv = plc::Attention(q, k, v, past_key, ...)      z = plc::SwiGlu(gate, up)
after:   y, pk, pv = plc::Attention(qkv, , , past_key, ...)      z = plc::SwiGlu(gate_up)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pl_compile.graph.operators import PARTS, PLC_DOMAIN
from pl_compile.passes.edit import Edit, array_of, is_op
from pl_compile.passes.graph_pass import GraphPass


@dataclass(frozen=True)
class MergeProducts(GraphPass):
    """Merges the products that share an input."""

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        edit = Edit(model)
        merged = False
        place = {node: index for index, node in enumerate(model.graph)}
        values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
        for value in values:
            products = [node for node, index in value.uses() if index == 0 and _is_product(node)]
            products.sort(key=lambda node: place[node])
            if len(products) > 1:
                _merge(edit, value, products)
                merged = True
        edit.drop_unused()
        return merged

    def ensures(self, model: ir.Model) -> None:
        """No two products share an input."""
        inputs = [node.inputs[0] for node in model.graph if _is_product(node)]
        assert len(inputs) == len(set(inputs))


def _is_product(node: ir.Node) -> bool:
    return is_op(node, "MatMul") and node.inputs[1] is not None and node.inputs[1].is_initializer()


def _merge(edit: Edit, value: ir.Value, products: list[ir.Node]) -> None:
    weights = [_numbers(node.inputs[1]) for node in products]
    name = _merged_name([str(node.name) for node in products])
    weight = edit.initializer(f"{name}.weight", np.concatenate(weights, 1))
    # Where the first one stands, the input is known and none of the results is used yet.
    (result,) = edit.insert(products[0], "MatMul", [value, weight], name)
    sums = [node for node in map(_biased, products) if node is not None]
    merged = products
    if len(sums) == len(products):
        merged = sums
        bias = edit.initializer(
            f"{name}.bias", np.concatenate([_numbers(node.inputs[1]) for node in sums])
        )
        (result,) = edit.insert(products[0], "Add", [result, bias], f"{name}.add_bias")
    parts = [node.outputs[0] for node in merged]
    user = _packing_user(parts)
    if user is None:
        _split(edit, products[0], result, [w.shape[1] for w in weights], merged, name)
    else:
        _pack(user, result, len(parts))


def _split(
    edit: Edit,
    before: ir.Node,
    result: ir.Value,
    widths: Sequence[int],
    replaced: Sequence[ir.Node],
    name: str,
) -> None:
    sizes = edit.initializer(f"{name}.sizes", np.asarray(widths, np.int64))
    parts = edit.insert(
        before, "Split", [result, sizes], f"{name}.split", outputs=len(widths), axis=-1
    )
    for node, part in zip(replaced, parts, strict=True):
        edit.replace(node, [part])


def _packing_user(parts: Sequence[ir.Value]) -> ir.Node | None:
    """The operator whose parts these are, in this order, and that alone uses them."""
    users = {user for part in parts for user, _ in part.uses()}
    if len(users) != 1 or any(part.is_graph_output() for part in parts):
        return None
    (user,) = users
    if user.domain != PLC_DOMAIN or PARTS.get(user.op_type) != len(parts):
        return None
    return user if tuple(user.inputs[: len(parts)]) == tuple(parts) else None


def _pack(user: ir.Node, result: ir.Value, parts: int) -> None:
    """Gives the merged product to an operator. `drop_unused` then removes the old products."""
    user.replace_input_with(0, result)
    for index in range(1, parts):
        user.replace_input_with(index, None)
    if len(user.inputs) == parts:
        user.resize_inputs(1)


def _biased(node: ir.Node) -> ir.Node | None:
    """The node that adds a bias to a product, where that is all that uses it."""
    users = [user for user, _ in node.outputs[0].uses()]
    if len(users) == 1 and is_op(users[0], "Add") and array_of(users[0].inputs[1]) is not None:
        return users[0]
    return None


def _numbers(value: ir.Value | None) -> NDArray[Any]:
    array = array_of(value)
    assert array is not None
    return array


def _merged_name(names: list[str]) -> str:
    """`a.q`, `a.k`, `a.v` is `a.q_k_v`."""
    stem = names[0].rpartition(".")[0]
    return f"{stem}.{'_'.join(name.rpartition('.')[2] for name in names)}"
