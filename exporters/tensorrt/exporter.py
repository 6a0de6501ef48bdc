"""Targets `tensorrt-rtx` and `tensorrt`: a plan, with the ONNX that it was parsed from beside it.

Operators of the main graph get bodies (`exporters/bodies.py`) that attend so:

    mask          = entry j of the cache is seen by query i where j <= past_lengths + i
    output        = TRT_Attention(query * scale, present_key, present_value, mask)

An explicit mask is the one form of which there is no doubt: TensorRT drops the lengths of ONNX's
Attention, and aligns its causal form at the upper left (`api.py`). `TRT_Attention` has no scale and
no softcap: with a softcap, attention is spelled out.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

from pl_compile.all_reduce_plugin import load_plugin
from pl_compile.artifact.files import sha256_of
from pl_compile.artifact.model_files import DATA_NAME, MODEL_NAME
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
from pl_compile.config.contract import ALIGNED, GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.errors import ExportError
from pl_compile.exporters.bodies import Operands, attend_to_longest, library_of, mask_of
from pl_compile.exporters.exporter import PassInputs, Stages
from pl_compile.exporters.function_body import FunctionBody
from pl_compile.exporters.onnx.files import onnx_versions, save
from pl_compile.exporters.options import precision_passes, when
from pl_compile.exporters.rounding import check_blocks, quantize_passes
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
from pl_compile.graph.operators import TRT_DOMAIN
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.link_functions import LinkFunctions
from pl_compile.passes.name_functions import NameFunctions
from pl_compile.passes.pipeline import run_passes
from pl_compile.passes.sample_in_graph import SampleInGraph
from pl_compile.passes.use_all_reduce_plugin import UseAllReducePlugin
from pl_compile.passes.use_lower_right import TRT_ATTENTION, UseLowerRight, masked_attentions
from pl_compile.progress import SILENT, Progress

# What the two profiles of `api.build_plan` are for, in their order.
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
        unit = contract.capacity_unit(options.dtype)
        if contract.capacity % unit:
            raise ExportError(
                doing,
                found=f"capacity {contract.capacity}",
                expected=f"a multiple of {unit}: slots begin at multiples of {ALIGNED} bytes",
                fix="Choose another --capacity.",
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

    def passes(self, inputs: PassInputs) -> Stages:
        """See `Exporter.passes`."""
        options, candidates = inputs.options, inputs.contract.candidates
        lower = [
            *quantize_passes(options, inputs.moments),
            *precision_passes(options),
            *when(candidates > 0, SampleInGraph(candidates)),
            LinkFunctions(library_of(attend_masked)),
            NameFunctions(),
        ]
        return Stages([], lower, [LinkFunctions(library_of(attend_to_longest))])

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
    """The options with which a plan is built again later: `profile.json`."""
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
        attention: "lower_right" builds from a copy of the file that `UseLowerRight` changed.
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
        attention: "lower_right" parses a copy of the file that `UseLowerRight` changed.

    Raises:
        ExportError: TensorRT is not there, or refuses the file, or a guard does.
        RankError: it has no layer for sums over ranks, and the plugin does not load.
    """
    trt = tensorrt_module(flavour, f"parsing {folder / MODEL_NAME} with {flavour}")
    changes: list[GraphPass] = []
    if attention == "lower_right":
        changes.append(UseLowerRight())
    if contract.ranks > 1 and not has_collectives(trt):
        load_plugin(trt)
        changes.append(UseAllReducePlugin())
    with _changed(folder / MODEL_NAME, changes) as model:
        masks = masked_attentions(ir.load(model)) if attention == "lower_right" else 0
        return parse(model, flavour, ranks=contract.ranks, attention=attention, masks=masks)


def _each_once(progress: Progress) -> Callable[[str], None]:
    """Tells of each of TensorRT's phases once; some of them come back for every layer."""
    heard: set[str] = set()

    def said(phase: str) -> None:
        if phase not in heard:
            heard.add(phase)
            progress.say(f"TensorRT: {phase}")

    return said


@contextmanager
def _changed(model: Path, changes: Sequence[GraphPass]) -> Iterator[Path]:
    """A temporary copy of an ONNX file, changed by passes; the file itself if there are none."""
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


def attend_masked(operands: Operands) -> ir.Value:
    """Attention for TensorRT, with a mask."""
    query = _times(operands.body, operands.query, operands.settings.scale, "scale")
    if operands.settings.softcap:
        return _attend_softly(operands, query)
    return operands.body.op(
        TRT_ATTENTION,
        [query, operands.key, operands.value, mask_of(operands)],
        "output",
        domain=TRT_DOMAIN,
        TRT_decomposable=1,
    )


def _attend_softly(operands: Operands, query: ir.Value) -> ir.Value:
    """Attention with a softcap, which `TRT_Attention` does not have: products and a softmax."""
    body, settings = operands.body, operands.settings
    op, heads = body.op, settings.heads
    grouped = body.integers(0, settings.kv_heads, heads // settings.kv_heads, -1, operands.head_dim)
    query = op("Reshape", [query, grouped], "query.grouped")
    key, value = (
        op("Unsqueeze", [x, body.integers(2)], f"{name}.grouped")
        for x, name in ((operands.key, "key"), (operands.value, "value"))
    )
    key = op("Transpose", [key], "key.turned", perm=[0, 1, 2, 4, 3])
    scores = op("MatMul", [query, key], "scores")
    scores = op("Tanh", [_times(body, scores, 1 / settings.softcap, "softcap.inverse")], "tanh")
    scores = _times(body, scores, settings.softcap, "softcap")
    mask = op("Unsqueeze", [mask_of(operands), body.integers(2)], "mask.grouped")
    unseen = _like(body, scores, -math.inf, "unseen")
    shares = op("Softmax", [op("Where", [mask, scores, unseen], "seen")], "shares", axis=-1)
    output = op("MatMul", [shares, value], "output.grouped")
    return op("Reshape", [output, body.integers(0, heads, -1, operands.head_dim)], "output")


def _times(body: FunctionBody, x: ir.Value, factor: float, name: str) -> ir.Value:
    return body.op("Mul", [x, _like(body, x, factor, name)], f"{x.name}.times_{name}")


def _like(body: FunctionBody, x: ir.Value, number: float, name: str) -> ir.Value:
    """A number of the type of `x`."""
    constant = body.constant(f"{name}.float", np.asarray(number, np.float32))
    return body.op("CastLike", [constant, x], name)
