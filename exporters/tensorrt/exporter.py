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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

from pl_compile.all_reduce_plugin import load_plugin
from pl_compile.artifact.bundle import MODEL_NAME
from pl_compile.artifact.files import sha256_of
from pl_compile.artifact.plan_record import (
    PLAN_NAME,
    AttentionForm,
    PlanProfile,
    PlanRecord,
    sum_of_onnx,
    write_plan_profile,
    write_plan_record,
)
from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.errors import ExportError
from pl_compile.exporters.function_body import TRT_DOMAIN, FunctionBody
from pl_compile.exporters.onnx.cpu import cached_attention_function
from pl_compile.exporters.onnx.files import DATA_NAME, onnx_versions, save
from pl_compile.exporters.options import check_blocks, precision_passes, quantize_passes, when
from pl_compile.exporters.tensorrt.api import (
    MOST_CANDIDATES,
    ParsedNetwork,
    PlanOptions,
    build_plan,
    check_capabilities,
    has_collectives,
    parse,
    parser_for,
    tensorrt_module,
)
from pl_compile.exporters.tensorrt.ep_context import check_wrappable, write_ep_context
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.link_functions import LinkFunctions
from pl_compile.passes.pipeline import run_passes
from pl_compile.passes.quantize_weights import WeightError
from pl_compile.passes.sample_in_graph import SampleInGraph
from pl_compile.passes.use_all_reduce_plugin import UseAllReducePlugin
from pl_compile.progress import SILENT, Progress
from pl_compile.quantize.moments import Moments

# What the two profiles of `trt.build_plan` are for, in their order.
PROFILES = ("prompt", "token")

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
        check_blocks(config, options)
        if options.ep_context:
            check_wrappable(self.target)
        if not options.defer_build:
            check_capabilities(tensorrt_module(self.target), options.compute_capabilities)

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
            *precision_passes(options),
            *when(contract.candidates > 0, SampleInGraph(contract.candidates)),
            LinkFunctions([masked_attention_function(config.head_dim, contract.capacity)]),
        ]

    def prepare_passes(self) -> Sequence[GraphPass]:
        """See `Exporter.prepare_passes`."""
        return []

    def cpu_passes(self, config: DecoderConfig, contract: GraphContract) -> Sequence[GraphPass]:
        """See `Exporter.cpu_passes`."""
        return [LinkFunctions([cached_attention_function()])]

    def build(
        self,
        model: ir.Model,
        folder: Path,
        contract: GraphContract,
        options: BuildOptions,
        progress: Progress = SILENT,
    ) -> None:
        """Writes the ONNX files, `profile.json`, and unless deferred `model.plan`, `plan.json`."""
        save(model, folder)
        write_plan_profile(folder, profile_of(options))
        if not options.defer_build:
            build_plan_in(folder, self.target, contract, options, progress=progress)
        elif (flavour := parser_for(self.target)) is not None:
            parse(folder / MODEL_NAME, flavour, ranks=contract.ranks)  # better refused here

    def describe(self) -> dict[str, str]:
        """The ONNX packages, and the TensorRT that is here."""
        flavour = parser_for(self.target)
        versions = {} if flavour is None else {flavour: tensorrt_module(flavour).__version__}
        return onnx_versions() | versions


def profile_of(options: BuildOptions) -> PlanProfile:
    """What of the options a plan that is built again should have as well."""
    return PlanProfile(options.plan_batch, options.compute_capabilities, options.ep_context)


def build_plan_in(
    folder: Path,
    target: str,
    contract: GraphContract,
    options: BuildOptions,
    *,
    attention: AttentionForm = "mask",
    progress: Progress = SILENT,
) -> PlanRecord:
    """Builds the plan of the `model.onnx` in a folder, and writes both its files there.

    Args:
        folder: of the base, or of one of its ranks.
        target: whose TensorRT builds.
        contract: of the graph.
        options: sizes and processors.
        attention: "lower_right" builds from a variant of the file that says it so.
        progress: hears of TensorRT's phases.

    Raises:
        ExportError: TensorRT is not there, refuses the file, or cannot build it here.
        RankError: it has no layer for sums over ranks, and the plugin does not load.
    """
    parsed = parse_base(folder, target, contract, attention)
    batch = options.plan_batch
    wanted = PlanOptions(batch, contract.capacity, options.compute_capabilities)
    plan = build_plan(parsed, wanted, said=_each_once(progress))
    (folder / PLAN_NAME).write_bytes(plan.data)
    record = PlanRecord(
        flavour=target,
        version=plan.version,
        compute_capabilities=options.compute_capabilities,
        ranks=contract.ranks,
        max_batch=batch,
        capacity=contract.capacity,
        profiles=PROFILES,
        attention=attention,
        onnx=sum_of_onnx({path.name: sha256_of(path) for path in folder.glob(f"{MODEL_NAME}*")}),
        seconds=plan.seconds,
        plan_bytes=len(plan.data),
        peak_memory_bytes=plan.peak_memory_bytes,
        layers=plan.layers,
    )
    write_plan_record(folder, record)
    if options.ep_context:
        write_ep_context(folder, record)
    return record


