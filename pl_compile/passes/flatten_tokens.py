"""Tokens of all rows become one axis, but where attention needs to know whose they are.

before:  x [batch, seq, hidden] goes through the layers
after:   x' = Flatten(x) [batch * seq, hidden] does; what goes into attention is reshaped to
         [batch, seq, width], and what comes out is flattened; before the last token is taken, the
         stream is reshaped

Everything between works token by token, on as many axes as there are. Products of integers round
each token by its own scale, and need them flat: once a graph instead of once a product.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pl_compile.config.contract import INPUT_IDS
from pl_compile.graph.builder import PLC_DOMAIN
from pl_compile.passes.edit import Edit, is_op
from pl_compile.passes.graph_pass import GraphPass

# The last of these that there is gives what the first layer takes.
_ENTRIES = ("prompt.join", "position_embedding.add")
_EXIT = "last_token"


@dataclass(frozen=True)
class FlattenTokens(GraphPass):
    """Flattens what is between embedding and last token; attention is one kernel already.

    Attributes:
        hidden: width of the residual stream.
        packed: width of queries, keys and values together.
    """

    hidden: int
    packed: int

    def requires(self, model: ir.Model) -> None:
        """Every attention is a kernel that takes one packed product."""
        assert not any(is_op(node, "CachedAttention", PLC_DOMAIN) for node in model.graph)
        for node in _attentions(model):
            assert node.inputs[1] is None

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        edit = Edit(model)
        nodes = {node.name: node for node in model.graph}
        entries = [nodes[name] for name in _ENTRIES if name in nodes]
        if not entries or _EXIT not in nodes:
            return False
        ids = next(value for value in model.graph.inputs if value.name == INPUT_IDS)
        first = next(iter(model.graph))
        (rows,) = edit.insert(first, "Shape", [ids], "flat.rows")

        def shape(width: int) -> ir.Value:
            last = edit.initializer(f"int64_{width}", np.asarray([width], np.int64))
            return edit.insert(first, "Concat", [rows, last], f"flat.shape_{width}", axis=0)[0]

        stream_shape, packed_shape = shape(self.hidden), shape(self.packed)
        _after(edit, entries[-1])
        for node in _attentions(model):
            _before(edit, node, packed_shape)
            _after(edit, node)
        _before(edit, nodes[_EXIT], stream_shape)
        return True


def _attentions(model: ir.Model) -> list[ir.Node]:
    return [n for n in model.graph if is_op(n, "GroupQueryAttention", "com.microsoft")]


def _before(edit: Edit, node: ir.Node, shape: ir.Value) -> None:
    """Reshapes the first input of a node."""
    (value,) = edit.insert(node, "Reshape", [node.inputs[0], shape], f"{node.name}.rows")
    node.replace_input_with(0, value)


def _after(edit: Edit, node: ir.Node) -> None:
    """Flattens the first output of a node, for all its users."""
    value = node.outputs[0]
    users = list(value.uses())
    name = f"{node.name}.flat"
    flat = ir.node("Flatten", [value], {"axis": 2}, name=name, outputs=[ir.val(f"{name}/out")])
    edit.graph.insert_after(node, flat)
    for user, index in users:
        user.replace_input_with(index, flat.outputs[0])
