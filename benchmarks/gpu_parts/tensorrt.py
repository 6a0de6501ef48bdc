"""A plan of TensorRT on the GPU: built, run, and compared with torch; the attention probe.

Without a GPU, the interpreter computes what TensorRT's parser made of the same graph.
"""

import importlib.util
from pathlib import Path

from gpu_parts.bases import STAND_IN, llama_base
from gpu_parts.report import Job, MissingError, Report, median_seconds
from pl_compile.artifact.bundle import read_bundle
from pl_compile.artifact.plan_record import PLAN_NAME
from pl_compile.checks.checking_engine import checking_engine
from pl_compile.checks.parity import (
    compare,
    limit_of,
    probe_rows,
    self_limit_of,
    trace,
    trace_reference,
)
from pl_compile.config.build import BuildOptions
from pl_compile.config.targets import PLAN_TARGETS
from pl_compile.driver.build_plans import build_bundle
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import ExportError
from pl_compile.exporters.tensorrt.api import check_capabilities, tensorrt_module
from pl_compile.runtime.engines.engine import Engine
from pl_compile.runtime.engines.opening import open_engine
from pl_compile.runtime.served_task import ServedTask, tasks_of_bundle
from pl_compile.testing import random_table
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.reference import TorchEngine, reference_name

FORMS = {"float32": BuildOptions("none"), "float16": BuildOptions("none", dtype="float16")}
# Compute capability of Hopper, for which TensorRT for RTX does not build.
NOT_SERVED = "9.0"


def run(report: Report, job: Job) -> None:
    """The part."""
    found = [name for name, row in PLAN_TARGETS.items() if importlib.util.find_spec(row.package)]
    if "tensorrt-rtx" in found:
        _not_served(report)
    target = "tensorrt" if job.on_gpu else "tensorrt-rtx"
    if target not in found:
        raise MissingError(f"the package {PLAN_TARGETS[target].package}")
    base = llama_base(job.work / "small-trt", STAND_IN, vocab=401)
    table = random_table(base, job.work / "prompts-trt.safetensors", prefix=True)
    _plan(report, job, target, base, table, job.what, FORMS[job.what])


def _not_served(report: Report) -> None:
    try:
        check_capabilities(tensorrt_module("tensorrt-rtx"), [NOT_SERVED])
    except ExportError as error:
        said = str(error)
    else:
        said = "it builds for it"
    named = f"'{NOT_SERVED}'" in said and "--target tensorrt" in said
    report.expect(f"tensorrt-rtx for {NOT_SERVED}", said, "refused by name", named)


def _plan(
    report: Report,
    job: Job,
    target: str,
    base: Path,
    table: Path,
    form: str,
    options: BuildOptions,
) -> None:
    folder = job.work / f"{target}-{form}"
    export_bundle(ExportRequest(table, base, folder, target=target, options=options))
    report.figure(f"{form}: plan, bytes", (folder / "base" / PLAN_NAME).stat().st_size)
    bundle = read_bundle(folder)
    if job.on_gpu:
        report.figure(f"{form}: attention", build_bundle(folder).attention)
        bundle = read_bundle(folder)
        _compare(report, job, folder, base, form, open_engine(bundle))
    else:
        manifest = bundle.manifest
        with checking_engine(
            bundle.base_folder, target, manifest.graph, manifest.precision.dtype
        ) as engine:
            _compare(report, job, folder, base, form, engine)


def _compare(report: Report, job: Job, folder: Path, base: Path, form: str, engine: Engine) -> None:
    bundle = read_bundle(folder)
    contract = bundle.manifest.graph
    tokenizer = Tokenizer.from_folder(folder, vocab=contract.vocab)
    learned = {
        name: ServedTask.of(entry, tokenizer, number)
        for number, (name, entry) in enumerate(bundle.entries.items())
    }
    served = tasks_of_bundle(bundle, tokenizer)
    rows = probe_rows(
        learned, tokenizer, vocab=contract.vocab, capacity=contract.capacity, served=served
    )
    expected = trace_reference(TorchEngine(base, device=job.device), rows)
    found = trace(engine, rows, follow=expected.tokens)
    for parity in compare(
        rows, expected, found, reference_name(), limit_of(bundle.manifest.precision)
    ):
        report.expect(f"{form}: task {parity.task}", parity.finding, "parity", parity.passed)
    alone = trace(engine, rows, follow=expected.tokens, alone=True)
    apart = float(abs(found.logits - alone.logits).max() / abs(found.logits).max())
    limit = self_limit_of(bundle.manifest.precision)
    report.at_most(f"{form}: mixed batch, logits to those alone", apart, limit.difference)
    bits = float((found.logits == alone.logits).mean())
    report.figure(f"{form}: mixed batch, part of the logits with the same bits", bits)
    seconds = median_seconds(lambda: trace(engine, rows[:1]), 3, lambda: None)
    report.figure(f"{form}: a prompt and 16 steps of one row: s", seconds)
