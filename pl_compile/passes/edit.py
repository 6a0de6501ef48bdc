"""What passes do to a graph: put nodes before another, replace it, drop what nothing uses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


class Edit:
    """Changes to the main graph of a model, in place."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph

    def initializer(self, name: str, array: NDArray[Any]) -> ir.Value:
        """An initializer; one of that name that is there already is returned.

        Raises:
            AssertionError: its numbers are others.
        """
        if name in self.graph.initializers:
            known = self.graph.initializers[name]
            numbers = array_of(known)
            assert numbers is not None
            assert np.array_equal(numbers, array), f"two initializers are called '{name}'"
            return known
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self.graph.register_initializer(value)
        return value

    def insert(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        *,
        domain: str = "",
        outputs: int = 1,
        **attributes: Any,
    ) -> tuple[ir.Value, ...]:
        """Puts a node before another one and returns its outputs."""
        names = [f"{name}/out"] if outputs == 1 else [f"{name}.{i}/out" for i in range(outputs)]
        values = [ir.val(output) for output in names]
        node = ir.node(
            op_type,
            inputs,
            attributes,
            domain=domain,
            name=name,
            outputs=values,
        )
        self.graph.insert_before(before, node)
        return tuple(node.outputs)

    def replace(self, node: ir.Node, values: Sequence[ir.Value]) -> None:
        """Removes a node; `values` take the places of its outputs, graph outputs included."""
        for old, new in zip(node.outputs, values, strict=True):
            if old.is_graph_output():
                new.name, new.shape = old.name, old.shape
                new.type = new.type or old.type
                old.name = None
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def drop_unused(self) -> None:
        """Removes nodes and initializers that nothing uses."""
        drop_unused_nodes(self.graph)
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]


def drop_unused_nodes(graph: ir.Graph | ir.Function) -> None:
    """Removes nodes that nothing uses."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)


def array_of(value: ir.Value | None) -> NDArray[Any] | None:
    """The numbers of an initializer; None of anything else."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    array: NDArray[Any] = np.asarray(value.const_value.numpy())
    return array


def is_op(node: ir.Node | None, op_type: str, domain: str = "") -> bool:
    """Whether a node is of an operator."""
    return node is not None and node.op_type == op_type and node.domain == domain
