"""Products of integers: activations are rounded too, each row by its own scale.

before:  y = MatMul(x, DequantizeLinear(codes, scales, axis=1))
after:   y = plc::IntegerProduct(x, codes, scales)

before:  y = Gemm(x, DequantizeLinear(table, scales, axis=0), transB=1)
         e = Gather(DequantizeLinear(table, scales, axis=0), ids)
after:   y = plc::IntegerProduct(x, table', scales)
         e = Cast(Gather(table, ids)) * Gather(scales, ids)

codes are int8 [inputs, outputs] with a scale for each output. A target's library has the body of
`IntegerProduct`. The head reads the table transposed, so a tied table is stored twice.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pl_compile.graph.builder import PLC_DOMAIN
from pl_compile.passes.edit import Edit, array_of, is_op
from pl_compile.passes.graph_pass import GraphPass


@dataclass(frozen=True)
class UseIntegerProducts(GraphPass):
    """Lowers weights of 8 bits by channel; others stay as they are."""

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        edit = Edit(model)
        changed = False
        for node in list(model.graph):
            if is_op(node, "DequantizeLinear") and "block_size" not in node.attributes:
                for user in [user for user, _ in node.outputs[0].uses()]:
                    edit.replace(user, [_lowered(edit, user, node)])
                changed = True
        edit.drop_unused()
        return changed

    def ensures(self, model: ir.Model) -> None:
        """No weight by channel is made floats again."""
        left = [node for node in model.graph if is_op(node, "DequantizeLinear")]
        assert all("block_size" in node.attributes for node in left)


def _lowered(edit: Edit, user: ir.Node, dequantize: ir.Node) -> ir.Value:
    codes, scales = dequantize.inputs[0], dequantize.inputs[1]
    assert codes is not None
    assert scales is not None
    name = str(user.name)
    if is_op(user, "Gather"):
        return _gathered(edit, user, codes, scales)
    if is_op(user, "Gemm"):
        table = array_of(codes)
        assert table is not None
        turned = str(codes.name).removesuffix(".codes") + ".transposed"
        codes = edit.initializer(turned, np.ascontiguousarray(table.T))
    inputs = [user.inputs[0], codes, scales]
    (result,) = edit.insert(user, "IntegerProduct", inputs, f"{name}.integers", domain=PLC_DOMAIN)
    return result


def _gathered(edit: Edit, user: ir.Node, codes: ir.Value, scales: ir.Value) -> ir.Value:
    name, ids = str(user.name), user.inputs[1]
    (rows,) = edit.insert(user, "Gather", [codes, ids], f"{name}.codes")
    (rows,) = edit.insert(user, "Cast", [rows], f"{name}.floats", to=ir.DataType.FLOAT)
    (row_scales,) = edit.insert(user, "Gather", [scales, ids], f"{name}.row_scales")
    last = edit.initializer("int64_minus1", np.asarray([-1], np.int64))
    (column,) = edit.insert(user, "Unsqueeze", [row_scales, last], f"{name}.row_scales.column")
    (scaled,) = edit.insert(user, "Mul", [rows, column], f"{name}.scaled")
    return scaled
