"""`plc train`."""

import os
from dataclasses import asdict
from pathlib import Path

import click

from pl_compile.cli.terminal import (
    OutputPath,
    TerminalProgress,
    json_option,
    need_extra,
    number,
    print_json,
    print_table,
)
from pl_compile.progress import SILENT, Progress


@click.command(
    "train", epilog="Example: plc train examples/quickstart/train.yaml --set trainer.max_steps=20"
)
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key of CONFIG."
)
@click.option(
    "--output",
    type=OutputPath(path_type=Path),
    help="Run folder; runs/<name of CONFIG> if left out.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in the run folder, bit for bit.")
@json_option
def command(
    config: Path, settings: tuple[str, ...], output: Path | None, resume: bool, as_json: bool
) -> None:
    """Train the prompts that CONFIG describes, on a frozen base.

    The run folder gets prompts.safetensors (the prompt table), config.yaml, metrics.jsonl,
    curves.png and checkpoints.
    """
    need_extra("train", "torch", "transformers", "matplotlib")
    if "WORLD_SIZE" in os.environ:
        # Where a process ends, the others report it in a line; torch would add pages of addresses.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from pl_compile.driver.train import train_run
    from pl_compile.training.read_config import read_train_config
    from pl_compile.training.team import leads, only_the_leader_raises

    progress: Progress = TerminalProgress() if leads() else SILENT
    with only_the_leader_raises():
        resolved = read_train_config(config, settings, progress=progress)
    folder = output or Path("runs") / config.stem
    result = train_run(resolved, folder, resume=resume, progress=progress)
    if not leads():
        return
    if as_json:
        paths = {"table": _text(result.table), "base": _text(result.base)}
        print_json({**asdict(result), **paths})
        return
    ended = f" (ended by {result.ended})" if result.ended else ""
    skipped = f", {result.skipped} skipped" if result.skipped else ""
    print_table(
        f"{result.steps} steps{ended}{skipped} in {result.seconds:.0f} s; "
        f"best after step {result.best_step}",
        ["task", "virtual", "training", "validation", "loss, no prompt", "loss, prompt"],
        [
            [
                task.taskname,
                str(task.virtual_tokens),
                str(task.train_examples),
                str(task.validation_examples),
                number(task.loss_without_prompt),
                number(task.loss_with_prompt),
            ]
            for task in result.tasks
        ],
    )
    click.echo(
        f"trained {result.trained:,} numbers, {result.frozen:,} frozen (unchanged by their sum)"
    )
    for path in (result.base, result.table):
        if path is not None:
            click.echo(f"wrote {path}")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
