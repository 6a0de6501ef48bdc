"""`plc export`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pl_compile.cli.options import given_for, option_of
from pl_compile.cli.plan import plan_options, print_plans
from pl_compile.cli.terminal import (
    OutputPath,
    TerminalProgress,
    json_option,
    need_extra,
    number,
    print_json,
    print_table,
)
from pl_compile.config.build import BuildOptions, Choice
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import ParityError, list_problems

if TYPE_CHECKING:
    from pl_compile.checks.parity import Parity
    from pl_compile.driver.export import ExportResult
    from pl_compile.driver.forecast import Forecast
    from pl_compile.report.model import Effect, TaskCost
    from pl_compile.training.compare_tokens import TokenCheck


@click.command("export", epilog="Example: plc export --task squad --output bundle")
@option_of(ExportRequest, "tasks", "--task")
@click.option(
    "--prompts",
    "table",
    type=click.Path(path_type=Path),
    help="The prompt table; the newest run's if left out.",
)
@click.option("--base", help="The base, by name or folder; that of the table's run if left out.")
@option_of(ExportRequest, "target")
@option_of(ExportRequest, "output", type=OutputPath(path_type=Path), default=Path("bundle"))
@option_of(ExportRequest, "prompts", "--prompts-mode")
@option_of(ExportRequest, "capacity")
@option_of(BuildOptions, "dtype")
@option_of(BuildOptions, "ranks", "--tp-size")
@plan_options
@option_of(BuildOptions, "defer_build")
@option_of(BuildOptions, "quantize")
@option_of(BuildOptions, "block")
@option_of(BuildOptions, "table_bits")
@option_of(ExportRequest, "calibrate")
@option_of(ExportRequest, "evaluate")
@option_of(ExportRequest, "fold")
@option_of(ExportRequest, "fold_mib", metavar="N")
@option_of(BuildOptions, "prefix_bits")
@option_of(BuildOptions, "cache_bits")
@option_of(BuildOptions, "sampling")
@option_of(BuildOptions, "candidates")
@option_of(ExportRequest, "triton")
@option_of(ExportRequest, "dump_passes", type=OutputPath(path_type=Path), metavar="DIR")
@click.option("--dry-run", is_flag=True, help="Say what it would cost; write nothing.")
@click.option("--no-parity", is_flag=True, help="Do not compare the bundle with torch.")
@json_option
def command(
    table: Path | None,
    base: str | None,
    dry_run: bool,
    no_parity: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Compile prompts and base into a bundle that a runtime serves.

    The bundle is compared with torch where torch is installed; beyond the tolerance it is still
    written, marked as failed, and the exit code is 3.
    """
    need_extra("export", "onnx", "onnx_ir")
    from pl_compile.driver.export import export_bundle
    from pl_compile.driver.forecast import forecast_export
    from pl_compile.driver.runs import find_base_of, newest_table

    if dry_run and given.get("dump_passes") is not None:
        raise click.UsageError("--dump-passes and --dry-run: a dry run builds no graph.")
    table = table or newest_table()
    request = given_for(
        ExportRequest,
        given,
        table=table,
        base=find_base_of(table, base),
        options=given_for(BuildOptions, given),
        measure_parity=not no_parity,
    )
    if dry_run:
        forecast = forecast_export(request, progress=TerminalProgress())
        if as_json:
            print_json({**asdict(forecast), "disk_bytes": forecast.disk_bytes})
        else:
            print_forecast(forecast)
        return
    result = export_bundle(request, progress=TerminalProgress())
    if as_json:
        print_json(record_of(result))
    else:
        print_result(result)
    if result.verdict == "failed":
        rounded = result.forecast.choices["quantize"].chosen != "none"
        fixes = ["The bundle is marked as failed; report.html says more. Do not serve it."]
        fixes += ["--quantize none keeps floats."] if rounded else []
        fixes += fixes_for_tokens(result.tokens, request.base)
        raise ParityError(
            f"exporting {result.bundle}",
            found=list_problems(result.failures),
            fix=" ".join(fixes),
        )


def record_of(result: "ExportResult") -> dict[str, Any]:
    """What `--json` prints. Two values keep their names of earlier releases there."""
    names = {"forecast": "plan", "verdict": "passed"}
    record = {names.get(name, name): value for name, value in asdict(result).items()}
    return {**record, "bundle": str(result.bundle)}


