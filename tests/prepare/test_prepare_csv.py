import os
import re
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pl_compile.errors import ConfigError, DataError
from pl_compile.testing import Told
from pl_compile.training.prepare import prepare_csv
from pl_compile.training.prepare.delimited import DELIMITERS

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


@pytest.mark.parametrize("quotes", [None, "double", "backslash", "none"])
@pytest.mark.parametrize(
    ("content", "texts", "skipped"),
    [
        ("text,label\nhello,a\n\nb,c\n", ["hello", "b"], "1, first at line 3"),
        ("text,label\r\nhello,a\r\n\r\n \r\nb,c\r\n\r\n", ["hello", "b"], "2, first at line 3"),
        ("\n\ntext,label\n\nhello,a\n", ["hello"], "3, first at line 1"),
        ("sep=;\n\ntext;label\nhello;a\n", ["hello"], "1, first at line 2"),
        ("text\tlabel\n\t\n\nhello\ta\n", ["", "hello"], "1, first at line 3"),
        ("text\na\n\n \nb\n", ["a", " ", "b"], "1, first at line 3"),
    ],
)
def test_empty_lines_are_no_rows_and_counted(
    tmp_path: Path,
    read_jsonl: Reader,
    caplog: pytest.LogCaptureFixture,
    content: str,
    texts: list[str],
    skipped: str,
    quotes: str | None,
) -> None:
    path = tmp_path / "e.csv"
    path.write_text(content, newline="")

    prepare_csv(path, tmp_path, taskname="t", quotes=quotes)

    assert [row["text"] for row in read_jsonl(tmp_path / "e.jsonl")] == texts
    assert caplog.messages == [f"e.csv: empty lines are not rows (left out: {skipped})"]


def test_an_empty_text_in_quotes_is_a_row(tmp_path: Path, read_jsonl: Reader) -> None:
    path = tmp_path / "e.csv"
    path.write_text('text\na\n""\nb\n')

    prepare_csv(path, tmp_path, taskname="t")

    assert [row["text"] for row in read_jsonl(tmp_path / "e.jsonl")] == ["a", "", "b"]


def test_named_columns_alone_are_taken(tmp_path: Path, read_jsonl: Reader) -> None:
    path = tmp_path / "e.csv"
    path.write_text("id,label,text,taskname,,{x},id\n1,a,hello,old,?,b,c\n")

    prepare_csv(path, tmp_path, taskname="t", columns=["text", "label"])

    (row,) = read_jsonl(tmp_path / "e.jsonl")
    assert list(row.items()) == [("taskname", "t"), ("text", "hello"), ("label", "a")]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        (["txt"], "e.csv:1: column 'txt' does not exist. Did you mean 'text'? Known columns: id, "),
        (["id"], "e.csv:1: the column 'id' is there more than once."),
        (["taskname", "text"], "which --taskname sets: name the others with --columns text."),
    ],
)
def test_columns_that_cannot_be_taken_say_why(
    tmp_path: Path, columns: list[str], problem: str
) -> None:
    path = tmp_path / "e.csv"
    path.write_text("id,label,text,taskname,id\n1,a,hello,old,?\n")

    with pytest.raises(DataError) as error:
        prepare_csv(path, tmp_path / "out", taskname="t", columns=columns)

    assert problem in str(error.value)


