"""Writes the parts of a bundle besides its base: tasks, checks, report, manifest; reads it back."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pl_compile import __version__
from pl_compile.artifact.bundle import (
    TABLES_NAME,
    Manifest,
    Precision,
    read_bundle,
    task_folder,
    write_json,
    write_labels,
    write_task,
)
from pl_compile.artifact.selftest import SELFTEST_NAME
from pl_compile.artifact.tensors import tensor_bytes
from pl_compile.checks.arithmetic import kernels_of
from pl_compile.checks.bundle_checks import Checks
from pl_compile.checks.lint import TaskLint
from pl_compile.driver.compile_base import CompiledBase
from pl_compile.driver.export_inputs import ExportInputs
from pl_compile.driver.forecast import Forecast
from pl_compile.errors import TablesError, reason_of
from pl_compile.progress import Progress
from pl_compile.report.model import Effect, Report
from pl_compile.runtime.served_task import tasks_of_bundle
from pl_compile.text.tables import tables_of
from pl_compile.text.tokenizer import Tokenizer


def write_tasks(staging: Path, inputs: ExportInputs) -> None:
    """Writes each task, with its labels where it has some."""
    for name, entry in inputs.table.entries.items():
        write_task(staging, entry)
        write_labels(staging, name, inputs.tasks[name].trie)


def write_tokenizer(staging: Path, tokenizer: Tokenizer, progress: Progress) -> str | None:
    """Writes the tokenizer, and its tables for a runtime in C++.

    Returns:
        Why there are no tables; None where there are.
    """
    (staging / "tokenizer.json").write_text(tokenizer.text, encoding="utf-8")
    try:
        tables = tables_of(tokenizer.text)
    except TablesError as error:
        reason = reason_of(error)
        progress.say(f"no {TABLES_NAME}, which the C and C++ runtime reads: {reason}")
        return reason
    (staging / TABLES_NAME).write_bytes(tables)
    return None


def write_checks(staging: Path, checks: Checks) -> None:
    """Writes the self-test of each task, and how it compares with the reference."""
    for name, arrays in checks.selftests.items():
        path = task_folder(staging, name) / SELFTEST_NAME
        path.write_bytes(tensor_bytes(arrays))
    comparisons = checks.comparisons
    for result, tokens in zip(comparisons.torch, comparisons.tokens, strict=True):
        record = {**asdict(result), "tokens": asdict(tokens)}
        write_json(task_folder(staging, result.task) / "parity.json", record)


def report_of_export(
    inputs: ExportInputs,
    forecast: Forecast,
    compiled: CompiledBase,
    precision: Precision,
    lint: tuple[TaskLint, ...],
    effect: tuple[Effect, ...],
    checks: Checks,
    seconds: Mapping[str, float],
) -> Report:
    """The content of `report.json`."""
    recipe = inputs.recipe
    return Report(
        parity=checks.verdict,
        failures=checks.failures,
        target=inputs.target,
        choices=forecast.choices,
        base=inputs.table.base,
        precision=precision,
        prompts=recipe.contract.prompts,
        ranks=recipe.contract.ranks,
        plans=compiled.plans,
        sampling=recipe.options.sampling,
        checks=checks.comparisons,
        lint=lint,
        cost=forecast.base,
        tasks=forecast.tasks,
        passes=compiled.passes,
        weight_errors=compiled.weight_errors,
        effect=effect,
        seconds=seconds,
    )


def manifest_of(
    inputs: ExportInputs,
    compiled: CompiledBase,
    checks: Checks,
    precision: Precision,
    no_tables: str | None,
) -> Manifest:
    """The content of `manifest.json` except for the sums."""
    exporter = inputs.recipe.exporter
    return Manifest(
        base=inputs.table.base,
        target=inputs.target,
        graph=inputs.recipe.contract,
        tasks=tuple(inputs.tasks),
        toolchain={"plc": __version__, **exporter.describe(), **kernels_of(inputs.target)},
        parity=checks.verdict,
        precision=precision,
        kernels=compiled.kernels,
        no_tokenizer_tables=no_tables,
    )


def read_back(staging: Path, inputs: ExportInputs) -> None:
    """Reads the bundle as a runtime would, and raises what that raises: it is not kept then."""
    written = read_bundle(staging, sums=False)
    tasks_of_bundle(written, inputs.tokenizer)
    for name in inputs.tasks:
        written.selftest(name)
