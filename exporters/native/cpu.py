"""Target `native-cpu`: ONNX Runtime on CPU with this project's own kernels (runtime/kernels).

ONNX Runtime orders the steps and runs the threads; our kernels compute all that takes long. ONNX
Runtime's own kernels for weights of a few bits reach a tenth of what the processor's integer
instructions do, and cannot keep offsets (docs/performance.md has both measured). The calls, in the
domain `plc`:

    BlockProduct       a product with weights of 4 or 8 bits in blocks, SwiGLU or GeGLU included
    BlockLookup        rows of a table in the same layout
    PagedAttention     rotary positions, cache and attention of all heads
    PackedAttention    the same with padded rows, for a base that is divided

Each call has a body in standard operators in the same file, a function of the model. Where a kernel
is registered for an operator, ONNX Runtime calls it and ignores the function
(`tests/runtime/test_kernels.py` holds this). Elsewhere it runs the bodies, slower, with the weights
as floats in memory.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pl_compile.artifact.bundle import KERNELS_AT_FIRST
from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.kernel_layout import TILE
from pl_compile.config.targets import TARGETS
from pl_compile.errors import ExportError
from pl_compile.exporters.bodies import attend_to_longest, attention_body, gated, library_of
from pl_compile.exporters.exporter import PassInputs, Stages
from pl_compile.exporters.function_body import FunctionBody
from pl_compile.exporters.native.paged_body import paged_attention_body
from pl_compile.exporters.onnx.files import OnnxFiles
from pl_compile.exporters.options import check_options, when
from pl_compile.exporters.rounding import check_blocks, quantize_passes
from pl_compile.graph.kernel_operators import (
    BLOCK_LOOKUP,
    BLOCK_LOOKUP_INPUTS,
    BLOCK_PRODUCT,
    BLOCK_PRODUCT_INPUTS,
    GATES,
    PACKED_ATTENTION,
    PACKED_ATTENTION_INPUTS,
    PAGED_ATTENTION,
    PAGED_ATTENTION_16,
)
from pl_compile.graph.operators import GEGLU, PLC_DOMAIN
from pl_compile.passes.cut_logits import CutLogits
from pl_compile.passes.fuse_residual_norms import FuseResidualNorms
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.link_functions import Library, LinkFunctions
from pl_compile.passes.merge_products import MergeProducts
from pl_compile.passes.sample_in_graph import SampleInGraph
from pl_compile.passes.use_own_products import UseOwnProducts
from pl_compile.passes.use_packed_attention import UsePackedAttention

# The width of a head is a multiple of this: of what a vector of the kernels holds.
_HEAD_DIM_MULTIPLE = 16

# The third interface of runtime/kernels added norms of heads, windows, scales and softcaps to
# attention, and GeGLU to products; the fourth added PagedAttention, the fifth PagedAttention16, and
# tiles to products.
_THIRD, _FOURTH, _FIFTH = 3, 4, 5
# Every interface knows these attributes of attention.
_ATTENTION_OF_ALL = {"heads", "kv_heads"}


class NativeCpuExporter(OnnxFiles):
    """ONNX Runtime on CPU with this project's own kernels."""

    target = "native-cpu"

    def check(self, config: DecoderConfig, contract: GraphContract, options: BuildOptions) -> None:
        """See `Exporter.check`."""
        check_options(self.target, options)
        if config.head_dim % _HEAD_DIM_MULTIPLE:
            raise ExportError(
                "choosing this project's kernels",
                found=f"heads of {config.head_dim}",
                expected=f"a multiple of {_HEAD_DIM_MULTIPLE}",
                fix="Use --target onnx-cpu.",
            )
        if options.quantization != "none":
            blocks = TARGETS[self.target].blocks
            if options.block_or_default not in blocks:
                raise ExportError(
                    "choosing this project's kernels",
                    found=f"blocks of {options.block_or_default}",
                    expected=" or ".join(map(str, blocks)),
                    fix="Choose another --block, or --target onnx-cpu.",
                )
            check_blocks(config, options, fix="Use --target onnx-cpu, which takes other blocks.")

    def passes(self, inputs: PassInputs) -> Stages:
        """See `Exporter.passes`."""
        return Stages([MergeProducts()], _lower(inputs), _lower(inputs.in_floats))


def _lower(inputs: PassInputs) -> Sequence[GraphPass]:
    options, candidates = inputs.options, inputs.contract.candidates
    return [
        # After MergeProducts: the kernel takes queries, keys and values as one product.
        UsePackedAttention(options.cache_bits),
        FuseResidualNorms(),
        # After MergeProducts: `inputs.moments` knows weights by the names that it leaves.
        *quantize_passes(options, inputs.moments, native=True),
        # After rounding, before LinkFunctions: it takes the nodes that rounding leaves, and gates.
        *when(options.quantization != "none", UseOwnProducts()),
        # After UseOwnProducts: it looks for the product that gives the logits.
        *when(inputs.contract.logit_tiles, CutLogits()),
        *when(candidates > 0, SampleInGraph(candidates)),
        # Last: a body is made for each call of the domain plc, so all calls must be there.
        LinkFunctions(LIBRARY),
    ]


def kernels_needed(model: ir.Model) -> int:
    """The lowest number of the kernels' interface that computes all calls of a lowered graph right.

    Kernels of a lower number would ignore inputs and attributes that they do not know.
    """
    calls = [node for node in model.graph if node.domain == PLC_DOMAIN]
    called = {call.op_type for call in calls}
    if PAGED_ATTENTION_16 in called or any(_chooses_tiles(call) for call in calls):
        return _FIFTH
    if PAGED_ATTENTION in called:
        return _FOURTH
    return _THIRD if any(_is_of_third(call) for call in calls) else KERNELS_AT_FIRST


