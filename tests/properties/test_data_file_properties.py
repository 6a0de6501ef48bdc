"""Data files of all shapes, damaged ones too: rows come back equal, or a `PlcError` says why."""

import csv
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from pl_compile.config.task import TaskConfig
from pl_compile.errors import PlcError
from pl_compile.text.examples import read_examples
from pl_compile.text.template import parse_template
from pl_compile.training.prepare import prepare_csv, prepare_phrasebank, prepare_squad
from pl_compile.training.prepare.delimited import DELIMITERS

ALWAYS_THE_SAME = settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)

# Short texts of what matters to a reader of delimited files, and anything else.
_PIECES = st.sampled_from(
    [
        '"',
        '""',
        ",",
        ";",
        "\t",
        "|",
        "\n",
        "\r\n",
        "\r",
        "\\",
        '\\"',
        " ",
        "a",
        "so",
        "é",
        "1",
        "\x85",
    ]
)
_TEXTS = st.lists(_PIECES, max_size=6).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8
)


@st.composite
def _tables(draw: st.DrawFn) -> list[list[str]]:
    width = draw(st.integers(1, 4))
    return draw(st.lists(st.lists(_TEXTS, min_size=width, max_size=width), min_size=1, max_size=4))


def _written(rows: list[list[str]], **dialect: object) -> str:
    """A file as Python's `csv` writes it, with names for the columns."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, **dialect)  # type: ignore[arg-type]
    writer.writerows([[f"c{index}" for index in range(len(rows[0]))], *rows])
    return buffer.getvalue()


def _prepared(text: str, **options: str | None) -> list[list[str]]:
    """The fields of the rows that `prepare_csv` makes of a file."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.csv").write_bytes(text.encode())
        prepare_csv(folder / "a.csv", folder, taskname="t", **options)  # type: ignore[arg-type]
        lines = (folder / "a.jsonl").read_text().splitlines()
    return [list(json.loads(line).values())[1:] for line in lines]


def _prepared_or_refused(text: str, **options: str | None) -> list[list[str]] | str:
    try:
        return _prepared(text, **options)
    except PlcError as error:
        return str(error)


@ALWAYS_THE_SAME
@given(
    _tables(),
    st.sampled_from(sorted(DELIMITERS)),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["double", "backslash"]),
)
def test_what_any_writer_encloses_in_quotes_comes_back_equal(
    rows: list[list[str]], delimiter: str, end: str, quoting: int, quotes: str
) -> None:
    text = _written(
        rows,
        delimiter=DELIMITERS[delimiter],
        lineterminator=end,
        quoting=quoting,
        doublequote=quotes == "double",
        escapechar=None if quotes == "double" else "\\",
    )

    assert _prepared(text, delimiter=delimiter, quotes=quotes) == rows
    if quotes == "double":  # the header in quotes leaves no doubt
        assert _prepared(text, delimiter=delimiter) == rows


@ALWAYS_THE_SAME
@given(_tables(), st.sampled_from(sorted(DELIMITERS)))
@example([['"a\nb"'], ["c"]], "comma")
@example([["a,b", "x"], ["c\nd", "e"]], "semicolon")
def test_what_is_enclosed_where_needed_comes_back_equal_or_is_in_doubt(
    rows: list[list[str]], delimiter: str
) -> None:
    text = _written(rows, delimiter=DELIMITERS[delimiter], lineterminator="\r\n")

    assert _prepared(text, delimiter=delimiter, quotes="double") == rows
    by_default = _prepared_or_refused(text, delimiter=delimiter)
    assert by_default == rows or "--quotes double" in by_default


@ALWAYS_THE_SAME
@given(_tables(), st.sampled_from(sorted(DELIMITERS)), st.sampled_from(["\n", "\r\n", "\r"]))
def test_without_quotes_each_line_is_a_row_or_there_is_a_refusal(
    rows: list[list[str]], delimiter: str, end: str
) -> None:
    between = DELIMITERS[delimiter]
    clean = [
        ["".join(c for c in text if c not in f"{between}\r\n") or "x" for text in row]
        for row in rows
    ]
    lines = [[f"c{index}" for index in range(len(rows[0]))], *clean]
    text = "".join(between.join(line) + end for line in lines)

    assert _prepared(text, delimiter=delimiter, quotes="none") == clean
    by_default = _prepared_or_refused(text, delimiter=delimiter)
    # No row is swallowed by a quote that opens one.
    assert "--quotes none" in by_default or len(by_default) == len(clean)


GOOD = {
    "a.csv": b'text,label\r\n"a, ""b""\r\nc",x\r\n"d, e",y\r\nf,x\r\n',
    "a.tsv": b'sep=\t\nid\ttext\n1\tso\n2\t"far"\n',
    "a.jsonl": b'{"taskname": "t", "text": "a\\u00e9\\ud83d\\ude00", "label": 1.5e3}\n'
    b'{"taskname": "t", "text": -0, "label": "\xc3\xa9"}\n',
    "a.json": b'[{"taskname": "t", "text": "a", "label": "b"},\n {"taskname": "t"}]',
    "train.json": b'{"data": [{"title": "T", "paragraphs": [{"context": "c", "qas": [{"question":'
    b' "q", "is_impossible": false, "answers": [{"text": "a", "answer_start": 0}]}]}]}]}',
    "train.jsonl": b'{"context": "c", "question": "q", "answers": {"text": ["a"]}}\n' * 2,
    "a.txt": b"P\xe4\xe4 rose .@positive\r\nB@neutral\r\n" * 9,
}
_BYTES = (
    b'"',
    b"'",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"\\",
    b"\0",
    b"\r",
    b"\n",
    b"\xff",
    b"\xef\xbb\xbf",
)
_WORDS = (
    b"NaN",
    b"1e999",
    b"null",
    b"\\ud800",
    b"9" * 5000,
    b"[" * 3000,
    b'"data":',
    b"\t\t",
    b"sep=;",
)


@st.composite
def _damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(st.sampled_from(sorted(GOOD)))
    content = GOOD[name]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content)))
        gone = draw(st.integers(0, 8))
        new = draw(st.sampled_from([*_BYTES, *_WORDS]) | st.binary(max_size=3))
        content = content[:at] + new + content[at + gone :]
    return name, content


def _read(path: Path, out: Path) -> None:
    """Reads a file as the name says."""
    if path.name.startswith("train"):
        (path.parent / "dev.json").write_bytes(GOOD["train.json"])
        prepare_squad(path.parent, out, include_topic=path.stat().st_size % 2 == 0)
    elif path.suffix == ".txt":
        prepare_phrasebank(path, out)
    elif path.suffix in (".csv", ".tsv"):
        prepare_csv(path, out, taskname="t")
    else:
        template = parse_template(TaskConfig("t", "<|VIRTUAL_PROMPT_0|>{text}:{label}", 1))
        read_examples([path], {"t": template})


@pytest.mark.filterwarnings("error")
@settings(ALWAYS_THE_SAME, max_examples=600)
@given(_damaged())
def test_a_damaged_file_is_read_or_refused(file: tuple[str, bytes]) -> None:
    name, content = file
    with TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        (folder / name).write_bytes(content)
        refused = False
        try:
            _read(folder / name, folder / "out")
        except PlcError:
            refused = True
        assert not (refused and (folder / "out").exists())
