"""Target `onnx-cpu`: ONNX Runtime on CPU.

Attention is its kernel `GroupQueryAttention`, which computes each row over the entries it has.
Where the kernel does not take the base's heads, `plc::CachedAttention` gets this body:

    present_key   = TensorScatter(past_key, key, past_lengths, axis=2)
    present_value = TensorScatter(past_value, value, past_lengths, axis=2)
    lengths       = past_lengths + seq
    span          = max(lengths), rounded up
    output        = Attention(query, present_key[:, :, :span], present_value[:, :, :span],
                              nonpad_kv_seqlen=lengths, is_causal=1)

ONNX Runtime's Attention works over the whole cache whatever the lengths say; the slice keeps it to
the longest live row. Its sums run in another order where the span is no multiple of what its
kernels take at once, so the span is one: then a row's numbers do not depend on its neighbours'
lengths, to the last bit, and activations that are rounded cannot tip over.

`nonpad_kv_seqlen` with `is_causal` is right here and silently wrong in TensorRT, which therefore
gets a library of its own.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pl_compile.artifact.bundle import MODEL_NAME
from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.errors import ExportError
from pl_compile.exporters.options import quantize_passes, when
from pl_compile.graph.builder import OPSET, PLC_DOMAIN
from pl_compile.passes.flatten_tokens import FlattenTokens
from pl_compile.passes.fuse_residual_norms import FuseResidualNorms
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.link_functions import LinkFunctions
from pl_compile.passes.merge_products import MergeProducts
from pl_compile.passes.quantize_weights import WeightError
from pl_compile.passes.sample_in_graph import SampleInGraph
from pl_compile.passes.use_block_kernels import UseBlockKernels
from pl_compile.passes.use_grouped_attention import UseGroupedAttention
from pl_compile.passes.use_integer_products import UseIntegerProducts
from pl_compile.quantize.moments import Moments
from pl_compile.quantize.scheme import Scheme
from pl_compile.weights.names import weight_shapes

DATA_NAME = f"{MODEL_NAME}.data"

# Entries that the kernels of Attention take at once, and then some.
_SPAN = 64

# GroupQueryAttention takes heads of multiples of these widths, with rotary positions and without.
_ROTARY_HEADS, _PLAIN_HEADS = 16, 8

# MatMulNBits takes blocks of powers of 2 from here on.
_SMALLEST_BLOCK = 16

# Small tensors stay in the graph, where a reader sees them; large ones go to the side file.
_EXTERNAL_FROM_BYTES = 1024


class OnnxCpuExporter:
    """ONNX Runtime on CPU."""

    target = "onnx-cpu"

    def check(self, config: DecoderConfig, contract: GraphContract, options: BuildOptions) -> None:
        """See `Exporter.check`."""
        if options.activations == "int8" and not _is_grouped(config):
            raise ExportError(
                "choosing ONNX Runtime's kernels",
                found=f"activations int8, and heads of {config.head_dim} with rotary positions",
                expected=f"heads of a multiple of {_ROTARY_HEADS}",
                fix="Leave the activations floats.",
            )

        if options.quantize != "none" and options.scale_block:
            _check_blocks(config, options)

    def passes(
        self,
        config: DecoderConfig,
        contract: GraphContract,
        options: BuildOptions,
        moments: Moments | None,
        errors: list[WeightError],
    ) -> Sequence[GraphPass]:
        """See `Exporter.passes`."""
        grouped, integers = _is_grouped(config), options.activations == "int8"
        blocks = options.quantize != "none" and not integers
        packed = (config.heads + 2 * config.kv_heads) * config.head_dim
        library = [
            *when(not grouped, cached_attention_function()),
            *when(integers, integer_product_function()),
        ]
        return [
            *self.prepare_passes(),
            *when(grouped, UseGroupedAttention(config.heads, config.kv_heads)),
            *when(integers, FlattenTokens(config.hidden, packed)),
            FuseResidualNorms(),
            *quantize_passes(options, moments, errors),
            *when(blocks, UseBlockKernels()),
            *when(integers, UseIntegerProducts()),
            *when(contract.candidates > 0, SampleInGraph(contract.candidates)),
            *when(len(library) > 0, LinkFunctions(library)),
        ]

    def prepare_passes(self) -> Sequence[GraphPass]:
        """See `Exporter.prepare_passes`."""
        return [MergeProducts()]

    def build(self, model: ir.Model, folder: Path) -> None:
        """Writes `model.onnx` and `model.onnx.data`."""
        ir.save(
            model,
            folder / MODEL_NAME,
            external_data=DATA_NAME,
            size_threshold_bytes=_EXTERNAL_FROM_BYTES,
        )

    def describe(self) -> dict[str, str]:
        """The ONNX packages."""
        return {name: version(name) for name in ("onnx", "onnx-ir")} | {"opset": str(OPSET)}


def _check_blocks(config: DecoderConfig, options: BuildOptions) -> None:
    """Raises `ExportError` unless blocks are a kernel's and divide the inputs of every weight."""
    block = options.scale_block
    if block < _SMALLEST_BLOCK or block & (block - 1):
        raise ExportError(
            "choosing ONNX Runtime's kernels",
            found=f"blocks of {block}",
            expected=f"a power of 2, at least {_SMALLEST_BLOCK}",
            fix="Choose another --block.",
        )
    scheme = Scheme(8 if options.quantize == "int8" else 4, block)
    for name, shape in weight_shapes(config).items():
        if len(shape) == 2 and name.startswith("layers."):
            scheme.check(name, shape[0])
        elif name in ("embedding.weight", "head.weight") and options.table_bits != 0:
            scheme.check(name, shape[1])


