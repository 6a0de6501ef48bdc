"""Target `openvino`: OpenVINO on CPU.

OpenVINO knows no functions of a file's own, so the body of `plc::CachedAttention` is written into
the graph at each call, and its cache is not written by the graph: a stateless OpenVINO model would
copy all of it in every step. The graph gives what a step adds, and the engine writes it
(`runtime/engines/openvino/`):

    new_key, new_value = key, value
    mask               = entry j is seen by query i of row b
                         where j < past_lengths[b], or it is one of the step's first i + 1
    output             = Attention(query, [past_key, key], [past_value, value], mask)
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.exporters.function_body import FunctionBody
from pl_compile.exporters.onnx.cpu import cached_attention_function
from pl_compile.exporters.onnx.files import OnnxFiles
from pl_compile.exporters.options import check_blocks, check_options, quantize_passes, when
from pl_compile.passes.give_added_entries import GiveAddedEntries
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.inline_functions import InlineFunctions
from pl_compile.passes.link_functions import LinkFunctions
from pl_compile.passes.merge_products import MergeProducts
from pl_compile.passes.quantize_weights import WeightError
from pl_compile.passes.sample_in_graph import SampleInGraph
from pl_compile.passes.use_block_kernels import UseBlockKernels
from pl_compile.quantize.moments import Moments


class OpenVinoExporter(OnnxFiles):
    """OpenVINO on CPU."""

    target = "openvino"

    def check(self, config: DecoderConfig, contract: GraphContract, options: BuildOptions) -> None:
        """See `Exporter.check`."""
        check_options(self.target, options)
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
        return [
            *self.prepare_passes(),
            *quantize_passes(options, moments, errors, signed=True),
            *when(options.quantization != "none", UseBlockKernels()),
            *when(contract.candidates > 0, SampleInGraph(contract.candidates)),
            LinkFunctions([attention_function()]),
            InlineFunctions(),
            GiveAddedEntries(contract),
        ]

    def prepare_passes(self) -> Sequence[GraphPass]:
        """See `Exporter.prepare_passes`."""
        return [MergeProducts()]

    def cpu_passes(self, config: DecoderConfig, contract: GraphContract) -> Sequence[GraphPass]:
        """See `Exporter.cpu_passes`."""
        return [LinkFunctions([cached_attention_function()])]


def attention_function() -> ir.Function:
    """`plc::CachedAttention` whose caches are the step's own entries."""
    names = ("query", "key", "value", "past_key", "past_value", "past_lengths")
    query, key, value, past_key, past_value, past_lengths = inputs = [ir.val(n) for n in names]
    body = FunctionBody()
    op = body.op
    keys = op("Concat", [past_key, key], "keys", axis=2)
    values = op("Concat", [past_value, value], "values", axis=2)
    arguments = [query, keys, values, _mask(body, query, past_key, past_lengths)]
    output = op("Attention", arguments, "output")
    new_key, new_value = op("Identity", [key], "new_key"), op("Identity", [value], "new_value")
    return body.function("CachedAttention", inputs, [output, new_key, new_value])


def _mask(
    body: FunctionBody, query: ir.Value, past_key: ir.Value, past_lengths: ir.Value
) -> ir.Value:
    """Bool `[batch, 1, seq, past + seq]`."""
    op = body.op
    zero = body.constant("zero", np.asarray(0, np.int64))
    one = body.constant("one", np.asarray(1, np.int64))

    def counted(value: ir.Value, name: str) -> ir.Value:
        size = op("Shape", [value], f"{name}.shape", start=2, end=3)
        return op("Range", [zero, op("Squeeze", [size], f"{name}.size"), one], name)

    past, steps = counted(past_key, "past"), counted(query, "steps")
    column = op("Unsqueeze", [steps, body.integers(1)], "steps.column")
    lengths = op("Unsqueeze", [past_lengths, body.integers(1, 2, 3)], "past_lengths.4d")
    held = op("Less", [past, lengths], "held")
    added = op("LessOrEqual", [steps, column], "added")
    batch = op("Shape", [past_lengths], "batch")
    seq = op("Shape", [query], "seq", start=2, end=3)
    entries = op("Shape", [past_key], "entries", start=2, end=3)
    one_row = body.integers(1)
    of_past = op("Concat", [batch, one_row, seq, entries], "held.shape", axis=0)
    of_step = op("Concat", [batch, one_row, seq, seq], "added.shape", axis=0)
    parts = [op("Expand", [held, of_past], "held.4d"), op("Expand", [added, of_step], "added.4d")]
    return op("Concat", parts, "mask", axis=3)
