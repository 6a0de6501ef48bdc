"""Checks of an export before the bundle is finished: its tasks, and its numbers against torch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from pl_compile.artifact.bundle import Precision
from pl_compile.checks.bundle_checks import Checks, check_bundle
from pl_compile.checks.checking_engine import can_check, checking_engine, why_unchecked
from pl_compile.checks.lint import TaskLint, lint_tasks
from pl_compile.driver.export_inputs import ExportInputs
from pl_compile.driver.export_request import ExportRequest
from pl_compile.families.names import EMBEDDING
from pl_compile.progress import Progress
from pl_compile.runtime.engines.engine import Engine
from pl_compile.runtime.served_task import ServedTask
from pl_compile.weights.load import Weights


def lint_export(
    request: ExportRequest, inputs: ExportInputs, weights: Weights, progress: Progress
) -> tuple[TaskLint, ...]:
    """Looks at every task, and reports what looks wrong."""
    recipe = inputs.recipe
    results = lint_tasks(
        recipe.entries,
        inputs.tasks,
        recipe.config,
        recipe.contract,
        weights[EMBEDDING],
        request.base,
        inputs.tokenizer,
    )
    for result in results:
        for finding in result.findings:
            progress.say(f"task '{result.task}': {finding}")
    return tuple(results)


@contextmanager
def engine_of(staging: Path, inputs: ExportInputs, precision: Precision) -> Iterator[Engine | None]:
    """The engine that computes openings and is compared; None if this machine can run none."""
    if not can_check(inputs.target):
        yield None
        return
    with checking_engine(
        staging / "base",
        inputs.target,
        inputs.recipe.contract,
        precision.cache_dtype,
        quantization=precision.quantization,
        prefix_bits=precision.prefix_bits,
    ) as engine:
        yield engine


def check_export(
    request: ExportRequest,
    inputs: ExportInputs,
    engine: Engine | None,
    served: Mapping[str, ServedTask],
    precision: Precision,
    progress: Progress,
) -> Checks:
    """All comparisons of the bundle that are asked for and can be made."""
    return check_bundle(
        engine,
        inputs.tasks,
        served,
        inputs.tokenizer,
        precision=precision,
        base=request.base if _has_reference(request, inputs.target, progress) else None,
        config=inputs.recipe.config,
        progress=progress,
    )


def _has_reference(request: ExportRequest, target: str, progress: Progress) -> bool:
    if not request.measure_parity:
        return False
    if not can_check(target):
        progress.say(f"parity is not measured: {why_unchecked(target)}")
        return False
    if find_spec("torch") is None or find_spec("transformers") is None:
        progress.say("parity is not measured: torch and transformers are not installed")
        return False
    return True
