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

import onnx_ir as ir

from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.errors import ExportError
from pl_compile.exporters.function_body import FunctionBody
from pl_compile.exporters.onnx.files import OnnxFiles
from pl_compile.exporters.options import check_blocks, check_options, quantize_passes, when
from pl_compile.passes.fuse_residual_norms import FuseResidualNorms
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.link_functions import LinkFunctions
from pl_compile.passes.merge_products import MergeProducts
from pl_compile.passes.quantize_weights import WeightError
from pl_compile.passes.sample_in_graph import SampleInGraph
from pl_compile.passes.use_block_kernels import UseBlockKernels
from pl_compile.passes.use_grouped_attention import UseGroupedAttention
from pl_compile.quantize.moments import Moments

# Entries that the kernels of Attention take at once, and then some.
_SPAN = 64

# GroupQueryAttention takes heads of multiples of these widths, with rotary positions and without.
_ROTARY_HEADS, _PLAIN_HEADS = 16, 8

# MatMulNBits takes blocks of powers of 2 from here on.
_SMALLEST_BLOCK = 16


class OnnxCpuExporter(OnnxFiles):
    """ONNX Runtime on CPU."""

    target = "onnx-cpu"

    def check(self, config: DecoderConfig, contract: GraphContract, options: BuildOptions) -> None:
        """See `Exporter.check`."""
        check_options(self.target, options)
        if options.quantization != "none" and options.scale_block:
            _check_kernels(options)
            check_blocks(config, options)

    def passes(
        self,
        config: DecoderConfig,
        contract: GraphContract,
        options: BuildOptions,
        moments: Moments | None,
        errors: list[WeightError],
    ) -> Sequence[GraphPass]:
        """See `Exporter.passes`."""
        grouped = _is_grouped(config)
        return [
            *self.prepare_passes(),
            *when(grouped, UseGroupedAttention(config.heads, config.kv_heads)),
            FuseResidualNorms(),
            *quantize_passes(options, moments, errors, signed=True),
            *when(options.quantization != "none", UseBlockKernels()),
            *when(contract.candidates > 0, SampleInGraph(contract.candidates)),
            *when(not grouped, LinkFunctions([cached_attention_function()])),
        ]

    def prepare_passes(self) -> Sequence[GraphPass]:
        """See `Exporter.prepare_passes`."""
        return [MergeProducts()]

    def cpu_passes(self, config: DecoderConfig, contract: GraphContract) -> Sequence[GraphPass]:
        """See `Exporter.cpu_passes`."""
        floats = self.passes(config, contract, BuildOptions("none"), None, [])
        return floats[len(self.prepare_passes()) :]


def _check_kernels(options: BuildOptions) -> None:
    """Raises `ExportError` unless a kernel takes the blocks."""
    block = options.scale_block
    if block < _SMALLEST_BLOCK or block & (block - 1):
        raise ExportError(
            "choosing ONNX Runtime's kernels",
            found=f"blocks of {block}",
            expected=f"a power of 2, at least {_SMALLEST_BLOCK}",
            fix="Choose another --block.",
        )


def _is_grouped(config: DecoderConfig) -> bool:
    """Whether ONNX Runtime's `GroupQueryAttention` takes the base's heads."""
    return config.head_dim % (_ROTARY_HEADS if config.rope_theta else _PLAIN_HEADS) == 0


def cached_attention_function(*, sliced: bool = True) -> ir.Function:
    """`plc::CachedAttention` for ONNX Runtime.

    Args:
        sliced: whether the cache is cut to its longest live row, as kernels for CPU need it.
    """
    names = ("query", "key", "value", "past_key", "past_value", "past_lengths")
    query, key, value, past_key, past_value, past_lengths = inputs = [ir.val(n) for n in names]
    body = FunctionBody()
    op = body.op
    present_key = op("TensorScatter", [past_key, key, past_lengths], "present_key", axis=2)
    present_value = op("TensorScatter", [past_value, value, past_lengths], "present_value", axis=2)
    seq = op("Shape", [query], "seq", start=2, end=3)
    lengths = op("Add", [past_lengths, seq], "lengths")
    live_key, live_value = present_key, present_value
    if sliced:
        zero, cache_axis = body.integers(0), body.integers(2)
        longest = op("ReduceMax", [lengths], "longest", keepdims=1)
        step = body.integers(_SPAN)
        up = op("Add", [longest, body.integers(_SPAN - 1)], "up")
        span = op("Mul", [op("Div", [up, step], "steps"), step], "span")
        live_key = op("Slice", [present_key, zero, span, cache_axis], "live_key")
        live_value = op("Slice", [present_value, zero, span, cache_axis], "live_value")
    arguments = [query, live_key, live_value, None, None, None, lengths]
    output = op("Attention", arguments, "output", is_causal=1)
    return body.function("CachedAttention", inputs, [output, present_key, present_value])