def parse_base(
    folder: Path, flavour: str, contract: GraphContract, attention: AttentionForm
) -> ParsedNetwork:
    """What a flavour's parser makes of the `model.onnx` in a folder.

    Args:
        folder: of the base, or of one of its ranks.
        flavour: whose parser.
        contract: of the graph.
        attention: "lower_right" parses a variant of the file that says it so.

    Raises:
        ExportError: TensorRT is not there, or refuses the file, or a guard does.
        RankError: it has no layer for sums over ranks, and the plugin does not load.
    """
    trt = tensorrt_module(flavour, f"parsing {folder / MODEL_NAME} with {flavour}")
    changes: list[GraphPass] = []
    if attention == "lower_right":
        changes.append(LinkFunctions([lower_right_attention_function(contract.head_dim)]))
    if contract.ranks > 1 and not has_collectives(trt):
        load_plugin(trt)
        changes.append(UseAllReducePlugin())
    with _changed(folder / MODEL_NAME, changes) as model:
        return parse(model, flavour, ranks=contract.ranks, attention=attention)


def _each_once(progress: Progress) -> Callable[[str], None]:
    """Tells of TensorRT's phases; some of them come back for every layer."""
    heard: set[str] = set()

    def said(phase: str) -> None:
        if phase not in heard:
            heard.add(phase)
            progress.say(f"TensorRT: {phase}")

    return said


@contextmanager
def _changed(model: Path, changes: Sequence[GraphPass]) -> Iterator[Path]:
    """A variant of an ONNX file, for a while; the file itself without changes."""
    if not changes:
        yield model
        return
    with TemporaryDirectory(prefix="plc-variant-") as folder:
        loaded = ir.load(model)
        run_passes(loaded, changes)
        # Its data is found beside it.
        data = model.with_name(DATA_NAME)
        if data.is_file():
            (Path(folder) / DATA_NAME).symlink_to(data.resolve())
        ir.save(loaded, Path(folder) / MODEL_NAME)
        yield Path(folder) / MODEL_NAME


def masked_attention_function(head_dim: int, capacity: int) -> ir.Function:
    """`plc::CachedAttention` for TensorRT, with a mask."""
    body, inputs = FunctionBody(), _attention_inputs()
    query, key, value, past_key, past_value, past_lengths = inputs
    op = body.op
    presents = _presents(body, key, value, past_key, past_value, past_lengths)
    seq = op("Shape", [query], "seq", start=2, end=3)
    seq = op("Squeeze", [seq, body.integers(0)], "seq.scalar")
    zero = body.constant("zero", np.asarray(0, np.int64))
    one = body.constant("one", np.asarray(1, np.int64))
    steps = op("Range", [zero, seq, one], "steps")
    past = op("Unsqueeze", [past_lengths, body.integers(1)], "past.column")
    limits = op("Unsqueeze", [op("Add", [past, steps], "limits"), body.integers(1, 3)], "limits.4d")
    entries = body.constant("entries", np.arange(capacity, dtype=np.int64).reshape(1, 1, 1, -1))
    mask = op("LessOrEqual", [entries, limits], "mask")
    output = op(
        "TRT_Attention",
        [_scaled(body, query, head_dim), *presents, mask],
        "output",
        domain=TRT_DOMAIN,
        TRT_decomposable=1,
    )
    return body.function("CachedAttention", inputs, [output, *presents])


def lower_right_attention_function(head_dim: int) -> ir.Function:
    """`plc::CachedAttention` for TensorRT, causal from each row's length back.

    What a length means there is not spelled out in TensorRT's documentation; it is used only where
    a GPU was asked (`driver/build_plans.py`).
    """
    body, inputs = FunctionBody(), _attention_inputs()
    query, key, value, past_key, past_value, past_lengths = inputs
    op = body.op
    presents = _presents(body, key, value, past_key, past_value, past_lengths)
    seq = op("Shape", [query], "seq", start=2, end=3)
    lengths = op("Add", [past_lengths, seq], "lengths")
    lengths = op("Cast", [lengths], "lengths.int32", to=ir.DataType.INT32)
    output = op(
        "TRT_Attention",
        [_scaled(body, query, head_dim), *presents, None, None, lengths],
        "output",
        domain=TRT_DOMAIN,
        TRT_decomposable=1,
        causal_kind="lower_right",
    )
    return body.function("CachedAttention", inputs, [output, *presents])


def _attention_inputs() -> list[ir.Value]:
    names = ("query", "key", "value", "past_key", "past_value", "past_lengths")
    return [ir.val(name) for name in names]


def _presents(
    body: FunctionBody,
    key: ir.Value,
    value: ir.Value,
    past_key: ir.Value,
    past_value: ir.Value,
    past_lengths: ir.Value,
) -> list[ir.Value]:
    return [
        body.op("TensorScatter", [past, new, past_lengths], name, axis=2)
        for past, new, name in (
            (past_key, key, "present_key"),
            (past_value, value, "present_value"),
        )
    ]


def _scaled(body: FunctionBody, query: ir.Value, head_dim: int) -> ir.Value:
    scale = body.constant("scale.float", np.asarray(1 / math.sqrt(head_dim), np.float32))
    scale = body.op("CastLike", [scale, query], "scale")
    return body.op("Mul", [query, scale], "query.scaled")
