r"""Reads delimited files (CSV, TSV) into records, each with its place in the file.

In: a file with a header row. Out: records that name their file and line, all problems of single
lines, and advice where another rule for quotes may help. Python's `csv` refuses long fields and
bare CRs. It also does not say which fields were in quotes, without which one cannot tell quotes
that enclose fields from quotes that are characters of texts. Knows no data set.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pl_compile.config.utf8 import split_lines
from pl_compile.errors import DataError, unknown_name
from pl_compile.training.prepare.source import read_text

_log = logging.getLogger(__name__)

DELIMITERS: Mapping[str, str] = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}

# A field in quotes; the text between them is a group.
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


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a table: its first line as "file.csv:12", and its fields by the header's names."""

    where: str
    fields: dict[str, str]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a line, and the option that may help, if one is known."""

    where: str
    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Table:
    """The content of a file.

    Attributes:
        records: the rows that have as many fields as the header.
        problems: what is wrong with single lines.
    """

    records: list[Record]
    problems: list[Problem]

    @property
    def advice(self) -> str:
        """What to do next, as a sentence; empty where no option may help."""
        return next((problem.advice for problem in self.problems if problem.advice), "")


class _Row(NamedTuple):
    """A row of a file.

    Attributes:
        line: the number of its first line.
        source: its text in the file, with its line end.
        cells: the texts of its fields; empty for an empty line.
        in_quotes: the numbers, from 0, of the fields in quotes.
        problem: how it breaks the rules of quotes; then it has no cells.
    """

    line: int
    source: str
    cells: Sequence[str] = ()
    in_quotes: Sequence[int] = ()
    problem: str = ""

    @property
    def lines(self) -> list[str]:
        return split_lines(self.source.rstrip("\r\n"))

    @property
    def is_one_line(self) -> bool:
        return not _line_ends(self.source.rstrip("\r\n"))

    @property
    def has_quote_inside(self) -> bool:
        return any('"' in self.cells[column] for column in self.in_quotes)


def read_table(
    path: Path,
    *,
    delimiter: str | None = None,
    quotes: str | None = None,
    columns: Sequence[str] = (),
) -> Table:
    """The rows of a delimited file under a header row, quoted fields with line ends included.

    Empty lines are not rows (a row that is one empty text is written `""`). A warning counts empty
    lines that have rows after them. A column without a name is left out, with a warning, if it is
    empty or only numbers the rows.

    Args:
        path: a UTF-8 file.
        delimiter: the character between fields. None takes the one that a first line `sep=;` names,
            or the one that divides the header into most fields.
        quotes: one of `QUOTES`: a quote in a quoted field is written twice, or after a backslash,
            or quotes enclose nothing. None is "double", but rows that may belong to a file whose
            quotes enclose nothing are refused, or counted in a warning.
        columns: the names of the columns to take, in this order; all if empty. If given, names of
            other columns are not checked.

    Raises:
        DataError: the file cannot be read at all, or its delimiter is not clear.
    """
    text = read_text(path)
    if "\0" in text:
        line = 1 + _line_ends(text[: text.index("\0")])
        return _refused(path, line, "a NUL, which no text holds (is it UTF-16?)")
    text, first_line, delimiter = _without_sep(path, text, delimiter)
    above, text = _without_lines_above(text)
    if delimiter is None:
        delimiter = _sniff(path, text, quotes or "double")
    rows = list(_rows(text, first_line + above, delimiter, quotes or "double"))
    if not rows:
        return Table([], [Problem(path.name, "the file is empty, expected a header row")])
    rows = _without_empty_lines(path, rows, range(first_line, first_line + above))
    header, *below = rows

    advice = _advice(quotes or "double")
    problems = [
        Problem(f"{path.name}:{row.line}", row.problem, advice) for row in rows if row.problem
    ]
    if quotes is None and not problems:
        problems = _doubts(path, rows, delimiter)
    if header.problem:
        return Table([], problems)
    places, of_header = _columns(path, header, below, columns)
    problems += of_header
    width = len(header.cells)
    records = []
    for row in below:
        where = f"{path.name}:{row.line}"
        if len(row.cells) == width:
            records.append(Record(where, {name: row.cells[i] for name, i in places.items()}))
        elif not row.problem:
            what = f"{len(row.cells)} fields, the header has {width}"
            problems.append(Problem(where, what, advice if row.in_quotes else ""))
    return Table(records, problems)


def _refused(path: Path, line: int, what: str) -> Table:
    return Table([], [Problem(f"{path.name}:{line}", what)])


def _without_sep(path: Path, text: str, delimiter: str | None) -> tuple[str, int, str | None]:
    """The text after a first line `sep=;`, the number of its first line, and the delimiter."""
    sep = _SEP.match(text)
    if not sep:
        return text, 1, delimiter
    if delimiter not in (None, sep[1]):
        raise DataError(
            f"reading {path}",
            found=f"line 1 says that {sep[1]!r} stands between fields, not {delimiter!r}",
            fix="Leave --delimiter out.",
        )
    return text[sep.end() :], 2, sep[1]


def _without_lines_above(text: str) -> tuple[int, str]:
    """How many empty lines stand above the header, and the text without them."""
    rest = text.lstrip("\r\n")
    return _line_ends(text[: len(text) - len(rest)]), rest


def _without_empty_lines(path: Path, rows: Sequence[_Row], above: range) -> list[_Row]:
    """The rows without empty lines; a warning counts empty lines.

    Args:
        path: the file, for the warning.
        rows: the header and the rows below it.
        above: the numbers of the empty lines above the header.
    """
    width = len(rows[0].cells)
    kept = [row for row in rows if not _is_empty(row, width)]
    # No warning for those at the end: many programs end a file with empty lines.
    below = [row.line for row in rows if _is_empty(row, width) and row.line < kept[-1].line]
    skipped = [*above, *below]
    if skipped:
        _log.warning(
            "%s: empty lines are not rows (left out: %d, first at line %d)",
            path.name,
            len(skipped),
            skipped[0],
        )
    return kept


def _is_empty(row: _Row, width: int) -> bool:
    """Whether a row is an empty line, or one of blanks where rows have several fields."""
    blank = width > 1 and len(row.cells) == 1 and not row.in_quotes and not row.cells[0].strip()
    return not row.problem and (not row.cells or blank)


def _rows(text: str, line: int, delimiter: str, quotes: str) -> Iterator[_Row]:
    """The rows of a text whose first line is `line`."""
    at = 0
    while at < len(text):
        row, at = _row(text, at, line, delimiter, quotes)
        yield row
        line += _line_ends(row.source)


def _line_ends(text: str) -> int:
    """How many line ends there are, by the rules of `split_lines`."""
    return text.count("\n") + text.count("\r") - text.count("\r\n")


def _row(text: str, start: int, line: int, delimiter: str, quotes: str) -> tuple[_Row, int]:
    """The row at `start`, and where the next one begins."""
    enclosed = _IN_QUOTES[quotes]
    first = _rest_of_line(text, start)
    if enclosed is None or '"' not in first[1]:
        return _Row(line, first[0], first[1].split(delimiter) if first[1] else ()), first.end()
    bare, stop = _edges(delimiter)
    cells: list[str] = []
    in_quotes: list[int] = []
    at = start
    while True:
        opens = text.startswith('"', at)
        field = (enclosed if opens else bare).match(text, at)
        if field is None:
            problem = "a field begins with a quote that is never closed"
            return _Row(line, text[start:], problem=problem), len(text)
        end = stop.match(text, field.end())
        if end is None:
            rest = _rest_of_line(text, field.end())
            problem = f"{rest[1][:40]!r} stands after the closing quote of a field"
            return _Row(line, text[start : rest.end()], problem=problem), rest.end()
        if opens:
            in_quotes.append(len(cells))
        cells.append(_plain(field[1], quotes) if opens else field[0])
        at = end.end()
        if end[0] != delimiter:
            return _Row(line, text[start:at], cells, in_quotes), at


def _rest_of_line(text: str, at: int) -> re.Match[str]:
    rest = _REST_OF_LINE.match(text, at)
    assert rest is not None, "matches anything"
    return rest


@cache
def _edges(delimiter: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Patterns of a field without quotes, and of what may stand after a field."""
    bare = re.compile(rf"[^{re.escape(delimiter)}\r\n]*")
    return bare, re.compile(rf"{re.escape(delimiter)}|\r\n|\r|\n|\Z")


