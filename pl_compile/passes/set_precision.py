"""Weights, activations and caches become numbers of 16 bits; logits and given prompts stay float32.

before:  x = Gather(w, ids)                          w, caches float32
         logits = Gemm(x, w, transB=1)
after:   x = Gather(w', ids)                         w', caches float16 or bfloat16
         logits = Cast(Gemm(x, w', transB=1), to=float32)

For targets whose networks are strongly typed: the types of the tensors are the precision.
"""

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pl_compile.config.contract import LOGITS, PROMPT_TABLE
from pl_compile.errors import ExportError
from pl_compile.passes.edit import Edit
from pl_compile.passes.graph_pass import GraphPass

_TYPES = {
    "float16": (ir.DataType.FLOAT16, np.dtype(np.float16)),
    "bfloat16": (ir.DataType.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}


@dataclass(frozen=True)
class SetPrecision(GraphPass):
    """Changes the types of weights, inputs and outputs, from which those of all else follow.

    Attributes:
        dtype: what float32 becomes.
    """

    dtype: Literal["float16", "bfloat16"]

    def requires(self, model: ir.Model) -> None:
        """No node and no function has float32 written into it: it would stay, and types clash."""
        assert not model.functions, "functions are linked after the precision is set"
        for node in model.graph:
            assert not _writes_float32(node), f"'{node.name}' has float32 written into it"

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        edit, graph = Edit(model), model.graph
        kind, numpy_kind = _TYPES[self.dtype]
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if tensor is not None and tensor.dtype == ir.DataType.FLOAT:
                narrow = _narrowed(tensor.numpy(), numpy_kind, str(value.name))
                value.const_value = ir.tensor(narrow, name=value.name)
                value.dtype = kind
        for value in graph.inputs:
            if value.dtype != ir.DataType.FLOAT:
                continue
            if value.name != PROMPT_TABLE:
                value.dtype = kind
                continue
            users = list(value.uses())
            (cast,) = edit.insert(users[0][0], "Cast", [value], "prompt.cast", to=kind)
            for user, index in users:
                user.replace_input_with(index, cast)
        for value in graph.outputs:
            if value.name != LOGITS and value.dtype == ir.DataType.FLOAT:
                value.dtype = kind
        self._cast_logits(model)
        return True

    def _cast_logits(self, model: ir.Model) -> None:
        graph = model.graph
        for index, value in enumerate(graph.outputs):
            if value.name != LOGITS:
                continue
            wide = ir.val(LOGITS, ir.DataType.FLOAT, value.shape)
            value.name, value.dtype = "logits.narrow", _TYPES[self.dtype][0]
            attributes = {"to": ir.DataType.FLOAT}
            node = ir.node("Cast", [value], attributes, name="logits.cast", outputs=[wide])
            graph.append(node)
            graph.outputs[index] = node.outputs[0]


def _writes_float32(node: ir.Node) -> bool:
    attributes = node.attributes
    types = [attributes[name].value for name in ("to", "dtype") if name in attributes]
    tensors = [each.value for each in attributes.values() if each.type == ir.AttributeType.TENSOR]
    return ir.DataType.FLOAT in [*types, *(tensor.dtype for tensor in tensors)]


def _narrowed(array: NDArray[np.float32], kind: np.dtype[Any], name: str) -> NDArray[Any]:
    """The numbers in 16 bits.

    Raises:
        ExportError: one of them is too large, and would become infinite.
    """
    with np.errstate(over="ignore"):
        narrow = array.astype(kind)
    if not np.isfinite(narrow).all() and np.isfinite(array).all():
        raise ExportError(
            f"storing {name} in {kind}",
            found=f"numbers up to {np.abs(array).max():.3g}",
            expected="numbers that do not become infinite by it",
            fix="Choose another --dtype.",
        )
    return narrow
