"""From prompt table and base to bundle: the page that reads like the flow.

read -> forecast -> weights -> calibrate -> graph -> write -> fold -> evaluate -> check -> report ->
manifest
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pl_compile.artifact.bundle import (
    NOTHING_LOST,
    Precision,
    Verdict,
    files_of_bundle,
    write_manifest,
)
from pl_compile.artifact.file_sums import records_of
from pl_compile.artifact.files import check_replaceable, folder_written_whole
from pl_compile.artifact.plan_record import PlanRecord
from pl_compile.checkpoints.checkpoint import Checkpoint
from pl_compile.checkpoints.read_once import ReadOnce
from pl_compile.checks.parity import Parity
from pl_compile.config.build import BuildOptions
from pl_compile.driver.calibrate import calibration_prompts, measure_moments
from pl_compile.driver.check_export import check_export, engine_of, lint_export
from pl_compile.driver.compile_base import CompiledBase, compile_base
from pl_compile.driver.export_inputs import ExportInputs, read_inputs
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.fold_tasks import fold_tasks
from pl_compile.driver.forecast import Forecast, check_memory_for, check_room_for, forecast_of
from pl_compile.driver.score_bundle import score_bundle
from pl_compile.driver.write_bundle import (
    manifest_of,
    read_back,
    report_of_export,
    write_checks,
    write_tasks,
    write_tokenizer,
)
from pl_compile.driver.write_triton import BUNDLE, files_of_triton_model, write_triton_model
from pl_compile.passes.quantize_weights import WeightError
from pl_compile.progress import SILENT, Progress
from pl_compile.quantize.moments import Moments
from pl_compile.quantize.scheme import LOSSLESS
from pl_compile.report.files import write_report
from pl_compile.report.model import Effect
from pl_compile.text.notes import notes_on
from pl_compile.training.compare_tokens import TokenCheck
from pl_compile.weights.fingerprint import FingerprintedCheckpoint
from pl_compile.weights.load import Weights, load_weights
from pl_compile.weights.open_base import open_base


@dataclass(frozen=True)
class ExportResult:
    """What was compiled.

    Attributes:
        bundle: its folder.
        tasks: in order.
        forecast: what it costs, and what was folded.
        parity: one comparison with torch per task; empty where it was not measured.
        tokens: one comparison per task with the tokens of transformers' own tokenizer; empty
            likewise.
        verdict: "passed", "failed" or "not measured".
        failures: what was beyond its limit, as sentences.
        size_bytes: of the whole bundle.
        seconds: wall time by step.
        plans: one record for each TensorRT plan.
        effect: scores of each task, where data to evaluate on was given.
    """

    bundle: Path
    tasks: tuple[str, ...]
    forecast: Forecast
    parity: tuple[Parity, ...]
    tokens: tuple[TokenCheck, ...]
    verdict: Verdict
    failures: tuple[str, ...]
    size_bytes: int
    seconds: dict[str, float]
    plans: tuple[PlanRecord, ...] = ()
    effect: tuple[Effect, ...] = ()


def export_bundle(request: ExportRequest, *, progress: Progress = SILENT) -> ExportResult:
    """Compiles a bundle; it is written whole or not at all.

    A bundle whose numbers differ from the reference is still written, marked "failed".

    Raises:
        ArtifactError: the table cannot be read or has no such task, a prefix does not fit base and
            template, or the disk refuses the files.
        ConfigError: a template that cannot be parsed.
        DataError: data for calibration or evaluation that cannot be read.
        FingerprintError: the table was trained on another base.
        BaseModelError: the base cannot be read.
        ExportError: the target, the capacity, the disk or the memory cannot hold it.
    """
    ours = files_of_triton_model if request.triton else files_of_bundle
    check_replaceable(request.output, ours)
    clock = _Clock()
    opened, config = open_base(request.base)
    check_memory_for(request, config)
    checkpoint = ReadOnce(opened)
    inputs = read_inputs(request, checkpoint, config, progress)
    checkpoint.give_away()
    forecast = forecast_of(inputs)
    _say_notes(inputs, forecast, progress)
    check_room_for(request, inputs.recipe.options, forecast)
    weights = _load(request, inputs, checkpoint, progress)
    clock.lap("read")

    moments = _calibrate(inputs, weights, progress)
    clock.lap("calibrate")
    with folder_written_whole(request.output, ours=ours) as whole:
        staging = whole
        if request.triton:
            write_triton_model(whole, inputs.target)
            staging = whole / BUNDLE
            staging.mkdir()
        compiled = _compile(request, inputs, weights, moments, staging / "base", progress)
        clock.lap("graph")
        lint = lint_export(request, inputs, weights, progress)
        precision = _precision(inputs.recipe.options, moments, compiled.weight_errors)
        no_tables = write_tokenizer(staging, inputs.tokenizer, progress)
        write_tasks(staging, inputs)
        files = records_of(staging)
        with engine_of(staging, inputs, precision) as engine:
            served = fold_tasks(staging, files, inputs, forecast.tasks, engine, precision)
            clock.lap("write")

            effect: tuple[Effect, ...] = ()
            if inputs.to_score:
                assert engine is not None
                effect = score_bundle(inputs, engine, served, precision, weights, progress)
            clock.lap("evaluate")
            del weights
            checks = check_export(request, inputs, engine, served, precision, progress)
        write_checks(staging, checks)
        clock.lap("checks")

        write_report(
            staging,
            report_of_export(
                inputs, forecast, compiled, precision, lint, effect, checks, clock.laps
            ),
        )
        progress.say("summing up")
        manifest = manifest_of(inputs, compiled, checks, precision, no_tables)
        write_manifest(staging, manifest, files)
        read_back(staging, inputs)
    return ExportResult(
        bundle=request.bundle,
        tasks=manifest.tasks,
        forecast=forecast,
        parity=checks.comparisons.torch,
        tokens=checks.comparisons.tokens,
        verdict=checks.verdict,
        failures=checks.failures,
        size_bytes=sum(p.stat().st_size for p in request.bundle.rglob("*") if p.is_file()),
        seconds=clock.laps,
        plans=compiled.plans,
        effect=effect,
    )


def _say_notes(inputs: ExportInputs, forecast: Forecast, progress: Progress) -> None:
    """Reports what was chosen and why, and which parts of texts the tokenizer cannot write."""
    for name, choice in forecast.choices.items():
        if choice.reason:
            progress.say(f"{name} {choice.chosen}: {choice.reason}")
    templates = [prompt.renderer.template for prompt in inputs.tasks.values()]
    for note in notes_on(inputs.tokenizer, templates):
        progress.say(note)


def _load(
    request: ExportRequest, inputs: ExportInputs, checkpoint: Checkpoint, progress: Progress
) -> Weights:
    """The weights. The same reading checks that the table was trained on this base."""
    progress.say(f"reading {request.base}")
    config = inputs.recipe.config
    summed = FingerprintedCheckpoint(checkpoint, config)
    weights = load_weights(summed, config)
    inputs.table.check_base(summed.identity(inputs.table.base.name), str(request.base))
    return weights


def _calibrate(inputs: ExportInputs, weights: Weights, progress: Progress) -> Moments | None:
    if not inputs.to_calibrate:
        return None
    recipe = inputs.recipe
    rows = calibration_prompts(
        inputs.to_calibrate,
        inputs.tasks,
        capacity=recipe.contract.capacity,
        vocab=recipe.config.vocab,
        progress=progress,
    )
    return measure_moments(
        recipe.exporter, recipe.config, recipe.contract, weights, rows, progress=progress
    )


def _compile(
    request: ExportRequest,
    inputs: ExportInputs,
    weights: Weights,
    moments: Moments | None,
    folder: Path,
    progress: Progress,
) -> CompiledBase:
    progress.say(
        f"building the graph for {inputs.target}, prompts {inputs.recipe.contract.prompts}"
    )
    folder.mkdir()
    return compile_base(
        inputs.recipe,
        weights,
        folder,
        moments=moments,
        dump_to=request.dump_passes,
        progress=progress,
    )


def _precision(
    options: BuildOptions, moments: Moments | None, errors: Sequence[WeightError]
) -> Precision:
    if options.quantization == "none":
        return Precision(
            dtype=options.dtype, prefix_bits=options.prefix_bits, cache_bits=options.cache_bits
        )
    if moments is not None:
        method = f"GPTQ on {moments.tokens} tokens"
    elif all(error.largest_block_error <= LOSSLESS for error in errors):
        method = NOTHING_LOST
    else:
        method = "round to nearest"
    return Precision(
        dtype=options.dtype,
        quantization=options.quantization,
        block=options.block_or_default,
        method=method,
        prefix_bits=options.prefix_bits,
        cache_bits=options.cache_bits,
    )


class _Clock:
    """Wall time by step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now
