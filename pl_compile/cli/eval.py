"""`plc eval`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pl_compile.cli.provider import chosen_provider, provider_options
from pl_compile.cli.terminal import (
    InputPath,
    TerminalProgress,
    json_option,
    need_extra,
    number,
    print_json,
    print_table,
)
from pl_compile.errors import AnswerError


@click.command(
    "eval", epilog="Example: plc eval bundle --data examples/quickstart/data/ticket_test.jsonl"
)
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=InputPath(path_type=Path, allow_dash=True),
    multiple=True,
    required=True,
    help="Examples with their answers, of any mix of tasks; - is standard input.",
)
@click.option(
    "--metric",
    default="auto",
    show_default=True,
    help="accuracy, exact_match, squad, intent_slot, rouge, or auto.",
)
@click.option("--no-baseline", is_flag=True, help="Do not ask the base without prompts as well.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first examples of each task.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    help="Longest answer; by default it follows from the right answers.",
)
@click.option("--base", help="For a prompt table: its base, if that is not in its run folder.")
@click.option(
    "--reference", help="For a bundle: its base; also answer with torch and count agreement."
)
@provider_options
@json_option
def command(
    path: Path,
    data: tuple[Path, ...],
    metric: str,
    no_baseline: bool,
    limit: int | None,
    max_tokens: int | None,
    base: str | None,
    reference: str | None,
    provider: str | None,
    provider_pairs: tuple[str, ...],
    provider_library: Path | None,
    as_json: bool,
) -> None:
    """Score the tasks of PATH, a bundle or a prompt table, with and without their prompts."""
    from pl_compile.driver import evaluate
    from pl_compile.driver.runs import find_base_of
    from pl_compile.runtime import Session
    from pl_compile.weights.bases import find_base

    if path.is_dir() and base is not None:
        raise click.UsageError("--base goes with a prompt table; a bundle holds its base.")
    chosen = chosen_provider(provider, provider_pairs, provider_library)
    if not path.is_dir() and chosen is not None:
        raise click.UsageError("--provider goes with a bundle; a prompt table runs on torch.")
    if not path.is_dir() and reference is not None:
        raise click.UsageError(
            "--reference goes with a bundle; a prompt table runs on torch anyway."
        )
    if metric == "rouge":
        need_extra("eval", "rouge_score")  # reported before answers are generated
    if path.is_dir():
        session = Session.open(path, provider=chosen)
    else:
        need_extra("train", "torch", "transformers", "ml_dtypes")
        session = evaluate.session_on_table(path, find_base_of(path, base))
    compared = None
    if reference is not None:
        need_extra("train", "torch", "transformers", "ml_dtypes")
        compared = evaluate.session_on_reference(path, find_base(reference))
    options = evaluate.EvalOptions(
        metric=metric, baseline=not no_baseline, max_tokens=max_tokens, limit=limit
    )
    failed = None
    try:
        scores = evaluate.evaluate(
            session, data, options, reference=compared, progress=TerminalProgress()
        )
    except AnswerError as error:
        scores, failed = list(error.results), error  # reported after the other tasks' scores
    _print_scores(path, scores, as_json)
    if failed is not None:
        raise failed


def _print_scores(path: Path, scores: Sequence[Any], as_json: bool) -> None:
    if as_json:
        left_out = ("asked", "expected")  # --data holds the same
        print_json(
            {
                "tasks": [
                    {key: value for key, value in asdict(score).items() if key not in left_out}
                    for score in scores
                ]
            }
        )
        return
    rows = [
        [
            score.task,
            str(score.examples),
            name,
            number((score.without_prompt or {}).get(name), 1),
            number(value, 1),
            number(score.same_as_reference, 1),
        ]
        for score in scores
        for name, value in score.with_prompt.items()
        if name != "total"
    ]
    columns = ["task", "examples", "metric, %", "no prompt", "prompt", "same as torch"]
    print_table(f"Scores of {path}", columns, rows)
