r"""Delimited files (CSV, TSV) as records, each with the place it was written at.

In: a file with a header row. Out: records that name their file and line, everything that is wrong
with single lines, and advice where another way to read the quotes may put it right. Python's `csv`
refuses long fields and bare CRs, and does not tell which fields stood in quotes: only that tells a
file whose quotes enclose fields from one whose texts hold them. Knows no data set.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

from pl_compile.config.utf8 import split_lines
from pl_compile.errors import DataError
from pl_compile.training.prepare.source import read_text

_log = logging.getLogger(__name__)

DELIMITERS: Mapping[str, str] = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}

# A field in quotes; what stands between them is a group.
_IN_QUOTES: Mapping[str, re.Pattern[str] | None] = {
    "double": re.compile(r'"((?:[^"]++|"")*+)"'),
    "backslash": re.compile(r'"((?:[^"\\]++|\\.|"")*+)"', re.DOTALL),
    "none": None,
}
QUOTES = tuple(_IN_QUOTES)
_WHERE = {
    "none": "where quotes are characters of the texts",
    "backslash": 'where a field in quotes writes them as \\"',
    "double": 'where a field in quotes writes them as ""',
}
_EITHER = "Give --quotes none if each line is a row, --quotes double if quotes hold lines together."
_ESCAPE = re.compile(r'""|\\(["\\])')

# A first line that tells Excel the delimiter.
_SEP = re.compile(r'"?sep=([^\w"\r\n])"?(?:\r\n|\r|\n|\Z)', re.IGNORECASE)
_REST_OF_LINE = re.compile(r"([^\r\n]*)(?:\r\n|\r|\n|\Z)")
_WORD = re.compile(r"[^\W\d]")
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")

Broken: TypeAlias = list[tuple[int, str]]  # lines, and what is wrong with them


@dataclass(frozen=True)
class Record:
    """One row of a table: its first line as "file.csv:12", and its fields by the header's names."""

    where: str
    fields: dict[str, str]


@dataclass(frozen=True)
class Table:
    """What a file holds.

    Attributes:
        records: the rows that have as many fields as the header.
        problems: what is wrong with single lines, each with file and line.
        advice: which option may put it right, as a sentence; empty where none is known to.
    """

    records: list[Record]
    problems: list[str]
    advice: str = ""


@dataclass(frozen=True)
class _Cell:
    text: str
    in_quotes: bool


@dataclass(frozen=True)
class _Row:
    """A row, with the number of its first line, and as it stands in the file."""

    line: int
    cells: list[_Cell]
    source: str

    @property
    def in_quotes(self) -> bool:
        return any(cell.in_quotes for cell in self.cells)

    @property
    def lines(self) -> list[str]:
        return split_lines(self.source.rstrip("\r\n"))

    @property
    def has_quote_inside(self) -> bool:
        return any(cell.in_quotes and '"' in cell.text for cell in self.cells)