def _is_grouped(config: DecoderConfig) -> bool:
    """Whether ONNX Runtime's `GroupQueryAttention` takes the base's heads."""
    return config.head_dim % (_ROTARY_HEADS if config.rope_theta else _PLAIN_HEADS) == 0


class _Body:
    """The nodes of a function under construction."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []

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
        """A constant."""
        return self.op("Constant", [], name, value=ir.tensor(array, name=name))

    def integers(self, *numbers: int) -> ir.Value:
        """A constant int64 vector."""
        name = "int64_" + "_".join(str(number).replace("-", "minus") for number in numbers)
        return self.constant(name, np.asarray(numbers, np.int64))

    def function(
        self, name: str, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]
    ) -> ir.Function:
        """The function of the `plc` domain."""
        domains = {"": OPSET, "com.microsoft": 1}
        used = {domain: domains[domain] for domain in sorted({node.domain for node in self.nodes})}
        graph = ir.Graph(inputs, outputs, nodes=self.nodes, opset_imports=used)
        return ir.Function(PLC_DOMAIN, name, graph=graph, attributes=[])


def cached_attention_function() -> ir.Function:
    """`plc::CachedAttention` for ONNX Runtime's CPU kernels."""
    names = ("query", "key", "value", "past_key", "past_value", "past_lengths")
    query, key, value, past_key, past_value, past_lengths = inputs = [ir.val(n) for n in names]
    body = _Body()
    op = body.op
    zero, cache_axis = body.integers(0), body.integers(2)
    present_key = op("TensorScatter", [past_key, key, past_lengths], "present_key", axis=2)
    present_value = op("TensorScatter", [past_value, value, past_lengths], "present_value", axis=2)
    seq = op("Shape", [query], "seq", start=2, end=3)
    lengths = op("Add", [past_lengths, seq], "lengths")
    longest = op("ReduceMax", [lengths], "longest", keepdims=1)
    step = body.integers(_SPAN)
    up = op("Add", [longest, body.integers(_SPAN - 1)], "up")
    span = op("Mul", [op("Div", [up, step], "steps"), step], "span")
    live_key = op("Slice", [present_key, zero, span, cache_axis], "live_key")
    live_value = op("Slice", [present_value, zero, span, cache_axis], "live_value")
    arguments = [query, live_key, live_value, None, None, None, lengths]
    output = op("Attention", arguments, "output", is_causal=1)
    return body.function("CachedAttention", inputs, [output, present_key, present_value])


def integer_product_function() -> ir.Function:
    """`plc::IntegerProduct(x, codes, scales)` for ONNX Runtime's CPU kernels.

        reach = max(|row|) / 127                            of each row of x, [rows, inputs]
        y     = (round(x / reach) + 128 - 128) @ codes * scales * reach

    Rows are rounded to unsigned integers around 128: only of unsigned with signed ones does ONNX
    Runtime have products that use the CPU's matrix instructions (VNNI, AMX).
    """
    x, codes, scales = inputs = [ir.val(name) for name in ("x", "codes", "scales")]
    body = _Body()
    op = body.op
    across = body.integers(1)
    widest = op("ReduceMax", [op("Abs", [x], "sizes"), across], "widest", keepdims=0)
    per_step = body.constant("per_step", np.asarray(1 / 127, np.float32))
    least = body.constant("least", np.asarray(1e-9, np.float32))  # a row of zeros stays one
    reach = op("Max", [op("Mul", [widest, per_step], "step"), least], "reach")
    middle = body.constant("middle", np.asarray(128, np.uint8))
    middles = op("Expand", [middle, op("Shape", [x], "count", start=0, end=1)], "middles")
    rounded = op("QuantizeLinear", [x, reach, middles], "rounded", axis=0)
    one = body.constant("one", np.asarray(1, np.float32))
    arguments = [rounded, codes, one, scales, middle]
    product = op("MatMulIntegerToFloat", arguments, "product", domain="com.microsoft")
    y = op("Mul", [product, op("Unsqueeze", [reach, across], "reaches")], "y")
    return body.function("IntegerProduct", inputs, [y])
