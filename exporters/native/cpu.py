"""Target `native-cpu`: ONNX Runtime on CPU with this project's own kernels (runtime/kernels).

ONNX Runtime plans and threads; what takes the time is ours. Its own kernels for weights of a few
bits reach a tenth of what the processor's integer instructions do, and cannot keep offsets
(docs/performance.md has both measured). The calls, in the domain `plc`:

    BlockProduct       a product with weights of 4 or 8 bits in blocks, SwiGLU included
    BlockLookup        rows of a table that is stored alike
    PackedAttention    rotary positions, cache and attention of all heads

Each call has a body in standard operators in the same file. Where the kernels are registered they
win; elsewhere ONNX Runtime runs the bodies, slower, with the weights as floats in memory.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.targets import TARGETS
from pl_compile.errors import ExportError
from pl_compile.exporters.function_body import FunctionBody
from pl_compile.exporters.onnx.cpu import cached_attention_function
from pl_compile.exporters.onnx.files import OnnxFiles
from pl_compile.exporters.options import check_blocks, check_options, quantize_passes, when
from pl_compile.graph.builder import PLC_DOMAIN
from pl_compile.passes.fuse_residual_norms import FuseResidualNorms
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.link_functions import LinkFunctions
from pl_compile.passes.merge_products import MergeProducts
from pl_compile.passes.quantize_weights import WeightError
from pl_compile.passes.sample_in_graph import SampleInGraph
from pl_compile.passes.use_block_products import TILE, UseBlockProducts, variant
from pl_compile.passes.use_packed_attention import PLAIN, ROTARY, UsePackedAttention
from pl_compile.quantize.moments import Moments

# Heads are a multiple of what a vector holds.
_HEADS = 16


class NativeCpuExporter(OnnxFiles):
    """ONNX Runtime on CPU with this project's own kernels."""

    target = "native-cpu"

    def check(self, config: DecoderConfig, contract: GraphContract, options: BuildOptions) -> None:
        """See `Exporter.check`."""
        check_options(self.target, options)
        if config.head_dim % _HEADS:
            raise ExportError(
                "choosing this project's kernels",
                found=f"heads of {config.head_dim}",
                expected=f"a multiple of {_HEADS}",
                fix="Use --target onnx-cpu.",
            )
        if options.quantization != "none":
            blocks = TARGETS[self.target].blocks
            if options.scale_block not in blocks:
                raise ExportError(
                    "choosing this project's kernels",
                    found=f"blocks of {options.scale_block}",
                    expected=" or ".join(map(str, blocks)),
                    fix="Choose another --block, or --target onnx-cpu.",
                )
            check_blocks(config, options, fix="Use --target onnx-cpu, which takes other blocks.")

    def passes(
        self,
        config: DecoderConfig,
        contract: GraphContract,
        options: BuildOptions,
        moments: Moments | None,
        errors: list[WeightError],
    ) -> Sequence[GraphPass]:
        """See `Exporter.passes`."""
        rotary = ROTARY if config.rope_theta else PLAIN
        library = [packed_attention_function(rotary), cached_attention_function()]
        quantized = options.quantization != "none"
        return [
            *self.prepare_passes(),
            UsePackedAttention(config.heads, config.kv_heads),
            FuseResidualNorms(),
            *quantize_passes(options, moments, errors, native=True),
            *when(quantized, UseBlockProducts()),
            *when(contract.candidates > 0, SampleInGraph(contract.candidates)),
            LinkFunctions([*library, *when(quantized, *block_functions())]),
        ]

    def prepare_passes(self) -> Sequence[GraphPass]:
        """See `Exporter.prepare_passes`."""
        return [MergeProducts()]

    def cpu_passes(self, config: DecoderConfig, contract: GraphContract) -> Sequence[GraphPass]:
        """See `Exporter.cpu_passes`."""
        floats = self.passes(config, contract, BuildOptions("none"), None, [])
        return floats[len(self.prepare_passes()) :]


def block_functions() -> list[ir.Function]:
    """The bodies of all variants of `BlockProduct` and `BlockLookup`."""
    functions = []
    for bits, lows in ((4, False), (4, True), (8, False)):
        functions.append(_lookup_function(bits, lows))
        functions += [_product_function(bits, lows, gated) for gated in (False, True)]
    return functions


def _product_function(bits: int, lows: bool, gated: bool) -> ir.Function:
    body = FunctionBody()
    op = body.op
    x, stored = ir.val("x"), _stored(lows)
    weight = _weight(body, bits, stored)
    if gated:
        pairs = op("Reshape", [weight, body.integers(0, -1, 2, TILE)], "pairs")
        halves = []
        for index, part in enumerate(("gate", "up")):
            tiles = op("Gather", [pairs, body.integers(index)], f"{part}.tiles", axis=2)
            half = op("Reshape", [tiles, body.integers(0, -1)], f"{part}.weight")
            halves.append(op("MatMul", [x, half], part))
        gate, up = halves
        silu = op("Mul", [gate, op("Sigmoid", [gate], "sigmoid")], "silu")
        y = op("Mul", [silu, up], "y")
        body.declare("columns")
    else:
        y = op("MatMul", [x, _without_padding(body, weight)], "y")
    body.declare("bits", "block", "gated")
    name = variant(bits, lows, gated)
    return body.function("BlockProduct", [x, *stored], [y], overload=name)


