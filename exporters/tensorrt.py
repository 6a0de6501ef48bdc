"""Targets `tensorrt-rtx` and `tensorrt`: a plan, with the ONNX that it was parsed from beside it.

`plc::CachedAttention` gets this body:

    present_key   = TensorScatter(past_key, key, past_lengths, axis=2)
    present_value = TensorScatter(past_value, value, past_lengths, axis=2)
    mask          = entry j of the cache is seen by query i where j <= past_lengths + i
    output        = TRT_Attention(query / sqrt(head_dim), present_key, present_value, mask)

An explicit mask is the one form of which there is no doubt: TensorRT drops the lengths of ONNX's
Attention, and aligns its causal form at the upper left (`trt.py`). `TRT_Attention` has no scale.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from pl_compile.artifact.bundle import MODEL_NAME
from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.errors import ExportError
from pl_compile.exporters.function_body import TRT_DOMAIN, FunctionBody
from pl_compile.exporters.onnx_files import onnx_versions, save
from pl_compile.exporters.options import check_blocks, quantize_passes, when
from pl_compile.exporters.trt import (
    MOST_CANDIDATES,
    PlanOptions,
    build_plan,
    parse,
    tensorrt_module,
)
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.link_functions import LinkFunctions
from pl_compile.passes.quantize_weights import WeightError
from pl_compile.passes.sample_in_graph import SampleInGraph
from pl_compile.passes.set_precision import SetPrecision
from pl_compile.quantize.moments import Moments

PLAN_NAME = "model.plan"

# Heads that are no multiple of this do not build at all.
_HEADS = 8


class TensorRtExporter:
    """TensorRT for RTX, or TensorRT."""

    def __init__(self, target: str) -> None:
        self.target = target

    def check(self, config: DecoderConfig, contract: GraphContract, options: BuildOptions) -> None:
        """See `Exporter.check`."""
        doing = f"building for {self.target}"
        if config.head_dim % _HEADS:
            raise ExportError(
                doing,
                found=f"heads of {config.head_dim}",
                expected=f"a multiple of {_HEADS}",
                fix="Use --target onnx-cpu.",
            )
        if contract.candidates > MOST_CANDIDATES:
            raise ExportError(
                doing,
                found=f"{contract.candidates} candidates",
                expected=f"at most {MOST_CANDIDATES}, which is what TensorRT sorts",
                fix="Lower --candidates.",
            )
        if options.quantize != "none" and options.scale_block:
            check_blocks(config, options)
        tensorrt_module(self.target)

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
            *quantize_passes(options, moments, errors),
            *(() if options.dtype == "float32" else (SetPrecision(options.dtype),)),
            *when(contract.candidates > 0, SampleInGraph(contract.candidates)),
            LinkFunctions([masked_attention_function(config.head_dim, contract.capacity)]),
        ]

    def prepare_passes(self) -> Sequence[GraphPass]:
        """See `Exporter.prepare_passes`."""
        return []

    def build(self, model: ir.Model, folder: Path) -> None:
        """Writes `model.onnx`, `model.onnx.data` and `model.plan`."""
        save(model, folder)
        shapes = {value.name: value.shape for value in model.graph.inputs}
        cache = shapes["past_key.0"]
        assert cache is not None
        capacity = cache[2]
        assert isinstance(capacity, int)
        parsed = parse(folder / MODEL_NAME, self.target)
        plan = build_plan(parsed, PlanOptions(max_batch=8, capacity=capacity))
        (folder / PLAN_NAME).write_bytes(plan.data)

    def describe(self) -> dict[str, str]:
        """The ONNX packages, and TensorRT."""
        return onnx_versions() | {self.target: tensorrt_module(self.target).__version__}


def masked_attention_function(head_dim: int, capacity: int) -> ir.Function:
    """`plc::CachedAttention` for TensorRT."""
    names = ("query", "key", "value", "past_key", "past_value", "past_lengths")
    query, key, value, past_key, past_value, past_lengths = inputs = [ir.val(n) for n in names]
    body = FunctionBody()
    op = body.op
    present_key = op("TensorScatter", [past_key, key, past_lengths], "present_key", axis=2)
    present_value = op("TensorScatter", [past_value, value, past_lengths], "present_value", axis=2)
    seq = op("Shape", [query], "seq", start=2, end=3)
    seq = op("Squeeze", [seq, body.integers(0)], "seq.scalar")
    zero = body.constant("zero", np.asarray(0, np.int64))
    one = body.constant("one", np.asarray(1, np.int64))
    steps = op("Range", [zero, seq, one], "steps")
    past = op("Unsqueeze", [past_lengths, body.integers(1)], "past.column")
    limits = op("Unsqueeze", [op("Add", [past, steps], "limits"), body.integers(1, 3)], "limits.4d")
    entries = body.constant("entries", np.arange(capacity, dtype=np.int64).reshape(1, 1, 1, -1))
    mask = op("LessOrEqual", [entries, limits], "mask")
    scale = body.constant("scale.float", np.asarray(1 / math.sqrt(head_dim), np.float32))
    scaled = op("Mul", [query, op("CastLike", [scale, query], "scale")], "query.scaled")
    output = op(
        "TRT_Attention",
        [scaled, present_key, present_value, mask],
        "output",
        domain=TRT_DOMAIN,
        TRT_decomposable=1,
    )
    return body.function("CachedAttention", inputs, [output, present_key, present_value])