def print_result(result: "ExportResult") -> None:
    """What was compiled."""
    if result.parity:
        print_parity("Parity with torch", result.parity)
        print_tokens(result.tokens)
    print_folding(result.forecast.tasks)
    print_plans(result.plans)
    print_effect(result.effect)
    print_choices(result.forecast.choices)
    click.echo(
        f"wrote {result.bundle}: {', '.join(result.tasks)}; "
        f"{result.size_bytes / 1e6:.1f} MB; parity {result.verdict}"
    )


def print_forecast(forecast: "Forecast") -> None:
    """What an export would make."""
    base = forecast.base
    click.echo(
        f"{forecast.target}: {base.parameters / 1e6:.1f} million parameters, "
        f"{forecast.disk_bytes / 1e6:.1f} MB on the disk; "
        f"{base.cache_bytes_per_row / 1e6:.1f} MB of cache for each row\n"
        f"passes: {', '.join(forecast.passes)}"
    )
    print_folding(forecast.tasks)
    print_choices(forecast.choices)
    click.echo("nothing was written: --dry-run")


def print_choices(choices: "Mapping[str, Choice]") -> None:
    """A line for each option that the export chose: its value, and why."""
    for name, choice in choices.items():
        if choice.reason:
            click.echo(f"{name} {choice.chosen} ({choice.asked}): {choice.reason}")


def print_effect(effect: "Sequence[Effect]") -> None:
    """A row per task and metric: the bundle's score, beside that of the floats it came from."""
    if not effect:
        return
    rows = []
    for each in effect:
        for name, value in each.scores.items():
            if name == "total":
                continue
            row = [each.task, str(each.examples), name, number(value, 1)]
            if each.float32 is not None:
                row += [number(each.float32[name], 1), number(each.same_answers, 1)]
            rows.append(row)
    columns = ["task", "examples", "metric, %", effect[0].stored, "float32", "same answers, %"]
    title = "Scores of the bundle"
    if effect[0].float32 is not None:
        title += ", beside the floats that its weights came from"
    print_table(title, columns[: len(rows[0])], rows)


def print_folding(tasks: "Sequence[TaskCost]") -> None:
    """A row per task: what its opening costs, and what is done with it."""
    print_table(
        "Openings of tasks",
        ["task", "virtual", "opening", "folded", "MB", "why"],
        [
            [
                task.task,
                str(task.virtual_tokens),
                str(task.head_tokens),
                "yes" if task.folded else "no",
                f"{task.folded_bytes / 1e6:.2f}",
                task.reason,
            ]
            for task in tasks
        ],
    )


def print_parity(title: str, results: "Sequence[Parity]") -> None:
    """A row per comparison."""
    print_table(
        title,
        ["task", "rows", "steps", "largest difference", "of largest logit", "equal tokens", ""],
        [
            [
                result.task,
                str(result.rows),
                str(result.steps),
                f"{result.max_abs_difference:.2e}",
                f"{result.relative_difference:.2e}",
                f"{result.equal_tokens}/{result.rows * result.steps}",
                "passed" if result.passed else "FAILED",
            ]
            for result in results
        ],
    )


def fixes_for_tokens(checks: "Sequence[TokenCheck]", base: Path) -> list[str]:
    """What to do where prompts should have other tokens than `tokenizer.json` gives them.

    Args:
        checks: of the prompts' tokens.
        base: the Hugging Face folder.
    """
    from pl_compile.training.compare_tokens import fix_for_other_tokenizer

    is_of_files = any(check.difference and check.other_tokenizer for check in checks)
    return [fix_for_other_tokenizer(base)] if is_of_files else []


def print_tokens(checks: "Sequence[TokenCheck]") -> None:
    """A line per task: whether its tokens are those of transformers' own tokenizer."""
    for check in checks:
        compared = f"{check.compared} of {check.tokens} as in transformers"
        if not check.compared and not check.otherwise:
            compared = f"NOT COMPARED with transformers, none of {check.tokens}"
        said = [compared, check.why_not, check.note]
        verdict = check.difference or "; ".join(filter(None, said))
        click.echo(f"tokens of task '{check.task}': {verdict}")