def read_table(path: Path, *, delimiter: str | None = None, quotes: str | None = None) -> Table:
    """The rows of a delimited file under a header row, quoted fields with line ends included.

    Empty lines at the end of the file are no rows; anywhere else they are a problem. A column
    without a name is left out, with a warning, where it is empty or numbers the rows.

    Args:
        path: a UTF-8 file.
        delimiter: the character between fields; None takes what a first line `sep=;` says, or the
            one that cuts the header into most fields.
        quotes: one of `QUOTES`: a quote in a quoted field is written twice, or behind a backslash,
            or quotes enclose nothing. None is "double", and refuses what could be rows of a file
            whose quotes enclose nothing.

    Raises:
        DataError: the file cannot be read at all, or its delimiter cannot be told.
    """
    text = read_text(path)
    if "\0" in text:
        line = len(split_lines(text[: text.index("\0")]))
        return Table([], [f"{path.name}:{line}: a NUL, which no text holds (is it UTF-16?)"])
    first_line = 1
    if sep := _SEP.match(text):
        if delimiter not in (None, sep[1]):
            raise DataError(
                f"reading {path}",
                found=f"line 1 says that {sep[1]!r} stands between fields, and not {delimiter!r}",
                fix="Leave --delimiter out.",
            )
        text, first_line, delimiter = text[sep.end() :], 2, sep[1]
    if delimiter is None:
        delimiter = _sniff(path, text, quotes or "double")

    broken: Broken = []
    rows = list(_rows(text, first_line, delimiter, quotes or "double", broken))
    while rows and not rows[-1].cells:
        rows.pop()
    if not rows and not broken:
        return Table([], [f"{path.name}: the file is empty, expected a header row"])
    advice = _advice(quotes or "double") if broken else ""
    if rows and quotes is None and not broken:
        broken = _doubts(path, rows, delimiter)
        advice = _EITHER if broken else ""
    problems = [f"{path.name}:{line}: {problem}" for line, problem in broken]
    if not rows or rows[0].line > first_line:
        return Table([], problems, advice)  # the header itself is broken
    if not rows[0].cells:
        return Table([], [f"{path.name}:{first_line}: an empty line, expected a header row"])

    names = [cell.text.strip() for cell in rows[0].cells]
    left_out = _nameless(path, names, [row for row in rows[1:] if len(row.cells) == len(names)])
    at = f"{path.name}:{first_line}"
    problems += [f"{at}: {problem}" for problem in _header_problems(names, left_out)]
    if any(map(_NUMBER.fullmatch, names)):
        _log.warning("%s is taken for the header, with the names %s", at, ", ".join(names))
    if len(names) == 1 and re.search(r"[^\w\s.-]", names[0]):
        _log.warning("%s: one column is found, '%s'; is another --delimiter meant?", at, names[0])
    records = []
    for row in rows[1:]:
        where = f"{path.name}:{row.line}"
        if len(row.cells) == len(names):
            cells = enumerate(zip(names, row.cells, strict=True))
            fields = {name: cell.text for i, (name, cell) in cells if i not in left_out}
            records.append(Record(where, fields))
        else:
            problems.append(f"{where}: {len(row.cells)} fields, the header has {len(names)}")
            if row.in_quotes:
                advice = advice or _advice(quotes or "double")
    return Table(records, problems, advice)


def _rows(text: str, line: int, delimiter: str, quotes: str, broken: Broken) -> Iterator[_Row]:
    """The rows of a text whose first line is `line`; what breaks the rules of quotes is no row."""
    at = 0
    while at < len(text):
        cells, end, problem = _cells(text, at, delimiter, quotes)
        source = text[at:end]
        if problem:
            broken.append((line, problem))
        else:
            yield _Row(line, cells if source.strip("\r\n") else [], source)
        line += len(split_lines(source)) - 1
        at = end


def _cells(text: str, at: int, delimiter: str, quotes: str) -> tuple[list[_Cell], int, str]:
    """The fields of the row at `at`, where the next row begins, and what is wrong with it."""
    bare, stop = _edges(delimiter)
    enclosed = _IN_QUOTES[quotes]
    cells: list[_Cell] = []
    while True:
        in_quotes = text.startswith('"', at) and enclosed is not None
        field = (enclosed if enclosed and in_quotes else bare).match(text, at)
        if field is None:
            return [], len(text), "a field opens with a quote that nothing closes"
        end = stop.match(text, field.end())
        if end is None:
            rest = _REST_OF_LINE.match(text, field.end())
            assert rest is not None, "matches anything"
            return [], rest.end(), f"{rest[1][:40]!r} stands behind the closing quote of a field"
        cells.append(_Cell(_plain(field[1], quotes) if in_quotes else field[0], in_quotes))
        at = end.end()
        if end[0] != delimiter:
            return cells, at, ""


