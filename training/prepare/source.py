"""Publishers' files as text and as records, each with the place it was written at.

In: a path. Out: a text, or records that name their file and line. What is wrong with single lines
is collected, so that one message can show all of it. Knows no data set.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pl_compile.errors import DataError


@dataclass(frozen=True)
class Record:
    """One row of a table: its first line as "file.csv:12", and its fields by the header's names."""

    where: str
    fields: dict[str, str]


def read_text(path: Path, *, encoding: str = "utf-8-sig") -> str:
    """The text of a file, with its line ends as they are; a byte order mark is taken off.

    Raises:
        DataError: there is no such file, it cannot be read, or it is in another encoding.
    """
    doing = f"reading {path}"
    try:
        return path.read_bytes().decode(encoding)
    except FileNotFoundError:
        raise DataError(doing, found="no such file", fix="Check the path.") from None
    except OSError as error:
        raise DataError(doing, found=error.strerror or str(error), expected="a file") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise DataError(
            doing,
            found=f"line {line}: the byte 0x{byte:02x}",
            expected="UTF-8",
            fix="Save the file as UTF-8.",
        ) from error


def read_records(path: Path, delimiter: str, problems: list[str]) -> list[Record]:
    """The rows of a delimited file under a header row, quoted fields with line ends included.

    Empty lines at the end of the file are no rows; anywhere else they are a problem.

    Args:
        path: a UTF-8 file.
        delimiter: the character between fields.
        problems: what is wrong with single lines is added here, each with file and line.

    Returns:
        The rows with as many fields as the header.

    Raises:
        DataError: the file cannot be read at all.
    """
    lines = _split(path, delimiter, problems)
    if not lines:
        problems.append(f"{path.name}: the file is empty, expected a header row")
        return []
    header = [name.strip() for name in lines[0][1]]
    problems += [f"{path.name}:1: {problem}" for problem in _header_problems(header)]

    records = []
    for line, fields in lines[1:]:
        where = f"{path.name}:{line}"
        if len(fields) == len(header):
            records.append(Record(where, dict(zip(header, fields, strict=True))))
        else:
            problems.append(f"{where}: {len(fields)} fields, the header has {len(header)}")
    return records


def _split(path: Path, delimiter: str, problems: list[str]) -> list[tuple[int, list[str]]]:
    # newline="" keeps line ends inside quoted fields; strict finds a quote that is never closed.
    text = io.StringIO(read_text(path), newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    lines: list[tuple[int, list[str]]] = []
    first_line = 1
    try:
        for fields in reader:
            lines.append((first_line, fields))
            first_line = reader.line_num + 1
    except csv.Error as error:
        problems.append(
            f"{path.name}:{first_line}: {error}, expected quotes that are closed,"
            " and doubled inside a field"
        )
    while lines and not lines[-1][1]:
        lines.pop()
    return lines


def _header_problems(header: Sequence[str]) -> list[str]:
    problems = [f"column {i} has no name" for i, name in enumerate(header, start=1) if not name]
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    return problems + [f"the column '{name}' is there more than once" for name in repeated]
