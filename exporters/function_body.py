"""A function of the `plc` domain under construction: what a call of it computes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pl_compile.graph.builder import OPSET, PLC_DOMAIN

# TensorRT's parser looks at an operator's name alone; a domain of their own keeps checkers quiet.
TRT_DOMAIN = "trt"


class FunctionBody:
    """The nodes of a function under construction."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self._constants: dict[str, ir.Value] = {}
        self._attributes: dict[str, ir.Attr] = {}

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
        output = ir.val(name)
        node = ir.node(op_type, arguments, attributes, domain=domain, name=name, outputs=[output])
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """A constant; the same name gives the same value."""
        if name not in self._constants:
            tensor = ir.tensor(array, name=name)
            self._constants[name] = self.op("Constant", [], name, value=tensor)
        return self._constants[name]

    def integers(self, *numbers: int) -> ir.Value:
        """A constant int64 vector."""
        name = "int64_" + "_".join(str(number).replace("-", "minus") for number in numbers)
        return self.constant(name, np.asarray(numbers, np.int64))

    def attribute(self, name: str) -> ir.Value:
        """An attribute of the call, as an int64 vector of one."""
        self._attributes.setdefault(name, ir.Attr(name, ir.AttributeType.INT, None))
        number = ir.val(f"{name}.number")
        given = [ir.RefAttr("value_int", name, ir.AttributeType.INT)]
        node = ir.Node("", "Constant", [], given, name=f"{name}.number", outputs=[number])
        self.nodes.append(node)
        return self.op("Reshape", [node.outputs[0], self.integers(1)], name)

    def declare(self, *names: str) -> None:
        """Names attributes of the call that the body has no use for."""
        for name in names:
            self._attributes.setdefault(name, ir.Attr(name, ir.AttributeType.INT, None))

    def function(
        self,
        name: str,
        inputs: Sequence[ir.Value],
        outputs: Sequence[ir.Value],
        *,
        overload: str = "",
    ) -> ir.Function:
        """The function of the `plc` domain."""
        domains = {"": OPSET, PLC_DOMAIN: 1, TRT_DOMAIN: 1}
        used = {domain: domains[domain] for domain in sorted({node.domain for node in self.nodes})}
        graph = ir.Graph(inputs, outputs, nodes=self.nodes, opset_imports=used)
        attributes = [self._attributes[each] for each in sorted(self._attributes)]
        return ir.Function(PLC_DOMAIN, name, overload, graph=graph, attributes=attributes)
