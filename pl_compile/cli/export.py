"""`plc export`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

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
from pl_compile.config.build import AUTO, BuildOptions
from pl_compile.config.targets import TARGETS
from pl_compile.errors import ParityError, list_problems

# What the help says of single targets.
_BAKED = " and ".join(name for name, row in TARGETS.items() if row.prompts == "baked")
_BLOCKS = "; ".join(
    f"{name} takes {' and '.join(map(str, row.blocks))}"
    for name, row in TARGETS.items()
    if row.blocks
)


@click.command("export", epilog="Example: plc export --task squad --output bundle")
@click.option("--task", "tasks", multiple=True, help="A task of the table; all if left out.")
@click.option(
    "--prompts",
    "table",
    type=click.Path(path_type=Path),
    help="The prompt table; the newest run's if left out.",
)
@click.option("--base", help="The base, by name or folder; that of the table's run if left out.")
@click.option(
    "--target",
    default=AUTO,
    show_default=True,
    help=f"What to build for: {', '.join(TARGETS)}. auto is the fastest on this machine's CPU.",
)
@click.option(
    "--output",
    type=OutputPath(path_type=Path),
    default=Path("bundle"),
    show_default=True,
    help="The bundle's folder; a bundle there is replaced.",
)
@click.option(
    "--prompts-mode",
    type=click.Choice(["input", "baked"]),
    help="Whether prompts are given with each step, or are constants of the graph. "
    f"[default: input; baked for {_BAKED}]",
)
@click.option(
    "--capacity",
    type=int,
    help="Longest sequence of a row; 1024, or less where the base is shorter, if left out.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default=BuildOptions.dtype,
    show_default=True,
    help="Of activations, caches and weights that are not quantised.",
)
@click.option(
    "--tp-size",
    type=int,
    default=BuildOptions.ranks,
    show_default=True,
    help="Ranks among which the base is divided: processes on CPU, or one GPU each.",
)
@plan_options
@click.option(
    "--defer-build", is_flag=True, help="Leave plans to the device that runs them: plc build."
)
@click.option(
    "--quantize",
    type=click.Choice([AUTO, "none", "int8", "int4"]),
    default=BuildOptions.quantize,
    show_default=True,
    help="How weights are stored; auto takes 4 or 8 bits where no weight loses by it. Activations "
    "are rounded to 8 bits inside products then: --evaluate measures it, none avoids it.",
)
@click.option(
    "--block",
    type=int,
    help=f"Inputs that share a scale. {_BLOCKS}; other targets take more of them, and 0 for one "
    "scale a channel. [default: 32]",
)
@click.option(
    "--table-bits",
    type=click.Choice(["0", "4", "8"]),
    help="Of embedding and head, where weights are quantised; 0 leaves them floats. [default: 8]",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Examples (JSONL) that say which errors of quantised weights matter: GPTQ.",
)
@click.option(
    "--evaluate",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Examples with answers: score the bundle, beside float32 where it has other weights.",
)
@click.option(
    "--fold",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Whether what templates open with is stored as computed keys and values.",
)
@click.option(
    "--sampling",
    type=click.Choice(["host", "graph"]),
    default=BuildOptions.sampling,
    show_default=True,
    help="Who chooses the next token.",
)
@click.option(
    "--candidates", type=int, help="Likeliest tokens that the graph samples from. [default: 256]"
)
@click.option(
    "--dump-passes",
    type=OutputPath(path_type=Path),
    metavar="DIR",
    help="Write the graph as text after each pass.",
)
@click.option("--dry-run", is_flag=True, help="Say what it would cost; write nothing.")
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
    dtype: Any,
    tp_size: int,
    max_batch: int | None,
    ep_context: bool,
    compute_capabilities: tuple[str, ...],
    defer_build: bool,
    quantize: Any,
    block: int | None,
    table_bits: str | None,
    calibrate: tuple[Path, ...],
    evaluate: tuple[Path, ...],
    fold: Any,
    sampling: Any,
    candidates: int | None,
    dump_passes: Path | None,
    dry_run: bool,
    no_parity: bool,
    as_json: bool,
) -> None:
    """Compile prompts and base into a bundle that a runtime serves.

    The bundle is compared with torch where torch is installed; beyond the tolerance it is still
    written, marked as failed, and the exit code is 3.
    """
    need_extra("export", "onnx", "onnx_ir")
    from pl_compile.driver.export import ExportRequest, export_bundle, plan_export
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
        options=BuildOptions(
            quantize=quantize,
            block=block,
            table_bits=None if table_bits is None else int(table_bits),
            sampling=sampling,
            candidates=candidates,
            dtype=dtype,
            ranks=tp_size,
            max_batch=max_batch,
            compute_capabilities=compute_capabilities,
            defer_build=defer_build,
            ep_context=ep_context,
        ),
        fold=fold,
        calibrate=calibrate,
        evaluate=evaluate,
        dump_passes=dump_passes,
        measure_parity=not no_parity,
    )
    if dry_run:
        plan = plan_export(request, progress=TerminalProgress())
        if as_json:
            print_json({**asdict(plan), "disk_bytes": plan.disk_bytes})
        else:
            print_plan(plan)
        return
    result = export_bundle(request, progress=TerminalProgress())
    if as_json:
        print_json({**asdict(result), "bundle": str(result.bundle)})
    else:
        if result.parity:
            print_parity("Parity with torch", result.parity)
            print_tokens(result.tokens)
        print_folding(result.plan)
        print_plans(result.plans)
        print_effect(result.effect)
        print_choices(result.plan)
        click.echo(
            f"wrote {result.bundle}: {', '.join(result.tasks)}; "
            f"{result.size_bytes / 1e6:.1f} MB; parity {result.passed}"
        )
    if result.passed == "failed":
        rounded = result.plan.choices["quantize"].chosen != "none"
        fixes = ["The bundle is marked as failed; report.html says more. Do not serve it."]
        fixes += ["--quantize none keeps floats."] if rounded else []
        fixes += fixes_for_tokens(result.tokens, request.base)
        raise ParityError(
            f"exporting {result.bundle}",
            found=list_problems(result.failures),
            fix=" ".join(fixes),
        )


def print_plan(plan: Any) -> None:
    """What an export would make."""
    base = plan.base
    click.echo(
        f"{plan.target}: {base.parameters / 1e6:.1f} million parameters, "
        f"{plan.disk_bytes / 1e6:.1f} MB on the disk; "
        f"{base.cache_bytes_per_row / 1e6:.1f} MB of cache for each row\n"
        f"passes: {', '.join(plan.passes)}"
    )
    print_folding(plan)
    print_choices(plan)
    click.echo("nothing was written: --dry-run")


def print_choices(plan: Any) -> None:
    """A line for each option that was left to the export: what it came to, and why."""
    for name, choice in plan.choices.items():
        if choice.reason:
            click.echo(f"{name} {choice.chosen} ({choice.asked}): {choice.reason}")


def print_effect(effect: Any) -> None:
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


def print_folding(plan: Any) -> None:
    """A row per task: what its head costs, and what is done with it."""
    print_table(
        "Constant heads",
        ["task", "virtual", "head", "folded", "MB", "why"],
        [
            [
                task.task,
                str(task.virtual_tokens),
                str(task.head_tokens),
                "yes" if task.folded else "no",
                f"{task.folded_bytes / 1e6:.2f}",
                task.reason,
            ]
            for task in plan.tasks
        ],
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


def fixes_for_tokens(checks: Any, base: Path) -> list[str]:
    """What to do where prompts are to have the tokens of another tokenizer than `tokenizer.json`'s.

    Args:
        checks: of the prompts' tokens.
        base: the Hugging Face folder.
    """
    from pl_compile.training.compare_tokens import way_out

    is_of_files = any(check.difference and check.other_tokenizer for check in checks)
    return [way_out(base)] if is_of_files else []


def print_tokens(checks: Any) -> None:
    """A line per task: whether its tokens are those of transformers' own tokenizer."""
    for check in checks:
        compared = f"{check.compared} of {check.tokens} as in transformers"
        if not check.compared and not check.otherwise:
            compared = f"NOT COMPARED with transformers, none of {check.tokens}"
        said = [compared, check.why_not, check.note]
        verdict = check.difference or "; ".join(filter(None, said))
        click.echo(f"tokens of task '{check.task}': {verdict}")
