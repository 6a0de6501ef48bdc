"""Weights become integers with scales; a node makes floats of them where they are used.

before:  y = MatMul(x, w)                       w float32 [inputs, outputs]
after:   y = MatMul(x, DequantizeLinear(codes, scales))

codes are int8 or int4 [inputs, outputs], scales float32 [inputs / block, outputs], without zero
points: what ONNX Runtime and TensorRT both take. With offsets (what code 0 means; operators and
files call them `lows`), for which neither has a node:

after:   y = MatMul(x, plc::DequantizeBlocks(codes, scales, lows))

Tables of the vocabulary, [vocab, hidden], are quantised along hidden, for the embedding and for the
head alike.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pl_compile.families.names import EMBEDDING
from pl_compile.graph.kernel_operators import DEQUANTIZE_BLOCKS
from pl_compile.graph.operators import PLC_DOMAIN
from pl_compile.passes.edit import Edit, array_of, is_op
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.quantize.gptq import gptq
from pl_compile.quantize.moments import Moments
from pl_compile.quantize.scheme import (
    Quantized,
    Scheme,
    block_error,
    relative_error,
    round_to_nearest,
)


@dataclass(frozen=True)
class WeightError:
    """What rounding did to a weight.

    Attributes:
        weight: its name.
        bits: that it is stored in.
        relative_error: of the weight: the norm of the difference over the norm.
        largest_block_error: the same of the block that changed most.
        relative_output_error: of its products with the calibration's activations; None without.
        bytes: of codes, scales and offsets.
    """

    weight: str
    bits: int
    relative_error: float
    largest_block_error: float
    relative_output_error: float | None
    bytes: int


@dataclass(frozen=True)
class QuantizeWeights(GraphPass):
    """Quantises every product's weight, and the tables of the vocabulary.

    Attributes:
        products: for the layers' weights.
        tables: for embedding and head; None leaves them as they are.
        moments: of the activations; GPTQ is used where they are given, else the nearest codes.
    """

    products: Scheme
    tables: Scheme | None
    moments: Moments | None = None

    @property
    def options(self) -> dict[str, Any]:
        """See `GraphPass.options`: the schemes in words."""
        schemes = {"products": self.products, "tables": self.tables}
        return {name: str(scheme) for name, scheme in schemes.items() if scheme is not None}

    def requires(self, model: ir.Model) -> None:
        """Blocks divide the inputs of each weight."""
        for node in model.graph:
            for value, scheme, along in self._weights_of(node):
                self._check(value, scheme, along)

    def rewrite(self, model: ir.Model) -> tuple[WeightError, ...]:
        """See the module; says what rounding did to each weight."""
        edit = Edit(model)
        done: dict[str, ir.Value] = {}
        errors = []
        for node in list(model.graph):
            for value, scheme, along in self._weights_of(node):
                name = str(value.name)
                if name not in done:
                    done[name], error = self._quantize(edit, node, value, scheme, along)
                    errors.append(error)
                for index, taken in enumerate(node.inputs):
                    if taken is value:
                        node.replace_input_with(index, done[name])
        edit.drop_unused()
        return tuple(errors)

    def _weights_of(self, node: ir.Node) -> list[tuple[ir.Value, Scheme, int]]:
        """Weights that a node takes, each with its scheme and the axis of its inputs."""
        scheme: Scheme | None
        if is_op(node, "MatMul"):
            index, scheme, along = 1, self.products, 0
        elif is_op(node, "Gemm"):
            index, scheme, along = 1, self.tables, 1
        elif is_op(node, "Gather"):
            index, scheme, along = 0, self.tables, 1
        else:
            return []
        value = node.inputs[index]
        if scheme is None or value is None or not value.is_initializer():
            return []
        # Prompts and learned positions are small, and what was trained: they stay as they are.
        if is_op(node, "Gather") and value.name != EMBEDDING:
            return []
        return [(value, scheme, along)]

    def _check(self, value: ir.Value, scheme: Scheme, along: int) -> None:
        assert value.const_value is not None
        scheme.check(str(value.name), value.const_value.shape.numpy()[along])

    def _quantize(
        self, edit: Edit, node: ir.Node, value: ir.Value, scheme: Scheme, along: int
    ) -> tuple[ir.Value, WeightError]:
        name = str(value.name)
        array = array_of(value)
        assert array is not None
        weight = array if along == 0 else array.T
        # Calibration watched the graph as this pass is given it, after `MergeProducts` where the
        # target has that: so both know a merged weight by its merged name (`q_k_v.weight`).
        moment = None if self.moments is None else self.moments.by_weight.get(name)
        if moment is None:
            quantized = round_to_nearest(weight, scheme)
        else:
            quantized = gptq(weight, scheme, moment)
        codes, grid = quantized.codes, [quantized.grid.scales]
        if quantized.grid.offsets is not None:
            grid.append(quantized.grid.offsets)
        if along == 1:
            codes, grid = codes.T, [numbers.T for numbers in grid]
        kind = np.int8 if scheme.bits == 8 else ml_dtypes.int4
        integers = edit.initializer(f"{name}.codes", np.ascontiguousarray(codes).astype(kind))
        attributes: dict[str, Any] = {"axis": along, "block_size": scheme.block}
        if not scheme.block:
            attributes = {"axis": 1 - along}
            grid = [numbers.reshape(-1) for numbers in grid]
        numbers_of_blocks = [
            edit.initializer(f"{name}.{what}", np.ascontiguousarray(numbers))
            for what, numbers in zip(("scales", "lows"), grid, strict=False)
        ]
        (result,) = edit.insert(
            node,
            DEQUANTIZE_BLOCKS if scheme.offset else "DequantizeLinear",
            [integers, *numbers_of_blocks],
            f"{name}.dequantized",
            domain=PLC_DOMAIN if scheme.offset else "",
            **attributes,
        )
        return result, _error(name, weight, quantized, moment)


def _error(
    name: str, weight: NDArray[np.float32], quantized: Quantized, moment: NDArray[np.float64] | None
) -> WeightError:
    of_output = None
    if moment is not None:
        difference = quantized.dequantized() - weight
        # The squared norm of X W is the trace of W' (X' X) W.
        wrong = np.einsum("io,io->", difference, moment.astype(np.float32) @ difference)
        whole = np.einsum("io,io->", weight, moment.astype(np.float32) @ weight)
        of_output = float(np.sqrt(max(0.0, float(wrong)) / max(1e-12, float(whole))))
    scheme, grid = quantized.scheme, quantized.grid
    numbers = grid.scales.size + (0 if grid.offsets is None else grid.offsets.size)
    return WeightError(
        name,
        scheme.bits,
        relative_error(weight, quantized),
        block_error(weight, quantized),
        of_output,
        quantized.codes.size * scheme.bits // 8 + numbers * (2 if scheme.half else 4),
    )
