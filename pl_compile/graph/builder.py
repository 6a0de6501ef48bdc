"""A graph under construction: values in, values out, weights by name.

Thin on purpose: `op` appends one ONNX node, `weight` and `constant` make initializers, and nothing
here knows a model. Everything is built in one pass from the inputs to the outputs.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pl_compile.graph.operators import PLC_DOMAIN

# TensorScatter, Attention, RotaryEmbedding and RMSNormalization are standard from here on.
OPSET = 24
IR_VERSION = 11

# Of collectives. TensorRT looks at the operator's name alone; ONNX Runtime finds ours here.
DIST_DOMAIN = "plc.dist"


class GraphBuilder:
    """Collects inputs, nodes, initializers and outputs.

    Args:
        weights: float32 arrays by our names (`families.names`); those that are used become
            initializers under the same names.
    """

    def __init__(self, weights: Mapping[str, NDArray[Any]]) -> None:
        self._weights = weights
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """A graph input; text in `shape` names a dimension that may differ from run to run."""
        value = ir.val(name, dtype, shape)
        self._inputs.append(value)
        return value

    def output(
        self, value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[int | str]
    ) -> None:
        """Makes `value` the graph output `name`."""
        value.name = name
        value.dtype = dtype
        value.shape = ir.Shape(shape)
        self._outputs.append(value)

    def has_weight(self, name: str) -> bool:
        """Whether the base has this weight (a bias, say)."""
        return name in self._weights

    def weight(self, name: str) -> ir.Value:
        """The weight `name` as an initializer."""
        if name in self._initializers:
            return self._initializers[name]
        return self.initializer(name, self._weights[name])

    def initializer(self, name: str, array: NDArray[Any]) -> ir.Value:
        """A new initializer."""
        assert name not in self._initializers, f"two initializers are called '{name}'"
        tensor = ir.tensor(np.ascontiguousarray(array), name=name)
        self._initializers[name] = ir.val(name, const_value=tensor)
        return self._initializers[name]

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """A constant; equal ones of a name are one value, and each other one gets a number."""
        for number in itertools.count():
            full = f"{name}.{number}" if number else name
            known = self._initializers.get(full)
            if known is None:
                return self.initializer(full, array)
            if np.array_equal(_array(known), array):
                return known
        raise AssertionError("there is always a name that is free")

    def integers(self, *values: int) -> ir.Value:
        """An int64 vector constant."""
        return self.constant(*int64_vector(*values))

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        *,
        domain: str = "",
        outputs: int = 1,
        **attributes: Any,
    ) -> ir.Value:
        """Appends a node and returns its first output.

        Args:
            op_type: the operator.
            inputs: its inputs; None for one that is left out.
            name: of the node; its output is called `{name}/out`.
            domain: "" for standard operators.
            outputs: how many outputs it has.
            attributes: as the operator names them.
        """
        return self.ops(op_type, inputs, name, domain=domain, outputs=outputs, **attributes)[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        *,
        domain: str = "",
        outputs: int,
        **attributes: Any,
    ) -> tuple[ir.Value, ...]:
        """As `op`, but returns all outputs."""
        names = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        node = ir.node(
            op_type,
            inputs,
            attributes,
            domain=domain,
            name=name,
            outputs=[ir.val(f"{output}/out") for output in names],
        )
        self._nodes.append(node)
        return tuple(node.outputs)

    def _collectives(self) -> dict[str, int]:
        divided = any(node.domain == DIST_DOMAIN for node in self._nodes)
        return {DIST_DOMAIN: 1} if divided else {}

    def model(self, name: str) -> ir.Model:
        """The finished model, without the functions of the `plc` domain."""
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": OPSET, PLC_DOMAIN: 1, **self._collectives()},
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="plc")


def int64_vector(*values: int) -> tuple[str, NDArray[np.int64]]:
    """The name and the array of an int64 vector constant: `int64_0_minus1`, `[0, -1]`."""
    name = "int64_" + "_".join(str(value).replace("-", "minus") for value in values)
    return name, np.asarray(values, np.int64)


def _array(initializer: ir.Value) -> NDArray[Any]:
    assert initializer.const_value is not None
    return initializer.const_value.numpy()
