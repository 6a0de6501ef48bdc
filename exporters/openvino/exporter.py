"""Target `openvino`: OpenVINO on CPU.

OpenVINO knows no functions of a file's own, so each call is replaced by its body. And a graph that
wrote the caches would copy them whole in every step. So this graph gives what a step adds, and the
engine writes it (`runtime/engines/openvino/`):

    new_key, new_value = k, v
    seen_at            = j for entry j of the cache where j < past_lengths, else never;
                         then the positions of the step's own tokens
    y                  = Attention(q, [past_key, k], [past_value, v], seen_at <= positions)
"""

import numpy as np
import onnx_ir as ir

from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.exporters.bodies import Operands, attend_to_longest, library_of, onnx_attention
from pl_compile.exporters.exporter import PassInputs, Stages
from pl_compile.exporters.function_body import FunctionBody
from pl_compile.exporters.onnx.files import OnnxFiles
from pl_compile.exporters.options import check_options, when
from pl_compile.exporters.rounding import check_blocks, check_mat_mul_nbits, quantize_passes
from pl_compile.passes.give_added_entries import GiveAddedEntries
from pl_compile.passes.inline_functions import InlineFunctions
from pl_compile.passes.link_functions import LinkFunctions
from pl_compile.passes.merge_products import MergeProducts
from pl_compile.passes.sample_in_graph import SampleInGraph
from pl_compile.passes.use_mat_mul_nbits import UseMatMulNBits

# Later than any position. OpenVINO computes with integers of 32 bits.
_NEVER = 2**30


class OpenVinoExporter(OnnxFiles):
    """OpenVINO on CPU."""

    target = "openvino"

    def check(self, config: DecoderConfig, contract: GraphContract, options: BuildOptions) -> None:
        """See `Exporter.check`."""
        check_options(self.target, options)
        check_mat_mul_nbits(options)
        check_blocks(config, options)

    def passes(self, inputs: PassInputs) -> Stages:
        """See `Exporter.passes`."""
        options, candidates = inputs.options, inputs.contract.candidates
        lower = [
            *quantize_passes(options, inputs.moments, negative_scales=True),
            *when(options.quantization != "none", UseMatMulNBits()),
            *when(candidates > 0, SampleInGraph(candidates)),
            LinkFunctions(library_of(attend_to_all, appended)),
            InlineFunctions(),
            GiveAddedEntries(inputs.contract),
        ]
        return Stages([MergeProducts()], lower, [LinkFunctions(library_of(attend_to_longest))])


def appended(
    body: FunctionBody, name: str, past: ir.Value, new: ir.Value, past_lengths: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Attends to the cache and the step's entries after it; gives out the step's entries alone."""
    joined = body.op("Concat", [past, new], f"{name}s", axis=2)
    return joined, body.op("Identity", [new], f"new_{name}")


def attend_to_all(operands: Operands) -> ir.Value:
    """Attends with a mask: the cache has entries that a row does not, and they come first."""
    body, window = operands.body, operands.settings.window
    seen_at = body.op("Unsqueeze", [_seen_at(operands), body.integers(1, 2)], "seen_at.4d")
    last = body.op("Unsqueeze", [operands.positions, body.integers(1, 3)], "last_seen")
    mask = body.op("LessOrEqual", [seen_at, last], "not_later")
    if window:
        before = body.op("Sub", [last, body.integers(window)], "last_before_window")
        mask = body.op("And", [mask, body.op("Greater", [seen_at, before], "in_window")], "mask")
    return onnx_attention(operands, operands.key, operands.value, mask)


def _seen_at(operands: Operands) -> ir.Value:
    """int64 `[batch, entries + seq]`: the position of each entry; `_NEVER` where there is none."""
    body, given = operands.body, operands.body.inputs
    size = body.op("Shape", [given["past_key"]], "entries", start=2, end=3)
    size = body.op("Squeeze", [size, body.integers(0)], "entries.scalar")
    zero = body.constant("zero", np.asarray(0, np.int64))
    one = body.constant("one", np.asarray(1, np.int64))
    entries = body.op("Range", [zero, size, one], "entry")
    past = body.op("Unsqueeze", [given["past_lengths"], body.integers(1)], "held")
    held = body.op("Less", [entries, past], "is_held")
    held_at = body.op("Where", [held, entries, body.integers(_NEVER)], "held_at")
    return body.op("Concat", [held_at, operands.positions], "seen_at", axis=1)
