"""Weights in blocks go to this project's own kernels (runtime/kernels), in their layout.

before:  y = MatMul(x, plc::DequantizeBlocks(codes, scales, lows, axis=0, block_size=32))
after:   y = plc::BlockProduct(x, codes', steps, lows', bits=4, block=32, columns=..., gated=0)

before:  y = Gemm(x, DequantizeLinear(table, scales, axis=1, block_size=32), transB=1)
         e = Gather(DequantizeLinear(table, scales, axis=1, block_size=32), ids)
after:   y = plc::BlockProduct(x, codes', steps, bits=8, block=32, columns=..., gated=0)
         e = plc::BlockLookup(codes', steps, ids, bits=8, block=32, columns=...)

before:  y = plc::SwiGlu(MatMul(x, DequantizeLinear([wg | wu], scales, axis=0, block_size=32)))
after:   y = plc::BlockProduct(x, [wg0 | wu0 | wg1 | wu1 ...], gated=1)     in tiles of 16

codes', steps and lows' are codes, scales and lows (offsets), as `runtime/kernels/kernels.h` lays
them out. Weights of 4 bits have offsets, those of 8 bits have none: `exporters/rounding.py` says
why.
gated is 2 for a GeGlu. Embedding and head read one table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pl_compile.config.kernel_layout import TILE
from pl_compile.graph.kernel_operators import (
    BLOCK_LOOKUP,
    BLOCK_PRODUCT,
    DEQUANTIZE_BLOCKS,
    GATES,
)
from pl_compile.graph.operators import PLC_DOMAIN
from pl_compile.passes.edit import Edit, array_of, is_op
from pl_compile.passes.graph_pass import GraphPass


@dataclass(frozen=True)
class UseOwnProducts(GraphPass):
    """Lowers all weights; `NativeCpuExporter.check` refuses those that are not in blocks."""

    def requires(self, model: ir.Model) -> None:
        """Weights in blocks are those of plain products, or tables."""
        for node in model.graph:
            if not _is_dequantizing(node):
                continue
            assert "block_size" in node.attributes
            for user, index in node.outputs[0].uses():
                if is_op(user, "Gather"):
                    assert index == 0
                    continue
                assert index == 1
                assert len(user.inputs) == 2
                assert is_op(user, "Gemm") or is_op(user, "MatMul")

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        edit = Edit(model)
        changed = False
        for node in list(model.graph):
            if _is_dequantizing(node):
                _lower(edit, node)
                changed = True
        edit.drop_unused()
        return changed

    def ensures(self, model: ir.Model) -> None:
        """No weight is made floats again."""
        assert not any(_is_dequantizing(node) for node in model.graph)


def _is_dequantizing(node: ir.Node) -> bool:
    return is_op(node, "DequantizeLinear") or is_op(node, DEQUANTIZE_BLOCKS, PLC_DOMAIN)


@dataclass(frozen=True)
class _Weight:
    """Codes `[inputs, columns]` around 0; scales and lows (offsets) `[blocks, columns]`."""

    name: str
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    lows: NDArray[np.float32] | None
    bits: int
    block: int

    @property
    def interleaved(self) -> "_Weight":
        """Of a weight `[gate | up]`: tiles of gate and up in turn."""
        halves = np.arange(self.codes.shape[1]).reshape(2, -1, TILE)
        columns = halves.transpose(1, 0, 2).reshape(-1)
        return replace(
            self,
            name=f"{self.name}.gated",
            codes=self.codes[:, columns],
            scales=self.scales[:, columns],
            lows=None if self.lows is None else self.lows[:, columns],
        )


def _lower(edit: Edit, dequantize: ir.Node) -> None:
    weight = _read(dequantize)
    for user in [user for user, _ in dequantize.outputs[0].uses()]:
        if is_op(user, "Gather"):
            codes, steps, *lows = _packed(edit, weight)
            _replace(edit, user, user, BLOCK_LOOKUP, weight, [codes, steps, user.inputs[1], *lows])
            continue
        gate = _gate(user) if weight.codes.shape[1] % (2 * TILE) == 0 else None
        if gate is None:
            inputs = [user.inputs[0], *_packed(edit, weight)]
            _replace(edit, user, user, BLOCK_PRODUCT, weight, inputs, gated=0)
        else:
            inputs = [user.inputs[0], *_packed(edit, weight.interleaved)]
            (gated,) = (code for code, op_type in GATES.items() if op_type == gate.op_type)
            _replace(edit, user, gate, BLOCK_PRODUCT, weight, inputs, gated=gated)


def _read(dequantize: ir.Node) -> _Weight:
    integers = dequantize.inputs[0]
    codes, scales = array_of(integers), array_of(dequantize.inputs[1])
    lows = array_of(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None
    assert integers is not None
    assert integers.const_value is not None
    assert codes is not None
    assert scales is not None
    if dequantize.attributes["axis"].as_int() == 1:
        codes, scales, lows = codes.T, scales.T, None if lows is None else lows.T
    return _Weight(
        str(integers.name).removesuffix(".codes"),
        codes.astype(np.int8),
        scales,
        lows,
        4 if integers.const_value.dtype == ir.DataType.INT4 else 8,
        dequantize.attributes["block_size"].as_int(),
    )


def _packed(edit: Edit, weight: _Weight) -> list[ir.Value]:
    """Codes, steps and, if there are some, lows, in the kernels' layout, as initializers."""
    packed = [
        edit.initializer(f"{weight.name}.packed", packed_codes(weight.codes, weight.bits)),
        edit.initializer(f"{weight.name}.steps", packed_grid(weight.scales)),
    ]
    if weight.lows is not None:
        packed.append(edit.initializer(f"{weight.name}.packed_lows", packed_grid(weight.lows)))
    return packed


