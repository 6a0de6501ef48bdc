from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pl_compile.errors import ConfigError, DataError
from pl_compile.training.prepare import prepare_csv
from pl_compile.training.prepare.csv_file import DELIMITERS

Reader = Callable[[Path], list[dict[str, Any]]]


def test_the_header_decides_on_the_delimiter_not_the_texts(
    tmp_path: Path, read_jsonl: Reader
) -> None:
    path = tmp_path / "news.csv"
    path.write_text("text;label\nup, up, up and away;good\n")

    prepare_csv(path, tmp_path, taskname="mood")

    assert read_jsonl(tmp_path / "news.jsonl") == [
        {"taskname": "mood", "text": "up, up, up and away", "label": "good"}
    ]


@pytest.mark.parametrize(("name", "delimiter"), DELIMITERS.items())
def test_quoted_fields_keep_delimiters_quotes_and_line_ends(
    tmp_path: Path, read_jsonl: Reader, name: str, delimiter: str
) -> None:
    path = tmp_path / "news.csv"
    header = delimiter.join(["id", " text ", "label"])
    row = delimiter.join(["1", '"up, a;\tb\r\nsays ""x"""', " yes"])
    path.write_bytes(f"\ufeff{header}\r\n{row}\r\n\r\n".encode())

    for chosen in (None, name):
        counts = prepare_csv(path, tmp_path / "out", taskname="mood", delimiter=chosen)

        assert counts == {"news.jsonl": 1}
        assert read_jsonl(tmp_path / "out" / "news.jsonl") == [
            {"taskname": "mood", "id": "1", "text": 'up, a;\tb\r\nsays "x"', "label": " yes"}
        ]


def test_one_column_needs_no_delimiter(tmp_path: Path, read_jsonl: Reader) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("text\na;b\nc\n")

    prepare_csv(path, tmp_path, taskname="t")

    assert [row["text"] for row in read_jsonl(tmp_path / "lines.jsonl")] == ["a;b", "c"]


def test_rows_keep_their_order_unless_they_are_split(tmp_path: Path, read_jsonl: Reader) -> None:
    path = tmp_path / "n.csv"
    path.write_text("n\n" + "".join(f"{i}\n" for i in range(10)))

    whole = prepare_csv(path, tmp_path, taskname="t")
    split = prepare_csv(path, tmp_path, taskname="t", fractions=(0.1, 0.2, 0.7))
    pair = prepare_csv(path, tmp_path / "pair", taskname="t", fractions=(0.9, 0.1, 0))

    assert whole == {"n.jsonl": 10}
    assert [row["n"] for row in read_jsonl(tmp_path / "n.jsonl")] == list("0123456789")
    assert split == {"n_train.jsonl": 1, "n_val.jsonl": 2, "n_test.jsonl": 7}
    dealt = [row["n"] for name in split for row in read_jsonl(tmp_path / name)]
    assert sorted(dealt) == list("0123456789") != dealt
    assert pair == {"n_train.jsonl": 9, "n_val.jsonl": 1}


def test_all_problems_of_a_file_are_listed_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text('a,b,,a,taskname\n1,2,3,4,5\n1,"two\nlines",3\n\n1,2,3,4,5\n1,"2,3,4,5\n')

    with pytest.raises(DataError) as error:
        prepare_csv(path, tmp_path / "out", taskname="t")

    assert str(error.value).splitlines() == [
        f"reading {path}: 6 problems:",
        "  - bad.csv:7: unexpected end of data, expected quotes that are closed, "
        "and doubled inside a field",
        "  - bad.csv:1: column 3 has no name",
        "  - bad.csv:1: the column 'a' is there more than once",
        "  - bad.csv:3: 3 fields, the header has 5",
        "  - bad.csv:5: 0 fields, the header has 5",
        "  - bad.csv:1: a column 'taskname', which --taskname sets.",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bad.csv: the file is empty, expected a header row."),
        (b"a,b\n", "bad.csv: no rows below the header."),
        (b"a,b\n1,2\n\xff,3\n", "line 3: the byte 0xff; expected UTF-8. Save the file as UTF-8."),
        (
            b"a,b;c\n1,2\n",
            "a header that comma and semicolon cut into as many fields. "
            "Choose one with --delimiter.",
        ),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)

    with pytest.raises(DataError) as error:
        prepare_csv(path, tmp_path / "out", taskname="t")

    assert str(error.value) == f"reading {path}: {message}"


def test_wrong_options_are_refused_with_what_they_may_be(tmp_path: Path) -> None:
    path = tmp_path / "n.csv"
    path.write_text("n\n1\n2\n")

    with pytest.raises(ConfigError, match=r"an empty taskname\. Give one with --taskname"):
        prepare_csv(path, tmp_path, taskname=" ")
    with pytest.raises(ConfigError, match=r"delimiter '\|'; expected one of comma, semicolon, tab"):
        prepare_csv(path, tmp_path, taskname="t", delimiter="|")
    with pytest.raises(ConfigError, match=r"fractions 0\.5, 0\.4, 0\.2; expected three numbers"):
        prepare_csv(path, tmp_path, taskname="t", fractions=(0.5, 0.4, 0.2))
    with pytest.raises(ConfigError, match=r"fractions 1\.5, -0\.5, 0\.0; expected three numbers"):
        prepare_csv(path, tmp_path, taskname="t", fractions=(1.5, -0.5, 0.0))


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Is a directory; expected a file\."):
        prepare_csv(tmp_path, tmp_path / "out", taskname="t")


def test_real_news_articles_with_line_ends_inside_are_read_whole(
    shared_data: Callable[[str], Path], tmp_path: Path, read_jsonl: Reader
) -> None:
    source = shared_data("cnn_dailymail") / "train_sample.csv"

    assert prepare_csv(source, tmp_path, taskname="summary") == {"train_sample.jsonl": 70}
    rows = read_jsonl(tmp_path / "train_sample.jsonl")
    assert {tuple(row) for row in rows} == {("taskname", "id", "article", "highlights")}
    assert any("\n" in row["highlights"] for row in rows)
