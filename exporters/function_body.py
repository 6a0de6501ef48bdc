"""The body of a call of the `plc` domain under construction: what the call computes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pl_compile.graph.builder import OPSET, int64_vector
from pl_compile.graph.operators import PLC_DOMAIN, TRT_DOMAIN
from pl_compile.passes.edit import drop_unused_nodes


class FunctionBody:
    """The nodes of the function of one call, whose attributes and sizes are numbers by now.

    The parsers of all targets take attributes of a call into its body (`RefAttr`; proven in
    `tests/export/test_function_calls.py`), and yet bodies are made for each call: an input that is
    left out, a window or a norm changes which nodes there are, which no reference to an attribute
    can say.

    Args:
        call: the node.
        names: of its inputs, in their order.
    """

    def __init__(self, call: ir.Node, names: Sequence[str]) -> None:
        self._nodes: list[ir.Node] = []
        self._call = call
        self._inputs = [ir.val(name) for name in names[: len(call.inputs)]]
        self._known = set(names)
        self._constants: dict[str, tuple[ir.Value, NDArray[Any]]] = {}

    @property
    def inputs(self) -> Mapping[str, ir.Value]:
        """The inputs by name, without those that the call leaves out."""
        pairs = zip(self._inputs, self._call.inputs, strict=True)
        return {str(inner.name): inner for inner, outer in pairs if outer is not None}

    def op(
        self,
        op_type: str,
        arguments: Sequence[ir.Value | None],
        name: str,
        *,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """A node that gives the value `name`."""
        return self.ops(op_type, arguments, [name], domain=domain, **attributes)[0]

    def ops(
        self,
        op_type: str,
        arguments: Sequence[ir.Value | None],
        names: Sequence[str],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """A node that gives several values."""
        assert self._known.isdisjoint(names), f"two values are called one of {names}"
        self._known.update(names)
        outputs = [ir.val(name) for name in names]
        node = ir.node(
            op_type, arguments, attributes, domain=domain, name=names[0], outputs=outputs
        )
        self._nodes.append(node)
        return node.outputs

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """A constant; the same name gives the same value, and must give the same numbers."""
        if name not in self._constants:
            tensor = ir.tensor(array, name=name)
            self._constants[name] = self.op("Constant", [], name, value=tensor), array
        value, known = self._constants[name]
        assert np.array_equal(known, array), f"two constants are called '{name}'"
        return value

    def integers(self, *numbers: int) -> ir.Value:
        """A constant int64 vector."""
        return self.constant(*int64_vector(*numbers))

    def function(self, *outputs: ir.Value) -> ir.Function:
        """The function, which declares all attributes of the call and reads none.

        Nodes that the outputs do not need are left out.
        """
        graph = ir.Graph(self._inputs, outputs, nodes=self._nodes)
        drop_unused_nodes(graph)
        domains = {"": OPSET, TRT_DOMAIN: 1}
        graph.opset_imports.update({node.domain: domains[node.domain] for node in graph})
        given = self._call.attributes.values()
        attributes = [ir.Attr(each.name, each.type, None) for each in given]
        return ir.Function(PLC_DOMAIN, self._call.op_type, "", graph=graph, attributes=attributes)