def test_columns_with_empty_fields_are_told(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_text("text,label\nhello,a\nhi,\n,\nho, \n,b\n")
    listener = Told()

    counts = prepare_csv(path, tmp_path, taskname="t", progress=listener)

    assert counts == {"e.jsonl": 5}
    assert listener.lines == [
        "fields: text, label",
        "warning: 'text' is empty in 2 of 5 rows (e.csv:4, e.csv:6)",
        "warning: 'label' is empty in 3 of 5 rows (e.csv:3, e.csv:4, e.csv:5)",
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
        f"reading {path}: 5 problems:",
        "  - bad.csv:7: a field begins with a quote that is never closed",
        "  - bad.csv:1: column 3 has no name",
        "  - bad.csv:1: the column 'a' is there more than once",
        "  - bad.csv:3: 3 fields, the header has 5",
        "  - bad.csv: a column 'taskname', which --taskname sets: name the others with "
        "--columns a,b.",
        "Give --quotes none where quotes are characters of the texts, "
        'backslash where a field in quotes writes them as \\".',
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bad.csv: the file is empty, expected a header row."),
        (b"\r\n\n", "bad.csv: the file is empty, expected a header row."),
        (b"a,b\n", "bad.csv: no rows below the header."),
        (b"a,b\n1,2\n\xff,3\n", "line 3: the byte 0xff; expected UTF-8. Save the file as UTF-8."),
        (
            b"a,b;c\n1,2\n",
            "a header that comma and semicolon divide into equally many fields. "
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


# Files that no program agrees on


def texts(tmp_path: Path, content: str, read_jsonl: Reader, **options: Any) -> list[dict[str, Any]]:
    """The rows of a file, without their taskname."""
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode())
    prepare_csv(path, tmp_path / "out", taskname="t", **options)
    rows = read_jsonl(tmp_path / "out" / "a.jsonl")
    (tmp_path / "out" / "a.jsonl").unlink()
    return [{key: value for key, value in row.items() if key != "taskname"} for row in rows]


def refusal(tmp_path: Path, content: str, **options: Any) -> str:
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode())
    with pytest.raises(DataError) as error:
        prepare_csv(path, tmp_path / "out", taskname="t", **options)
    assert not (tmp_path / "out").exists()
    return str(error.value).removeprefix(f"reading {path}: ")


def test_a_text_may_be_of_any_length(tmp_path: Path, read_jsonl: Reader) -> None:
    long = "word, " * 30_000

    assert texts(tmp_path, f'text,label\n"{long}",a\n', read_jsonl) == [
        {"text": long, "label": "a"}
    ]


@pytest.mark.parametrize("ends", [("\r", "\r"), ("\r\n", "\r"), ("\n", "\r\n"), ("\r", "\n")])
def test_lines_end_in_any_way_and_may_be_mixed(
    tmp_path: Path, read_jsonl: Reader, ends: tuple[str, str]
) -> None:
    one, two = ends

    assert texts(tmp_path, f'a,b{one}1,"2{two} x"{two}3,4{one}', read_jsonl) == [
        {"a": "1", "b": f"2{two} x"},
        {"a": "3", "b": "4"},
    ]


WITHOUT_QUOTES = 'label\ttext\n1\t"Good grief he said\n0\tthe film\n1\twhat a day"\n0\tplain\n'


def test_lines_that_quotes_would_swallow_are_refused_until_it_is_said_what_they_are(
    tmp_path: Path, read_jsonl: Reader
) -> None:
    text = refusal(tmp_path, WITHOUT_QUOTES)

    assert text == (
        "a.csv:2: a field in quotes goes on to line 4, but these lines could be rows of their own. "
        "Give --quotes none if each line is a row, --quotes double if quotes hold lines together."
    )
    none = texts(tmp_path, WITHOUT_QUOTES, read_jsonl, quotes="none")
    double = texts(tmp_path, WITHOUT_QUOTES, read_jsonl, quotes="double")
    assert [row["text"] for row in none] == [
        '"Good grief he said',
        "the film",
        'what a day"',
        "plain",
    ]
    assert [row["text"] for row in double] == [
        "Good grief he said\n0\tthe film\n1\twhat a day",
        "plain",
    ]


@pytest.mark.parametrize(
    "content",
    [
        'text\n"one\ntwo"\n',
        'text,label\n"Hello, you\nyes",a\n',
        'label\ttext\n1\t"one\n\n0\ttwo"\n',  # a blank line between them proves nothing
    ],
)
def test_any_row_of_several_lines_that_fit_the_header_is_in_doubt(
    tmp_path: Path, content: str
) -> None:
    assert "these lines could be rows of their own" in refusal(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    [
        'text,label\n"a, b",x\n"Hello, you\nyes",a\n',  # a delimiter needs its quotes
        'text,label\n"say ""a""",x\n"Hello, you\nyes",a\n',
        '"text","label"\n"b","x"\n"Hello, you\nyes","a"\n',
        'text,label\nb,x\n"Hello you\nyes",a\n',  # its first line is too narrow for a row
    ],
)
def test_rows_of_several_lines_are_read_where_quotes_enclose_fields(
    tmp_path: Path, read_jsonl: Reader, content: str
) -> None:
    assert [row["label"] for row in texts(tmp_path, content, read_jsonl)] == ["x", "a"]


@pytest.mark.parametrize(
    ("content", "count", "line"),
    [
        ('"text"\tlabel\n"Hello\t1\nmid\t0\nend"\t1\n', 1, 2),
        ('text,label\n"a, b",1\n"Hello\nmid,0\nend",1\n', 1, 3),
        ('text,label\n"say ""a""",x\n"Hello, you\nyes",a\nb,x\n"So, so\nyes",a\n', 2, 3),
        ('text,label\nb,x\n"Hello\nmid,0\nend",1\n', 1, 3),  # a row of its own lies within
        ('"text"\r"one\r\rtwo"\r', 1, 2),
    ],
)
def test_lines_that_may_be_rows_are_counted_where_quotes_enclose_fields(
    tmp_path: Path,
    read_jsonl: Reader,
    caplog: pytest.LogCaptureFixture,
    content: str,
    count: int,
    line: int,
) -> None:
    rows = texts(tmp_path, content, read_jsonl)

    assert caplog.messages == [
        "a.csv: quotes join lines that could be rows of their own (joined rows: "
        f"{count}, first at line {line}). Give --quotes none if each line is a row, --quotes "
        "double if quotes hold lines together."
    ]
    caplog.clear()
    assert texts(tmp_path, content, read_jsonl, quotes="double") == rows
    assert caplog.messages == []


def test_quotes_that_were_needless_are_taken_off_with_a_word(
    tmp_path: Path, read_jsonl: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    content = 'text\tlabel\nfine\tx\n"Good grief"\tx\n"so so"\tx\n'

    assert [row["text"] for row in texts(tmp_path, content, read_jsonl)][1] == "Good grief"
    assert caplog.messages == [
        "a.csv: quotes are removed from 2 fields, first at line 3, though other fields of the "
        "column have none; give --quotes none if they belong to the texts"
    ]
    caplog.clear()
    kept = texts(tmp_path, content, read_jsonl, quotes="none")
    all_enclosed = texts(tmp_path, 'text\tn\n"fine"\t1\n"so so"\t2\n', read_jsonl)
    assert kept[1]["text"] == '"Good grief"'
    assert all_enclosed[1]["text"] == "so so"
    assert caplog.messages == []


def test_quotes_after_backslashes_are_read_where_that_is_said(
    tmp_path: Path, read_jsonl: Reader
) -> None:
    content = r'text,label@"he said \"hi, you\"",a@"C:\\ and \n",b@'.replace("@", "\n")

    assert "--quotes" in refusal(tmp_path, content)
    assert texts(tmp_path, content, read_jsonl, quotes="backslash") == [
        {"text": 'he said "hi, you"', "label": "a"},
        {"text": "C:\\ and \\n", "label": "b"},
    ]


def test_quotes_that_break_their_rules_are_listed_and_reading_goes_on(tmp_path: Path) -> None:
    assert refusal(tmp_path, 'a\tb\n"x" y\t1\nz\t2\t3\n1\t"z\n').splitlines() == [
        "3 problems:",
        "  - a.csv:2: ' y\\t1' stands after the closing quote of a field",
        "  - a.csv:4: a field begins with a quote that is never closed",
        "  - a.csv:3: 3 fields, the header has 2.",
        "Give --quotes none where quotes are characters of the texts, "
        'backslash where a field in quotes writes them as \\".',
    ]


def test_a_quote_within_a_field_is_a_character(tmp_path: Path, read_jsonl: Reader) -> None:
    assert texts(tmp_path, 'a,b\n5" disk,it is "so"\n', read_jsonl) == [
        {"a": '5" disk', "b": 'it is "so"'}
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_excels_first_line_says_the_delimiter(tmp_path: Path, read_jsonl: Reader, end: str) -> None:
    content = end.join(["\ufeffsep=;", "a,b;c", "1,2;3", "4"])

    assert "a.csv:4: 1 fields" in refusal(tmp_path, content)
    assert texts(tmp_path, content[:-1], read_jsonl) == [{"a,b": "1,2", "c": "3"}]
    assert "Leave --delimiter out." in refusal(tmp_path / "out", content, delimiter="comma")


def test_a_column_without_a_name_is_left_out_where_it_says_nothing(
    tmp_path: Path, read_jsonl: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    content = ",text,label,\n0,x,y,\n7,z,y, \n"

    assert texts(tmp_path, content, read_jsonl) == [
        {"text": "x", "label": "y"},
        {"text": "z", "label": "y"},
    ]
    assert caplog.messages == [
        "a.csv: column 1 has no name and numbers the rows: it is left out",
        "a.csv: column 4 has no name and is empty: it is left out",
    ]


@pytest.mark.parametrize("content", [",a\n0,x\n0,y\n", ",a\nx,1\n", "a,\n1,2\n", " \nx\n"])
def test_a_column_without_a_name_that_says_something_is_refused(
    tmp_path: Path, content: str
) -> None:
    assert "has no name" in refusal(tmp_path, content)


def test_a_header_with_numbers_is_said_to_be_taken_for_one(
    tmp_path: Path, read_jsonl: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(texts(tmp_path, "a fine film\t1\nso so\t0\n", read_jsonl)) == 1
    assert caplog.messages == ["a.csv:1 is read as the header, with the names a fine film, 1"]


def test_a_delimiter_that_is_not_known_is_asked_about(
    tmp_path: Path, read_jsonl: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    assert texts(tmp_path, "text^label\na^b\n", read_jsonl) == [{"text^label": "a^b"}]
    assert caplog.messages == [
        "a.csv:1: one column is found, 'text^label'; is another --delimiter meant?"
    ]


def test_a_nul_is_refused_with_its_line(tmp_path: Path) -> None:
    assert refusal(tmp_path, "a,b\r1,2\r3,\0\r").startswith("a.csv:3: a NUL, which no text holds")


def test_a_file_is_read_once_so_that_it_may_be_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = Thread(target=lambda: pipe.write_text("a;b\n1;2\n"), daemon=True)
    writer.start()

    counts = prepare_csv(pipe, tmp_path / "out", taskname="t")

    writer.join()
    assert counts == {"pipe.jsonl": 1}


def test_wrong_options_are_refused_with_what_they_may_be(tmp_path: Path) -> None:
    path = tmp_path / "n.csv"
    path.write_text("n\n1\n2\n")

    for name in ("", " ", "a b/c{x}"):
        with pytest.raises(ConfigError, match=rf"taskname '{re.escape(name)}'; expected 1 to 64"):
            prepare_csv(path, tmp_path, taskname=name)
    with pytest.raises(
        ConfigError, match=r"delimiter '\|'; expected one of comma, semicolon, tab, pip"
    ):
        prepare_csv(path, tmp_path, taskname="t", delimiter="|")
    with pytest.raises(ConfigError, match=r"quotes 'single'; expected one of double, backslash, n"):
        prepare_csv(path, tmp_path, taskname="t", quotes="single")
    with pytest.raises(ConfigError, match=r"fractions 0\.5, 0\.4, 0\.2; expected three numbers"):
        prepare_csv(path, tmp_path, taskname="t", fractions=(0.5, 0.4, 0.2))
    with pytest.raises(ConfigError, match=r"fractions 1\.5, -0\.5, 0\.0; expected three numbers"):
        prepare_csv(path, tmp_path, taskname="t", fractions=(1.5, -0.5, 0.0))


def test_a_column_that_no_template_can_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.csv"
    path.write_text("a{b},c\n1,2\n")

    with pytest.raises(DataError, match=r"braces in the column 'a\{b\}'"):
        prepare_csv(path, tmp_path, taskname="t")


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