def _plain(enclosed: str, quotes: str) -> str:
    """The text between two quotes, as it was before it was quoted."""
    if quotes == "double":
        return enclosed.replace('""', '"')
    return _ESCAPE.sub(lambda match: match[1] or '"', enclosed)


def _sniff(path: Path, text: str, quotes: str) -> str:
    # The header alone decides: commas and semicolons inside texts would outvote the real one.
    widths = {}
    for name, separator in DELIMITERS.items():
        header = next(_rows(text, 1, separator, quotes), None)
        widths[name] = len(header.cells) if header else 0
    widest = [name for name, width in widths.items() if width == max(widths.values())]
    if len(widest) > 1 and max(widths.values()) > 1:
        raise DataError(
            f"reading {path}",
            found=f"a header that {' and '.join(widest)} divide into equally many fields",
            fix="Choose one with --delimiter.",
        )
    return DELIMITERS[widest[0]]


def _doubts(path: Path, rows: Sequence[_Row], delimiter: str) -> list[Problem]:
    """Rows over several lines, where the lines could be rows of a file without quotes.

    They are refused, unless quotes are known to enclose fields. That is known where the header has
    quotes, or some row needs them: for a delimiter or a quote inside a field, or because its first
    line alone is not a row. Then a warning counts the rows over several lines. Where no row needs
    quotes, they may be characters of the texts: a warning says that they are removed.
    """
    width = len(rows[0].cells)

    def fits(line: str) -> bool:
        return line.count(delimiter) + 1 == width

    quoted = [row for row in rows if len(row.cells) == width and row.in_quotes]
    single = [row for row in quoted if row.is_one_line]
    several = [(row, [fits(line) for line in row.lines]) for row in quoted if not row.is_one_line]
    doubtful = [(row, fit) for row, fit in several if any(fit[1:-1]) or (fit[0] and fit[-1])]
    enclose = bool(rows[0].in_quotes) or any(
        not fits(r.source) or r.has_quote_inside for r in single
    )
    refused = [row for row, fit in doubtful if fit[0] and not enclose]
    if doubtful and not refused:
        _log.warning(
            "%s: quotes join lines that could be rows of their own (joined rows: %d, first at "
            "line %d). %s",
            path.name,
            len(doubtful),
            doubtful[0][0].line,
            _EITHER,
        )
    if not enclose and not several:
        _warn_of_needless_quotes(path, rows[1:], width)
    return [
        Problem(
            f"{path.name}:{row.line}",
            f"a field in quotes goes on to line {row.line + len(row.lines) - 1}, but these lines "
            "could be rows of their own",
            _EITHER,
        )
        for row in refused
    ]