def _replace(
    edit: Edit,
    product: ir.Node,
    replaced: ir.Node,
    op_type: str,
    weight: _Weight,
    inputs: Sequence[ir.Value | None],
    **attributes: Any,
) -> None:
    """Puts a kernel where a product or lookup stands; it gives what `replaced` gave."""
    (result,) = edit.insert(
        product,
        op_type,
        inputs,
        f"{product.name}.blocks",
        domain=PLC_DOMAIN,
        bits=weight.bits,
        block=weight.block,
        columns=weight.codes.shape[1],
        **attributes,
    )
    edit.replace(replaced, [result])


def _gate(product: ir.Node) -> ir.Node | None:
    """The operator that joins gate and up, where a product gives both of them to it alone."""
    users = [user for user, _ in product.outputs[0].uses()]
    is_gate = (
        len(users) == 1 and users[0].domain == PLC_DOMAIN and users[0].op_type in GATES.values()
    )
    return users[0] if is_gate and len(users[0].inputs) == 1 else None


def packed_codes(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """int8 `[inputs, columns]` around 0 to uint8 as `runtime/kernels/kernels.h` lays it out."""
    inputs, columns = codes.shape
    tiles = -(-columns // TILE)
    counted = np.pad(codes.astype(np.int16), ((0, 0), (0, tiles * TILE - columns)))
    counted = (counted + 2 ** (bits - 1)).astype(np.uint8)
    if bits == 8:
        four = counted.reshape(inputs // 4, 4, tiles, TILE)
        return np.ascontiguousarray(four.transpose(2, 0, 3, 1))
    eight = counted.reshape(inputs // 8, 2, 4, tiles, TILE)
    both: NDArray[np.uint8] = eight[:, 0] | (eight[:, 1] << 4)
    return np.ascontiguousarray(both.transpose(2, 0, 3, 1))


def packed_grid(numbers: NDArray[np.float32]) -> NDArray[np.float16]:
    """float32 `[blocks, columns]` to float16 `[columns / 16, blocks, 16]`."""
    blocks, columns = numbers.shape
    tiles = -(-columns // TILE)
    padded = np.pad(numbers, ((0, 0), (0, tiles * TILE - columns))).astype(np.float16)
    return np.ascontiguousarray(padded.reshape(blocks, tiles, TILE).transpose(1, 0, 2))
