"""Weights in blocks go to ONNX Runtime's own kernels, which read the integers as they are.

before:  y = MatMul(x, DequantizeLinear(codes, scales, axis=0, block_size=32))
after:   y = com.microsoft::MatMulNBits(x, packed, scales, bits=4, block_size=32)

before:  y = Gemm(x, DequantizeLinear(table, scales, axis=1, block_size=32), transB=1)
         e = Gather(DequantizeLinear(table, scales, axis=1, block_size=32), ids)
after:   y = com.microsoft::MatMulNBits(x, packed, scales, bits=4, block_size=32)
         e = Reshape(com.microsoft::GatherBlockQuantized(packed, ids, scales'), [0, 0, hidden])

ONNX Runtime makes the first form of the pairs by itself when it loads a file: having it made here
saves that time. It never does so for the table, which it would hold as floats. Embedding and head
read one table. `packed` is uint8 [outputs, inputs / block, block * bits / 8], the lower half first,
and codes are counted from their least.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pl_compile.graph.operators import ORT_DOMAIN
from pl_compile.passes.edit import Edit, array_of, is_op
from pl_compile.passes.graph_pass import GraphPass

# ONNX Runtime computes with 8-bit activations at this level, the fastest.
_ACCURACY_LEVEL = 4


@dataclass(frozen=True)
class UseMatMulNBits(GraphPass):
    """Lowers blocked weights for ONNX Runtime; weights by channel stay as they are."""

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        edit = Edit(model)
        changed = False
        for node in list(model.graph):
            if is_op(node, "DequantizeLinear") and "block_size" in node.attributes:
                _lower(edit, node)
                changed = True
        edit.drop_unused()
        return changed

    def ensures(self, model: ir.Model) -> None:
        """No blocked weight is made floats again."""
        left = [node for node in model.graph if is_op(node, "DequantizeLinear")]
        assert not any("block_size" in node.attributes for node in left)


def _lower(edit: Edit, dequantize: ir.Node) -> None:
    integers = dequantize.inputs[0]
    codes, scales = array_of(integers), array_of(dequantize.inputs[1])
    assert integers is not None
    assert integers.const_value is not None
    assert codes is not None
    assert scales is not None
    bits = 4 if integers.const_value.dtype == ir.DataType.INT4 else 8
    along = dequantize.attributes["axis"].as_int()
    block = dequantize.attributes["block_size"].as_int()
    if along == 0:
        codes, scales = codes.T, scales.T
    outputs, inputs = codes.shape
    name = str(integers.name).removesuffix(".codes")
    packed = edit.initializer(f"{name}.packed", _packed(codes.astype(np.int8), bits, block))
    flat = edit.initializer(f"{name}.block_scales", np.ascontiguousarray(scales).reshape(-1))
    for node in [user for user, _ in dequantize.outputs[0].uses()]:
        if is_op(node, "Gather"):
            taken = _gather(edit, node, packed, scales, bits, block, inputs)
        else:
            (taken,) = edit.insert(
                node,
                "MatMulNBits",
                [node.inputs[0], packed, flat],
                f"{node.name}.{bits}_bits",
                domain=ORT_DOMAIN,
                K=inputs,
                N=outputs,
                bits=bits,
                block_size=block,
                accuracy_level=_ACCURACY_LEVEL,
            )
        edit.replace(node, [taken])
    edit.graph.opset_imports[ORT_DOMAIN] = 1


def _gather(
    edit: Edit,
    node: ir.Node,
    packed: ir.Value,
    scales: NDArray[np.float32],
    bits: int,
    block: int,
    hidden: int,
) -> ir.Value:
    name = str(node.name)
    # A block is an axis of its own in the table, and each has one scale along it.
    shaped = edit.initializer(f"{name}.scales", np.ascontiguousarray(scales)[..., None])
    (rows,) = edit.insert(
        node,
        "GatherBlockQuantized",
        [packed, node.inputs[1], shaped],
        f"{name}.{bits}_bits",
        domain=ORT_DOMAIN,
        gather_axis=0,
        quantize_axis=2,
        block_size=block,
        bits=bits,
    )
    shape = edit.initializer(f"{name}.shape", np.asarray([0, 0, hidden], np.int64))
    (joined,) = edit.insert(node, "Reshape", [rows, shape], f"{name}.joined")
    return joined


def _packed(codes: NDArray[np.int8], bits: int, block: int) -> NDArray[np.uint8]:
    """int8 `[outputs, inputs]` to uint8 `[outputs, blocks, block * bits / 8]`."""
    counted = (codes.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    blocks: NDArray[np.uint8] = counted.reshape(len(codes), -1, block)
    if bits == 8:
        return blocks
    pairs: NDArray[np.uint8] = (blocks[..., 0::2] + 16 * blocks[..., 1::2]).astype(np.uint8)
    return pairs
