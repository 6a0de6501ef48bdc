"""`plc export`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pl_compile.cli.terminal import (
    TerminalProgress,
    json_option,
    need_extra,
    print_json,
    print_table,
)
from pl_compile.errors import ParityError


@click.command("export", epilog="Example: plc export --task squad --output bundle")
@click.option("--task", "tasks", multiple=True, help="A task of the table; all if left out.")
@click.option(
    "--prompts",
    "table",
    type=click.Path(path_type=Path),
    help="The prompt table; the newest run's if left out.",
)
@click.option("--base", help="The base, by name or folder; that of the table's run if left out.")
@click.option("--target", default="onnx-cpu", show_default=True, help="What to build for.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("bundle"),
    show_default=True,
    help="The bundle's folder; a bundle there is replaced.",
)
@click.option(
    "--prompts-mode",
    type=click.Choice(["input", "baked"]),
    default="input",
    show_default=True,
    help="Whether tasks can be added later, or are constants of the graph.",
)
@click.option(
    "--capacity",
    type=int,
    help="Longest sequence of a row; 1024, or less where the base is shorter, if left out.",
)
@click.option("--no-parity", is_flag=True, help="Do not compare the bundle with torch.")
@json_option
def command(
    tasks: tuple[str, ...],
    table: Path | None,
    base: str | None,
    target: str,
    output: Path,
    prompts_mode: Any,
    capacity: int | None,
    no_parity: bool,
    as_json: bool,
) -> None:
    """Compile prompts and base into a bundle that a runtime serves.

    The bundle is compared with torch where torch is installed; beyond the tolerance it is still
    written, marked as failed, and the exit code is 3.
    """
    need_extra("export", "onnx", "onnx_ir")
    from pl_compile.driver.export import ExportRequest, export_bundle
    from pl_compile.driver.runs import find_base_of, newest_table

    table = table or newest_table()
    request = ExportRequest(
        table=table,
        base=find_base_of(table, base),
        output=output,
        tasks=tasks,
        target=target,
        prompts=prompts_mode,
        capacity=capacity,
        measure_parity=not no_parity,
    )
    result = export_bundle(request, progress=TerminalProgress())
    if as_json:
        print_json({**asdict(result), "bundle": str(result.bundle)})
    else:
        if result.parity:
            print_parity("Parity with torch", result.parity)
        click.echo(
            f"wrote {result.bundle}: {', '.join(result.tasks)}; "
            f"{result.size_bytes / 1e6:.1f} MB; parity {result.passed}"
        )
    if result.passed == "failed":
        raise parity_error(
            f"exporting {result.bundle}", result.parity, "The bundle is marked as failed."
        )


def print_parity(title: str, results: Any) -> None:
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


def parity_error(doing: str, results: Any, fix: str) -> ParityError:
    """The error for comparisons that failed."""
    failed = [result for result in results if not result.passed]
    worst = max(failed, key=lambda result: float(result.relative_difference))
    return ParityError(
        doing,
        found=f"task '{worst.task}' differs by {worst.relative_difference:.2e} of the largest "
        f"logit, {worst.equal_tokens} of {worst.rows * worst.steps} tokens agree",
        expected=f"at most {worst.tolerance:.0e} and all tokens",
        fix=f"{fix} Do not serve it: export it again, and report it if that does not help.",
    )
