"""`plc prepare`: a publisher's data set to JSON lines.

Parses, calls one function of `pl_compile.training.prepare`, prints the rows of each file.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pl_compile.cli.terminal import InputPath, OutputPath, TerminalProgress, example

F = TypeVar("F", bound=Callable[..., Any])

_DELIMITERS = ("comma", "semicolon", "tab", "pipe")
_QUOTES = ("double", "backslash", "none")


@click.group("prepare")
def command() -> None:
    """Turn a publisher's data set into JSON lines."""


def _input_and_output(what: str) -> Callable[[F], F]:
    """The options that every data set has; `what` says what the input is."""

    def add_options(command: F) -> F:
        for option in (
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
            click.option(
                "--output",
                "output_dir",
                metavar="DIR",
                type=OutputPath(path_type=Path, file_okay=False),
                required=True,
                help="The folder to write to; made if it does not exist.",
            ),
            click.option(
                "--input",
                "input_path",
                metavar="PATH",
                type=InputPath(path_type=Path, allow_dash=True),
                required=True,
                help=what,
            ),
        ):
            command = option(command)
        return command

    return add_options


def _print(files: dict[str, int], output_dir: Path, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"files": files}))
        return
    for name, n_rows in files.items():
        click.echo(f"{output_dir / name}: {n_rows} rows")


@command.command(epilog=example("plc prepare squad --input squad --output data"))
@_input_and_output("The folder with one *train*.json and one *dev*.json (or *val*; or .jsonl).")
@click.option("--train-file", metavar="FILE", help="The training file in that folder, by name.")
@click.option("--dev-file", metavar="FILE", help="The development file in that folder, by name.")
@click.option("--include-topic", is_flag=True, help="Add the article's title as field 'topic'.")
def squad(
    input_path: Path,
    output_dir: Path,
    train_file: str | None,
    dev_file: str | None,
    include_topic: bool,
    as_json: bool,
) -> None:
    """SQuAD v1.1 or v2.0, or files of its form or that of datasets: questions on a paragraph."""
    from pl_compile.training.prepare.squad import prepare_squad

    files = prepare_squad(
        input_path,
        output_dir,
        train_file=train_file,
        dev_file=dev_file,
        include_topic=include_topic,
    )
    _print(files, output_dir, as_json=as_json)


@command.command(
    epilog=example("plc prepare phrasebank --input FinancialPhraseBank-v1.0 --output data")
)
@_input_and_output("Sentences_AllAgree.txt, another Sentences_*.txt, or the folder of the first.")
@click.option(
    "--train-fraction",
    type=float,
    default=0.8,
    show_default=True,
    help="Share of training rows; validation and test get half of the rest each.",
)
@click.option("--seed", type=int, default=1234, show_default=True, help="Of the shuffle.")
def phrasebank(
    input_path: Path, output_dir: Path, train_fraction: float, seed: int, as_json: bool
) -> None:
    """Financial PhraseBank: the sentiment of sentences from the news."""
    from pl_compile.training.prepare.phrasebank import prepare_phrasebank

    files = prepare_phrasebank(input_path, output_dir, train_fraction=train_fraction, seed=seed)
    _print(files, output_dir, as_json=as_json)


@command.command(
    epilog=example("plc prepare assistant --input NLU-Evaluation-Data-master --output data")
)
@_input_and_output("The folder KFold_1 of NLU-Evaluation-Data, or any folder above it.")
@click.option("--include-options", is_flag=True, help="Add the names of all intents and slots.")
@click.option("--seed", type=int, default=42, show_default=True, help="Of the shuffles.")
def assistant(
    input_path: Path, output_dir: Path, include_options: bool, seed: int, as_json: bool
) -> None:
    """Assistant (NLU-Evaluation-Data): intents and slots of spoken requests."""
    from pl_compile.training.prepare.assistant import prepare_assistant

    files = prepare_assistant(input_path, output_dir, include_options=include_options, seed=seed)
    _print(files, output_dir, as_json=as_json)


@command.command(
    "csv", epilog=example("plc prepare csv --input news.csv --output data --taskname topic")
)
@_input_and_output("A UTF-8 file with a header row; - is standard input.")
@click.option("--taskname", metavar="NAME", required=True, help="The task of all rows.")
@click.option(
    "--delimiter",
    type=click.Choice(_DELIMITERS),
    help="What separates fields; by default the one that divides the header into most fields.",
)
@click.option(
    "--quotes",
    type=click.Choice(_QUOTES),
    help='How a quoted field writes a quote: "" or \\". none: quotes are characters of the texts, '
    "and each line is a row. By default double; files that may be meant as none are refused.",
)
@click.option(
    "--columns",
    metavar="NAME,NAME",
    multiple=True,
    help="The columns to take, by the header's names. By default all.",
)
@click.option(
    "--split",
    "fractions",
    metavar="TRAIN VAL TEST",
    type=(float, float, float),
    help="Shuffle and split; three shares that add up to 1. By default one file, same order.",
)
@click.option("--seed", type=int, default=1234, show_default=True, help="Of the shuffle.")
def csv_file(
    input_path: Path,
    output_dir: Path,
    taskname: str,
    delimiter: str | None,
    quotes: str | None,
    columns: tuple[str, ...],
    fractions: tuple[float, float, float] | None,
    seed: int,
    as_json: bool,
) -> None:
    """Any CSV or TSV file: the header's names become the fields."""
    from pl_compile.training.prepare.csv_file import prepare_csv

    files = prepare_csv(
        input_path,
        output_dir,
        taskname=taskname,
        delimiter=delimiter,
        quotes=quotes,
        columns=[name.strip() for part in columns for name in part.split(",") if name.strip()],
        fractions=fractions,
        seed=seed,
        progress=TerminalProgress(),
    )
    _print(files, output_dir, as_json=as_json)