def _lookup_function(bits: int, lows: bool) -> ir.Function:
    body = FunctionBody()
    ids, stored = ir.val("ids"), _stored(lows)
    weight = _without_padding(body, _weight(body, bits, stored))
    table = body.op("Transpose", [weight], "table", perm=[1, 0])
    rows = body.op("Gather", [table, ids], "rows", axis=0)
    body.declare("bits", "block")
    inputs = [*stored[:2], ids, *stored[2:]]
    return body.function("BlockLookup", inputs, [rows], overload=variant(bits, lows, gated=False))


def _stored(lows: bool) -> list[ir.Value]:
    return [ir.val(name) for name in ("codes", "steps", "lows")[: 3 if lows else 2]]


def _weight(body: FunctionBody, bits: int, stored: Sequence[ir.Value]) -> ir.Value:
    """Floats `[inputs, tiles * 16]`, out of the layout of `runtime/kernels/kernels.h`."""
    op = body.op
    codes, steps = stored[:2]
    if bits == 4:
        axis = body.integers(2)
        fifteen = body.constant("fifteen", np.asarray(15, np.uint8))
        four = body.constant("four", np.asarray(4, np.uint8))
        low = op("Unsqueeze", [op("BitwiseAnd", [codes, fifteen], "low"), axis], "low.half")
        high = op("BitShift", [codes, four], "high", direction="RIGHT")
        high = op("Unsqueeze", [high, axis], "high.half")
        codes = op("Concat", [low, high], "halves", axis=2)
        codes = op("Transpose", [codes], "inputs_first", perm=[1, 2, 4, 0, 3])
    else:
        codes = op("Transpose", [codes], "inputs_first", perm=[1, 3, 0, 2])
    blocks = op("Shape", [steps], "blocks", start=1, end=2)
    tiles = op("Shape", [steps], "tiles", start=0, end=1)
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
    if len(stored) == 3:
        weight = op("Add", [weight, of_blocks(stored[2], "lows")], "lifted")
    flat = op("Concat", [body.integers(-1), width], "flat.shape", axis=0)
    return op("Reshape", [weight, flat], "weight")


def _without_padding(body: FunctionBody, weight: ir.Value) -> ir.Value:
    bounds = [body.integers(0), body.attribute("columns"), body.integers(1)]
    return body.op("Slice", [weight, *bounds], "weight.unpadded")


def packed_attention_function(kind: str) -> ir.Function:
    """`plc::PackedAttention` in standard operators, around `plc::CachedAttention`."""
    body = FunctionBody()
    op = body.op
    names = ["qkv", "past_key", "past_value", "past_lengths"]
    if kind == ROTARY:
        names += ["cos", "sin"]
    inputs = [ir.val(name) for name in names]
    qkv, past_key, past_value, past_lengths = inputs[:4]
    dim = op("Shape", [past_key], "dim", start=3, end=4)
    heads, kv_heads = body.attribute("heads"), body.attribute("kv_heads")
    of_queries = op("Mul", [heads, dim], "width.q")
    of_keys = op("Mul", [kv_heads, dim], "width.k")
    sizes = op("Concat", [of_queries, of_keys, of_keys], "widths", axis=0)
    parts = [ir.val(name) for name in ("q", "k", "v")]
    body.nodes.append(ir.node("Split", [qkv, sizes], {"axis": 2}, name="split", outputs=parts))
    positions = None
    if kind == ROTARY:
        seq = op("Squeeze", [op("Shape", [qkv], "seq", start=1, end=2)], "seq.scalar")
        zero = body.constant("zero", np.asarray(0, np.int64))
        one = body.constant("one", np.asarray(1, np.int64))
        steps = op("Range", [zero, seq, one], "steps")
        column = op("Unsqueeze", [past_lengths, body.integers(1)], "past.column")
        positions = op("Add", [column, steps], "positions")
    split = []
    for part, count in zip(parts, (heads, kv_heads, kv_heads), strict=True):
        name = str(part.name)
        batch_and_seq = body.integers(0, 0)
        shape = op("Concat", [batch_and_seq, count, dim], f"{name}.shape", axis=0)
        value = op("Reshape", [part, shape], f"{name}.split_heads")
        value = op("Transpose", [value], f"{name}.heads_first", perm=[0, 2, 1, 3])
        if positions is not None and name != "v":
            value = op("RotaryEmbedding", [value, *inputs[4:], positions], f"{name}.rotary")
        split.append(value)
    outputs = [ir.val(name) for name in ("attended", "present_key", "present_value")]
    call = [*split, past_key, past_value, past_lengths]
    body.nodes.append(
        ir.node("CachedAttention", call, domain=PLC_DOMAIN, name="cached", outputs=outputs)
    )
    turned = op("Transpose", [outputs[0]], "seq_first", perm=[0, 2, 1, 3])
    joined = op("Concat", [body.integers(0, 0), of_queries], "joined.shape", axis=0)
    y = op("Reshape", [turned, joined], "y")
    return body.function("PackedAttention", inputs, [y, *outputs[1:]], overload=kind)