@cache
def _edges(delimiter: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A field without quotes, and what may stand behind a field."""
    bare = re.compile(rf"[^{re.escape(delimiter)}\r\n]*")
    return bare, re.compile(rf"{re.escape(delimiter)}|\r\n|\r|\n|\Z")


def _plain(enclosed: str, quotes: str) -> str:
    """What stands between two quotes, as its writer had it."""
    if quotes == "double":
        return enclosed.replace('""', '"')
    return _ESCAPE.sub(lambda match: match[1] or '"', enclosed)


def _sniff(path: Path, text: str, quotes: str) -> str:
    # The header alone decides: commas and semicolons inside texts would outvote the real one.
    widths = {}
    for name, separator in DELIMITERS.items():
        header = next(_rows(text, 1, separator, quotes, []), None)
        widths[name] = len(header.cells) if header else 0
    widest = [name for name, width in widths.items() if width == max(widths.values())]
    if len(widest) > 1 and max(widths.values()) > 1:
        raise DataError(
            f"reading {path}",
            found=f"a header that {' and '.join(widest)} cut into as many fields",
            fix="Choose one with --delimiter.",
        )
    return DELIMITERS[widest[0]]


def _doubts(path: Path, rows: Sequence[_Row], delimiter: str) -> Broken:
    """Rows that go on over several lines which could be rows of a file without quotes.

    None is in doubt where the header has quotes, or some row needs them: for a delimiter or a quote
    inside a field. Where nothing needs quotes, they may be characters of the texts: a warning says
    that they are taken off.
    """
    width = len(rows[0].cells)

    def fits(line: str) -> bool:
        return line.count(delimiter) + 1 == width

    quoted = [row for row in rows if len(row.cells) == width and row.in_quotes]
    single = [row for row in quoted if len(row.lines) == 1]
    if rows[0].in_quotes or any(not fits(row.source) or row.has_quote_inside for row in single):
        return []
    several = [row for row in quoted if len(row.lines) > 1]
    if not several:
        _warn_of_needless_quotes(path, rows[1:], width)
    return [
        (
            row.line,
            f"a field in quotes goes on to line {row.line + len(row.lines) - 1}, but these lines "
            "could be rows of their own",
        )
        for row in several
        if fits(row.lines[0]) and any(map(fits, row.lines[1:]))
    ]


def _warn_of_needless_quotes(path: Path, rows: Sequence[_Row], width: int) -> None:
    """Warns where a column has quotes around some words and none around others.

    Programs that write quotes without need write them around all fields of a column.
    """
    rows = [row for row in rows if len(row.cells) == width]
    lines = []
    for column in range(width):
        cells = [row.cells[column] for row in rows]
        if any(not cell.in_quotes and _WORD.search(cell.text) for cell in cells):
            lines += [
                row.line
                for row, cell in zip(rows, cells, strict=True)
                if cell.in_quotes and cell.text == cell.text.strip() != ""
            ]
    if lines:
        _log.warning(
            "%s: quotes are taken off %d fields, first at line %d, though other fields of the "
            "column have none; give --quotes none if they belong to the texts",
            path.name,
            len(lines),
            min(lines),
        )


def _advice(quotes: str) -> str:
    others = [f"{way} {where}" for way, where in _WHERE.items() if way != quotes]
    return f"Give --quotes {', '.join(others)}."


def _nameless(path: Path, names: Sequence[str], rows: Sequence[_Row]) -> set[int]:
    """The columns without a name that hold nothing but numbers of rows, or nothing."""
    left_out = set()
    for index, name in enumerate(names):
        values = [row.cells[index].text for row in rows]
        is_index = index == 0 and all(map(str.isdecimal, values)) and _all_differ(values)
        if not name and len(names) > 1 and (is_index or not any(map(str.strip, values))):
            left_out.add(index)
            what = "numbers the rows" if is_index and values else "is empty"
            _log.warning(
                "%s: column %d has no name and %s: it is left out", path.name, index + 1, what
            )
    return left_out


def _all_differ(values: Sequence[str]) -> bool:
    return len(set(values)) == len(values)


def _header_problems(names: Sequence[str], left_out: set[int]) -> list[str]:
    problems = [
        f"column {index + 1} has no name"
        for index, name in enumerate(names)
        if not name and index not in left_out
    ]
    repeated = sorted(name for name, count in Counter(names).items() if name and count > 1)
    return problems + [f"the column '{name}' is there more than once" for name in repeated]
