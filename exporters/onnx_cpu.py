"""Target `onnx-cpu`: the main graph with ONNX Runtime's CPU form of `plc::CachedAttention`.

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

import numpy as np
import onnx_ir as ir

from pl_compile.artifact.bundle import MODEL_NAME
from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.exporters.quantized import quantize_pass
from pl_compile.graph.builder import OPSET, PLC_DOMAIN
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.link_functions import LinkFunctions
from pl_compile.passes.merge_products import MergeProducts
from pl_compile.passes.quantize_weights import WeightError
from pl_compile.passes.sample_in_graph import SampleInGraph
from pl_compile.passes.use_block_kernels import UseBlockKernels
from pl_compile.quantize.gptq import Moments

DATA_NAME = f"{MODEL_NAME}.data"

# Entries that the kernels of Attention take at once, and then some.
_SPAN = 64

# Small tensors stay in the graph, where a reader sees them; large ones go to the side file.
_EXTERNAL_FROM_BYTES = 1024


class OnnxCpuExporter:
    """ONNX Runtime on CPU."""

    target = "onnx-cpu"

    def check(self, config: DecoderConfig, contract: GraphContract, options: BuildOptions) -> None:
        """Every supported base can be built; blocks are checked by the passes."""

    def passes(
        self,
        contract: GraphContract,
        options: BuildOptions,
        moments: Moments | None,
        errors: list[WeightError],
    ) -> Sequence[GraphPass]:
        """See `Exporter.passes`."""
        quantized = options.quantize != "none"
        return [
            *self.prepare_passes(),
            *([quantize_pass(options, moments, errors), UseBlockKernels()] if quantized else []),
            *([SampleInGraph(contract.candidates)] if contract.candidates else []),
            LinkFunctions([cached_attention_function()]),
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


def cached_attention_function() -> ir.Function:
    """`plc::CachedAttention` for ONNX Runtime's CPU kernels."""
    names = ("query", "key", "value", "past_key", "past_value", "past_lengths")
    query, key, value, past_key, past_value, past_lengths = inputs = [ir.val(n) for n in names]
    nodes: list[ir.Node] = []

    def op(
        op_type: str, arguments: list[ir.Value | None], name: str, **attributes: int
    ) -> ir.Value:
        node = ir.node(op_type, arguments, attributes, name=name, outputs=[ir.val(name)])
        nodes.append(node)
        return node.outputs[0]

    def integer(number: int) -> ir.Value:
        tensor = ir.tensor(np.asarray([number], np.int64), name=f"int64_{number}")
        node = ir.node(
            "Constant", [], {"value": tensor}, name=tensor.name, outputs=[ir.val(tensor.name)]
        )
        nodes.append(node)
        return node.outputs[0]

    zero, cache_axis = integer(0), integer(2)
    present_key = op("TensorScatter", [past_key, key, past_lengths], "present_key", axis=2)
    present_value = op("TensorScatter", [past_value, value, past_lengths], "present_value", axis=2)
    seq = op("Shape", [query], "seq", start=2, end=3)
    lengths = op("Add", [past_lengths, seq], "lengths")
    longest = op("ReduceMax", [lengths], "longest", keepdims=1)
    step = integer(_SPAN)
    up = op("Add", [longest, integer(_SPAN - 1)], "up")
    span = op("Mul", [op("Div", [up, step], "steps"), step], "span")
    live_key = op("Slice", [present_key, zero, span, cache_axis], "live_key")
    live_value = op("Slice", [present_value, zero, span, cache_axis], "live_value")
    arguments = [query, live_key, live_value, None, None, None, lengths]
    output = op("Attention", arguments, "output", is_causal=1)

    graph = ir.Graph(
        inputs, [output, present_key, present_value], nodes=nodes, opset_imports={"": OPSET}
    )
    return ir.Function(PLC_DOMAIN, "CachedAttention", graph=graph, attributes=[])
