"""Any delimited file with a header row to JSON lines.

In: a UTF-8 file, fields between commas, semicolons or tabs, quoted where needed. Out: one row for
each, with `taskname` and the header's names as fields, texts as they are; in one file, or dealt out
to training, validation and test. Knows nothing of templates and so not which field is the answer.
"""

import csv
import random
from pathlib import Path

from pl_compile.errors import ConfigError, DataError, list_problems
from pl_compile.training.prepare.source import read_records, read_text
from pl_compile.training.prepare.splits import Row, deal_out, shuffled, write_jsonl

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t"}


def prepare_csv(
    input_path: Path,
    output_dir: Path,
    *,
    taskname: str,
    delimiter: str | None = None,
    fractions: tuple[float, float, float] | None = None,
    seed: int = 1234,
) -> dict[str, int]:
    """Writes a delimited file as JSON lines, under the file's name without its ending.

    Args:
        input_path: the file.
        output_dir: made if it is not there.
        taskname: the value of the field `taskname` in every row.
        delimiter: a name from `DELIMITERS`; None takes the one that cuts the header into most
            fields.
        fractions: the shares of training, validation and test, together 1: the rows are shuffled
            and go to NAME_train.jsonl, NAME_val.jsonl and NAME_test.jsonl. A share of 0 makes no
            file. None keeps the order and writes one NAME.jsonl.
        seed: of the shuffle.

    Returns:
        The number of rows by file name.

    Raises:
        ConfigError: an empty `taskname`, an unknown delimiter or impossible fractions.
        DataError: the file is missing or malformed; all problems with their lines. Nothing is
            written then.
        ArtifactError: the disk refuses.
    """
    doing = f"reading {input_path}"
    if not taskname.strip():
        raise ConfigError(doing, found="an empty taskname", fix="Give one with --taskname.")
    separator = _sniff(input_path) if delimiter is None else _known(delimiter, doing)

    problems: list[str] = []
    records = read_records(input_path, separator, problems)
    if any("taskname" in record.fields for record in records[:1]):
        problems.append(f"{input_path.name}:1: a column 'taskname', which --taskname sets")
    if not records and not problems:
        problems.append(f"{input_path.name}: no rows below the header")
    if problems:
        raise DataError(doing, found=list_problems(problems))
    rows: list[Row] = [{"taskname": taskname, **record.fields} for record in records]

    name = input_path.stem
    if fractions is None:
        return write_jsonl(output_dir, {f"{name}.jsonl": rows})
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
    )


def _known(delimiter: str, doing: str) -> str:
    if delimiter not in DELIMITERS:
        raise ConfigError(
            doing, found=f"delimiter {delimiter!r}", expected=f"one of {', '.join(DELIMITERS)}"
        )
    return DELIMITERS[delimiter]


def _sniff(path: Path) -> str:
    # The header alone decides: commas and semicolons inside texts would outvote the real one.
    header = read_text(path).partition("\n")[0]
    widths = {
        name: len(next(csv.reader([header], delimiter=separator), []))
        for name, separator in DELIMITERS.items()
    }
    widest = [name for name, width in widths.items() if width == max(widths.values())]
    if len(widest) > 1 and max(widths.values()) > 1:
        raise DataError(
            f"reading {path}",
            found=f"a header that {' and '.join(widest)} cut into as many fields",
            fix="Choose one with --delimiter.",
        )
    return DELIMITERS[widest[0]]
