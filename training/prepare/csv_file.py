"""Any delimited file with a header row to JSON lines.

In: a UTF-8 file, fields between commas, semicolons, tabs or bars, in quotes where needed or never.
Out: a JSON object for each row, with `taskname` and the header's names as fields, and texts as they
are; in one file, or split into training, validation and test. Knows nothing of templates, and so
not which field is the answer.
"""

import random
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from pl_compile.config.task import check_taskname
from pl_compile.errors import ConfigError, DataError, list_problems
from pl_compile.progress import SILENT, Progress
from pl_compile.text.examples import first_places
from pl_compile.training.prepare.delimited import DELIMITERS, QUOTES, Record, read_table
from pl_compile.training.prepare.splits import Row, deal_out, shuffled, write_jsonl


def prepare_csv(
    input_path: Path,
    output_dir: Path,
    *,
    taskname: str,
    delimiter: str | None = None,
    quotes: str | None = None,
    columns: Sequence[str] = (),
    fractions: tuple[float, float, float] | None = None,
    seed: int = 1234,
    progress: Progress = SILENT,
) -> dict[str, int]:
    """Writes a delimited file as JSON lines, under the file's name without its ending.

    Args:
        input_path: the file.
        output_dir: made if it does not exist.
        taskname: the value of the field `taskname` in every row.
        delimiter: a name from `DELIMITERS`. None takes the one that a first line `sep=;` names, or
            the one that divides the header into most fields.
        quotes: one of `QUOTES`: how a field in quotes writes a quote ("double", "backslash"), or
            that quotes are characters of the texts ("none"). None is "double", but rows that may
            belong to a file without such quotes are refused, or counted in a warning.
        columns: the names of the columns to take, in this order; all if empty.
        fractions: the shares of training, validation and test, together 1: the rows are shuffled
            and go to NAME_train.jsonl, NAME_val.jsonl and NAME_test.jsonl. A share of 0 makes no
            file. None keeps the order and writes one NAME.jsonl.
        seed: of the shuffle.
        progress: gets the names of the fields, and which of them have empty texts.

    Returns:
        The number of rows by file name.

    Raises:
        ConfigError: a `taskname` that no config can have, an unknown delimiter or value of
            `quotes`, or impossible fractions.
        DataError: the file is missing or malformed: all problems, with their lines. Nothing is
            written then.
        ArtifactError: the files cannot be written.
    """
    doing = f"reading {input_path}"
    check_taskname(taskname, doing=doing)
    separator = delimiter and DELIMITERS[_known(delimiter, DELIMITERS, "delimiter", doing)]
    quotes = quotes and _known(quotes, QUOTES, "quotes", doing)

    table = read_table(input_path, delimiter=separator, quotes=quotes, columns=columns)
    records, problems = table.records, [str(problem) for problem in table.problems]
    if any("taskname" in record.fields for record in records[:1]):
        others = ",".join(name for name in records[0].fields if name not in ("", "taskname"))
        problems.append(
            f"{input_path.name}: a column 'taskname', which --taskname sets: name the others with "
            f"--columns {shlex.quote(others)}"
        )
    names = [name for record in records[:1] for name in record.fields if {"{", "}"} & {*name}]
    problems += [f"{input_path.name}: braces in the column {name!r}" for name in names]
    if not records and not problems:
        problems.append(f"{input_path.name}: no rows below the header")
    if problems:
        raise DataError(doing, found=list_problems(problems), fix=table.advice)
    progress.say(f"fields: {', '.join(records[0].fields)}")
    for line in _empty_texts(records):
        progress.say(line)
    rows: list[Row] = [{"taskname": taskname, **record.fields} for record in records]

    name = input_path.stem
    if fractions is None:
        return write_jsonl(output_dir, {f"{name}.jsonl": rows}, inputs=(input_path,))
    splits = deal_out(shuffled(rows, random.Random(seed)), fractions)
    return write_jsonl(
        output_dir,
        {
            f"{name}_{split}.jsonl": split_rows
            for split, split_rows, share in zip(
                ("train", "val", "test"), splits, fractions, strict=True
            )
            if share > 0
        },
        inputs=(input_path,),
    )


def _empty_texts(records: Sequence[Record]) -> list[str]:
    """A line about each column with empty fields: one may hold the answers."""
    lines = []
    for name in records[0].fields:
        places = [record.where for record in records if not record.fields[name].strip()]
        if places:
            shown = first_places(places, 3)
            lines.append(
                f"warning: '{name}' is empty in {len(places)} of {len(records)} rows ({shown})"
            )
    return lines


def _known(name: str, names: Collection[str], what: str, doing: str) -> str:
    if name not in names:
        raise ConfigError(doing, found=f"{what} {name!r}", expected=f"one of {', '.join(names)}")
    return name