def _warn_of_needless_quotes(path: Path, rows: Sequence[_Row], width: int) -> None:
    """Warns where a column has quotes around some words and none around others.

    Programs that write quotes without need write them around all fields of a column.
    """
    rows = [row for row in rows if len(row.cells) == width]
    lines = []
    for column in range(width):
        if any(column not in row.in_quotes and _WORD.search(row.cells[column]) for row in rows):
            lines += [
                row.line
                for row in rows
                if column in row.in_quotes and row.cells[column].strip() == row.cells[column] != ""
            ]
    if lines:
        _log.warning(
            "%s: quotes are removed from %d fields, first at line %d, though other fields of the "
            "column have none; give --quotes none if they belong to the texts",
            path.name,
            len(lines),
            min(lines),
        )


def _advice(quotes: str) -> str:
    others = [f"{way} {where}" for way, where in _WHERE.items() if way != quotes]
    return f"Give --quotes {', '.join(others)}."


def _columns(
    path: Path, header: _Row, below: Sequence[_Row], wanted: Sequence[str]
) -> tuple[dict[str, int], list[Problem]]:
    """The place of each wanted column, and what is wrong with the header."""
    names = [name.strip() for name in header.cells]
    at = f"{path.name}:{header.line}"
    if wanted:
        known = [name for name in names if name]
        missing = [name for name in wanted if name not in known]
        problems = [
            ". ".join(unknown_name(name, known, what="column")).rstrip(".") for name in missing
        ]
        problems += _repeated(name for name in names if name in wanted)
        places = {name: names.index(name) for name in wanted if name not in missing}
        return places, [Problem(at, what) for what in problems]
    left_out = _nameless(path, names, [row for row in below if len(row.cells) == len(names)])
    if any(map(_NUMBER.fullmatch, names)):
        _log.warning("%s is read as the header, with the names %s", at, ", ".join(names))
    if len(names) == 1 and re.search(r"[^\w\s.-]", names[0]):
        _log.warning("%s: one column is found, '%s'; is another --delimiter meant?", at, names[0])
    columns = {name: index for index, name in enumerate(names) if index not in left_out}
    return columns, [Problem(at, what) for what in _header_problems(names, left_out)]


def _nameless(path: Path, names: Sequence[str], rows: Sequence[_Row]) -> set[int]:
    """The columns without a name that are empty or hold only numbers of rows."""
    left_out = set()
    for index in (index for index, name in enumerate(names) if not name and len(names) > 1):
        values = [row.cells[index] for row in rows]
        is_index = index == 0 and all(map(str.isdecimal, values)) and _all_differ(values)
        if is_index or not any(map(str.strip, values)):
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
    return problems + _repeated(filter(None, names))


def _repeated(names: Iterable[str]) -> list[str]:
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    return [f"the column '{name}' is there more than once" for name in repeated]
