"""Splits rows into training, validation and test, and writes them as JSON lines.

In: rows in the publisher's order. Out: the same split for the same seed, in files that are written
whole or not at all. Knows no data set.
"""

import json
import logging
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from pl_compile.artifact.files import write_atomically
from pl_compile.errors import ConfigError, DataError, list_problems

_log = logging.getLogger(__name__)

T = TypeVar("T")
Row: TypeAlias = Mapping[str, str | list[str]]


def shuffled(rows: Sequence[T], generator: random.Random) -> list[T]:
    """The rows in another order; this advances the generator."""
    shuffled_rows = list(rows)
    generator.shuffle(shuffled_rows)
    return shuffled_rows


def deal_out(
    rows: Sequence[T], fractions: tuple[float, float, float]
) -> tuple[list[T], list[T], list[T]]:
    """The rows cut in three, in their order: training, validation, test.

    Each cut is rounded down to a whole row; the test gets the rest.

    Raises:
        ConfigError: a fraction is below 0, or they do not add up to 1.
    """
    if min(fractions) < 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise ConfigError(
            "splitting the rows",
            found=f"the fractions {', '.join(map(str, fractions))}",
            expected="three numbers from 0 that add up to 1",
        )
    # The small addition keeps 0.1 + 0.2 of 10 rows at 3, despite rounding of the product.
    train_end = int(len(rows) * fractions[0] + 1e-6)
    val_end = int(len(rows) * (fractions[0] + fractions[1]) + 1e-6)
    return list(rows[:train_end]), list(rows[train_end:val_end]), list(rows[val_end:])


def without_field(rows: Sequence[Row], field: str) -> list[Row]:
    """The rows of a test: everything but the answer."""
    return [{name: value for name, value in row.items() if name != field} for row in rows]


def write_jsonl(
    output_dir: Path, files: Mapping[str, Sequence[Row]], *, inputs: Iterable[Path]
) -> dict[str, int]:
    """Writes one JSON object a line; each file is replaced only after its new rows are on the disk.

    A warning names files that are replaced: the same data set is often prepared again.

    Args:
        output_dir: made if it does not exist.
        files: the rows of each file by its name.
        inputs: the files that the rows were read from; they are never replaced.

    Returns:
        The number of rows by file name.

    Raises:
        DataError: a file would have no rows, or replace an input. Then no file is written.
        ArtifactError: a file cannot be written.
    """
    empty = [f"{name} would have no rows" for name, rows in files.items() if not rows]
    if empty:
        raise DataError(
            f"writing to {output_dir}",
            found=list_problems(empty),
            fix="The input has too few rows for this split.",
        )
    originals = [path for path in inputs if path.exists()]
    lost = [
        f"{path} is the input itself"
        for path in (output_dir / name for name in files)
        if path.exists() and any(path.samefile(original) for original in originals)
    ]
    if lost:
        raise DataError(
            f"writing to {output_dir}", found=list_problems(lost), fix="Choose another --output."
        )
    for name, rows in files.items():
        path = output_dir / name
        replaced = path.exists()
        # ASCII escapes, so that no reader takes U+2028 or U+0085 in a text for the end of a line.
        lines = [json.dumps(row) + "\n" for row in rows]
        write_atomically(path, "".join(lines).encode("ascii"))
        if replaced:
            _log.warning("replaced %s", path)
    return {name: len(rows) for name, rows in files.items()}