def _chooses_tiles(call: ir.Node) -> bool:
    return call.op_type == BLOCK_PRODUCT and len(call.inputs) == len(BLOCK_PRODUCT_INPUTS)


def _is_of_third(call: ir.Node) -> bool:
    """Whether a call has what only the third interface knows: see docs/kernels.md."""
    if call.op_type == PACKED_ATTENTION:
        last = max(index for index, value in enumerate(call.inputs) if value is not None)
        return last > PACKED_ATTENTION_INPUTS.index("sin") or bool(
            call.attributes.keys() - _ATTENTION_OF_ALL
        )
    gated = call.attributes.get("gated")
    return gated is not None and GATES.get(gated.as_int()) == GEGLU


def _product_body(call: ir.Node) -> ir.Function:
    body = FunctionBody(call, BLOCK_PRODUCT_INPUTS)  # all tiles are computed, whichever are chosen
    x = body.inputs["x"]
    weight = _weight(body, call)
    gate = GATES.get(call.attributes["gated"].as_int())
    if gate is None:
        return body.function(body.op("MatMul", [x, _without_padding(body, call, weight)], "y"))
    pairs = body.op("Reshape", [weight, body.integers(0, -1, 2, TILE)], "pairs")
    halves = []
    for index, part in enumerate(("gate", "up")):
        tiles = body.op("Gather", [pairs, body.integers(index)], f"{part}.tiles", axis=2)
        half = body.op("Reshape", [tiles, body.integers(0, -1)], f"{part}.weight")
        halves.append(body.op("MatMul", [x, half], part))
    return body.function(gated(body, gate, *halves))


def _lookup_body(call: ir.Node) -> ir.Function:
    body = FunctionBody(call, BLOCK_LOOKUP_INPUTS)
    weight = _without_padding(body, call, _weight(body, call))
    table = body.op("Transpose", [weight], "table", perm=[1, 0])
    return body.function(body.op("Gather", [table, body.inputs["ids"]], "rows", axis=0))


def _weight(body: FunctionBody, call: ir.Node) -> ir.Value:
    """The weight as floats `[inputs, tiles * 16]`, read from the layout of `kernels.h`."""
    op, bits = body.op, call.attributes["bits"].as_int()
    codes, steps, lows = body.inputs["codes"], body.inputs["steps"], body.inputs.get("lows")
    if bits == 4:
        axis = body.integers(2)
        fifteen = body.constant("fifteen", np.asarray(15, np.uint8))
        four = body.constant("four", np.asarray(4, np.uint8))
        lower = op("BitwiseAnd", [codes, fifteen], "low")
        upper = op("BitShift", [codes, four], "high", direction="RIGHT")
        nibbles = [
            op("Unsqueeze", [nibble, axis], f"{name}.half")
            for name, nibble in (("low", lower), ("high", upper))
        ]
        codes = op("Concat", nibbles, "halves", axis=2)
        codes = op("Transpose", [codes], "inputs_first", perm=[1, 2, 4, 0, 3])
    else:
        codes = op("Transpose", [codes], "inputs_first", perm=[1, 3, 0, 2])
    blocks = op("Shape", [steps], "blocks", start=1, end=2)
    tiles = op("Shape", [steps], "weight.tiles", start=0, end=1)
    width = op("Mul", [tiles, body.integers(TILE)], "width")
    shape = op("Concat", [blocks, body.integers(-1), width], "blocked.shape", axis=0)
    floats = op("Cast", [codes], "floats", to=ir.DataType.FLOAT)
    middle = body.constant("middle", np.asarray(2 ** (bits - 1), np.float32))
    blocked = op("Reshape", [op("Sub", [floats, middle], "centred"), shape], "blocked")

    def of_blocks(numbers: ir.Value, name: str) -> ir.Value:
        turned = op("Transpose", [numbers], f"{name}.blocks_first", perm=[1, 0, 2])
        as_floats = op("Cast", [turned], f"{name}.floats", to=ir.DataType.FLOAT)
        rows = op("Concat", [blocks, body.integers(1), width], f"{name}.shape", axis=0)
        return op("Reshape", [as_floats, rows], f"{name}.of_blocks")

    weight = op("Mul", [blocked, of_blocks(steps, "steps")], "scaled")
    if lows is not None:
        weight = op("Add", [weight, of_blocks(lows, "lows")], "lifted")
    flat = op("Concat", [body.integers(-1), width], "flat.shape", axis=0)
    return op("Reshape", [weight, flat], "weight")


def _without_padding(body: FunctionBody, call: ir.Node, weight: ir.Value) -> ir.Value:
    columns = call.attributes["columns"].as_int()
    bounds = [body.integers(0), body.integers(columns), body.integers(1)]
    return body.op("Slice", [weight, *bounds], "weight.unpadded")


# The bodies of all calls that this target's passes leave.
LIBRARY: Library = {
    **library_of(attend_to_longest),
    PACKED_ATTENTION: lambda call: attention_body(call, PACKED_ATTENTION_INPUTS, attend_to_longest),
    PAGED_ATTENTION: paged_attention_body,
    PAGED_ATTENTION_16: paged_attention_body,
    BLOCK_PRODUCT: _product_body,
    BLOCK_LOOKUP: _lookup_body,
}
