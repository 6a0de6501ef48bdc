import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pl_compile.config.task import TaskConfig
from pl_compile.errors import DataError
from pl_compile.text.examples import Example, read_examples
from pl_compile.text.template import Template, parse_template

TEMPLATES: Mapping[str, Template] = {
    task.taskname: parse_template(task)
    for task in (
        TaskConfig("mood", "<|VIRTUAL_PROMPT_0|> {text} mood:{label}", 3),
        TaskConfig("squad", "<|VIRTUAL_PROMPT_0|>{context} {question} Answer: {answer}", 5),
        TaskConfig("news", "<|VIRTUAL_PROMPT_0|>{text}:{label}", 2, choices=(" up", " down")),
    )
}
GOOD = {"taskname": "mood", "text": "who", "label": " cold"}

Writer = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Writes lines, each a text or an object to be written as JSON."""

    def writer(*lines: object, name: str = "a.jsonl") -> Path:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path = tmp_path / name
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        return path

    return writer


def refusal(*paths: Path, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        read_examples(paths, TEMPLATES, **options)
    return str(error.value)


# What is read


def test_lines_become_examples_in_their_order_with_their_places(write: Writer) -> None:
    squad = {"taskname": "squad", "context": "c", "question": "q", "answer": 1987}
    one = write(GOOD, "", squad)
    two = write(GOOD, name="b.jsonl")

    assert read_examples([one, two], TEMPLATES) == [
        Example("mood", {"text": "who", "label": " cold"}, f"{one}:1"),
        Example("squad", {"context": "c", "question": "q", "answer": 1987}, f"{one}:3"),
        Example("mood", {"text": "who", "label": " cold"}, f"{two}:1"),
    ]


def test_a_json_array_is_read_item_by_item(write: Writer) -> None:
    path = write("", json.dumps([GOOD, {**GOOD, "text": "was"}], indent=2), name="a.json")

    examples = read_examples([path], TEMPLATES)

    assert [example.where for example in examples] == [f"{path}, item 0", f"{path}, item 1"]
    assert [example.fields["text"] for example in examples] == ["who", "was"]


def test_values_are_data_and_come_through_unchanged(write: Writer) -> None:
    value = " {label} <|VIRTUAL_PROMPT_0|> \u2028 \r\n café 😀  "
    escaped = json.dumps({**GOOD, "text": value}, ensure_ascii=True)
    plain = json.dumps({**GOOD, "text": value}, ensure_ascii=False)
    path = write(escaped, plain)

    examples = read_examples([path], TEMPLATES)

    assert [example.fields["text"] for example in examples] == [value, value]
    assert examples[1].where == f"{path}:2"


def test_numbers_are_values_too(write: Writer) -> None:
    path = write({**GOOD, "text": -3, "label": 0.5})

    assert read_examples([path], TEMPLATES)[0].fields == {"text": -3, "label": 0.5}


# Single mistakes


def test_a_malformed_line_is_named_with_file_and_line(write: Writer) -> None:
    path = write(GOOD, '{"taskname": "mood",', GOOD)

    assert refusal(path) == (
        f"reading {path}: {path}:2: not JSON (Expecting property name enclosed in double quotes, "
        "column 21)."
    )


def test_a_malformed_array_is_named_with_its_own_line(write: Writer) -> None:
    path = write("[", GOOD, GOOD, "]", name="a.json")

    assert refusal(path) == (
        f"reading {path}: {path}:3: not a JSON array (Expecting ',' delimiter, column 1)."
    )


DIFFERENT = [
    ('{"taskname": "mood", "text": NaN, "label": "x"}', "NaN is not JSON"),
    ('{"taskname": "mood", "text": -Infinity, "label": "x"}', "-Infinity is not JSON"),
    ('{"taskname": "mood", "text": 1e999, "label": "x"}', "1e999 is beyond the range of a double"),
    (f'{{"taskname": "mood", "text": 1{"0" * 400}, "label": "x"}}', "of 401 digits is beyond"),
    ('{"taskname": "mood", "text": "a", "label": "x", "text": "b"}', "'text' is given twice"),
    ('{"taskname": "mood", "text": "\\ud800", "label": "x"}', "half of a surrogate pair"),
]


@pytest.mark.parametrize("answers", [True, False], ids=["to learn from", "to be answered"])
@pytest.mark.parametrize(("line", "reason"), DIFFERENT)
def test_what_other_programs_read_differently_is_refused_with_its_line(
    write: Writer, line: str, reason: str, answers: bool
) -> None:
    lines = write(GOOD, line, GOOD)
    array = write("[", json.dumps(GOOD), ",", f"{line}]", name="a.json")

    assert f": {lines}:2: not JSON (" in refusal(lines, answers=answers)
    assert reason in refusal(lines, answers=answers)
    assert f"{array}:4: not a JSON array (" in refusal(array, answers=answers)
    assert reason in refusal(array, answers=answers)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (json.dumps(GOOD, indent=2), "an object over several lines, expected one on each line"),
        (json.dumps({"data": [GOOD]}, indent=1), "an object over several lines"),
        (json.dumps({"data": [GOOD]}), "write the list 'data' alone"),
        (f"{json.dumps(GOOD)},\n{json.dumps(GOOD)}", "objects joined by commas"),
        (f"{GOOD}\n{GOOD}", "Python's way to write it, expected what json.dumps writes"),
    ],
)
def test_another_form_of_the_same_rows_is_named_once(write: Writer, text: str, form: str) -> None:
    path = write("", text)

    assert f": {path}:2" in refusal(path).replace("\n  -", ":")
    assert refusal(path).count(form) == 1


def test_a_stray_line_after_objects_makes_no_table_of_a_file(write: Writer) -> None:
    path = write(GOOD, GOOD, "who, why")

    assert refusal(path) == f"reading {path}: {path}:3: not JSON (Expecting value, column 1)."


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_may_end_in_any_way(tmp_path: Path, end: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(end.join([json.dumps(GOOD), "", json.dumps(GOOD)]).encode("utf-8-sig"))

    assert [example.where for example in read_examples([path], TEMPLATES)] == [
        f"{path}:1",
        f"{path}:3",
    ]


@pytest.mark.parametrize("line", ["3", '"text"', "null", '["mood"]'])
def test_a_line_that_is_no_object_is_refused(write: Writer, line: str) -> None:
    path = write(GOOD, line)

    assert refusal(path) == f"reading {path}: {path}:2: not a JSON object."


@pytest.mark.parametrize("name", [..., None, 3, ["mood"]])
def test_a_line_without_a_taskname_is_refused(write: Writer, name: object) -> None:
    named = {"text": "who", "label": "x"} | ({} if name is ... else {"taskname": name})
    path = write(named)

    assert refusal(path) == (
        f'reading {path}: {path}:1: no \'taskname\': add "taskname": "mood" or "news" to each row.'
    )


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "x"}]},
        {"instruction": "x", "input": "", "output": "y"},
        {"text": "x", "rows": [{}]},
        {"text": "x", "rows": [3]},
    ],
)
def test_rows_of_another_kind_are_told_the_form_of_a_task(
    write: Writer, row: dict[str, Any]
) -> None:
    path = write(*[row] * 9)

    assert f"{path}:3 and 6 more: no 'taskname'" in refusal(path)
    assert 'expected {"taskname": "mood", "text": …, "label": …}.' in refusal(path)
    assert ("add" if "text" in row else '{"taskname": "mood", "text": …}') in refusal(
        path, answers=False
    )


@pytest.mark.parametrize("inner", [GOOD, {"text": "who", "label": "x"}])
def test_a_list_of_rows_is_to_be_written_alone(write: Writer, inner: dict[str, Any]) -> None:
    assert "no 'taskname': write the list 'data' alone" in refusal(write({"data": [inner]}))


def test_keys_that_no_template_has_are_to_be_taken_out_of_all_rows(write: Writer) -> None:
    path = write(*[{**GOOD, "id": 1, "meta": {}}] * 30)

    assert refusal(path) == (
        f"reading {path}: {path}:1, {path}:2, {path}:3 and 27 more: "
        "'id', 'meta' not in the template of 'mood': take them out ('plc prepare csv --columns "
        "text,label' does)."
    )


@pytest.mark.parametrize(
    ("lines", "form"),
    [
        (["taskname,text,label", *["mood,a,b"] * 5], "plc prepare csv makes JSON lines of it"),
        (["taskname\ttext\tlabel", "mood\ta\tb"], "plc prepare csv makes JSON lines of it"),
        (["version https://git-lfs.github.com/spec/v1", "oid sha256:a"], "Run `git lfs pull`"),
        (["// my data", GOOD, "# more", GOOD], "a comment, which JSON does not have: take it out"),
        ([json.dumps(GOOD) * 2, json.dumps(GOOD) * 2], "expected one object on each line"),
        (["{“taskname”: “mood”}"], "typographic quotes, expected straight ones"),
        (['{"taskname": 1'] + ["{'taskname': 'mood'}"] * 30, "Python's way to write it"),
    ],
)
def test_what_is_not_json_is_named_once(write: Writer, lines: list[object], form: str) -> None:
    message = refusal(write(*lines))

    assert message.count(form) == 1
    assert len(message.splitlines()) <= 3


def test_an_unknown_task_is_refused_with_the_near_name_and_the_known_ones(write: Writer) -> None:
    path = write({**GOOD, "taskname": "moods"})

    assert refusal(path) == (
        f"reading {path}: {path}:1: task 'moods' does not exist. Did you mean 'mood'? "
        "Known tasks: mood, squad, news."
    )


def test_a_missing_field_is_named_with_the_near_one_that_is_there(write: Writer) -> None:
    path = write({"taskname": "mood", "txt": "who", "label": "x"})

    assert refusal(path) == (
        f"reading {path}: {path}:1: no field 'text'; "
        "'txt' not in the template of 'mood'. Did you mean 'text'?"
    )


def test_near_names_of_several_fields_are_proposed_in_sentences(write: Writer) -> None:
    path = write({"taskname": "mood", "txt": "who", "labell": "x"})

    assert refusal(path).endswith(
        "'txt', 'labell' not in the template of 'mood'. Did you mean 'text'? Did you mean 'label'?"
    )


def test_missing_and_foreign_fields_are_all_named(write: Writer) -> None:
    path = write({"taskname": "squad", "title": "x", "id": "y", "context": "c"})

    text = refusal(path)

    assert "no field 'question', 'answer'" in text
    assert "'title', 'id' not in the template of 'squad'" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "null"), (True, "true"), (["who"], "a list"), ({"who": 1}, "an object")],
)
def test_a_value_that_is_no_text_or_number_is_refused(
    write: Writer, value: object, shown: str
) -> None:
    path = write({**GOOD, "text": value})

    assert refusal(path) == (
        f"reading {path}: {path}:1: field 'text' is {shown}; expected text or a number."
    )


def test_an_answer_outside_the_choices_is_refused_with_them(write: Writer) -> None:
    path = write(
        {"taskname": "news", "text": "who", "label": " up"},
        {"taskname": "news", "text": "who", "label": "up"},
    )

    assert refusal(path) == (
        f"reading {path}: {path}:2: the answer 'up' is not one of the choices [' up', ' down']."
    )


# Files


@pytest.mark.parametrize("text", ["", "\n \n", "[]"])
def test_a_file_without_examples_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text, encoding="utf-8")

    assert refusal(path) == (
        f"reading {path}: no examples; expected at least one JSON object a line."
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.jsonl"

    assert (
        refusal(path)
        == f"reading {path}: {path}: No such file or directory, expected a UTF-8 file."
    )


def test_bytes_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    line = '{"taskname": "mood", "text": "caf\xe9", "label": "x"}'
    path.write_bytes(f"{json.dumps(GOOD)}\r\r\n{line}".encode("latin-1"))

    assert refusal(path) == (
        f"reading {path}: {path}: line 3: the byte 0xe9, expected a UTF-8 file."
    )


# All together


def test_all_problems_of_two_files_stand_in_one_message(write: Writer) -> None:
    one = write(GOOD, "{", {**GOOD, "taskname": "moody"})
    two = write({"taskname": "mood", "text": "who"}, GOOD, name="b.jsonl")

    assert refusal(one, two).splitlines() == [
        f"reading {one}, {two}: 3 problems:",
        f"  - {one}:2: not JSON (Expecting property name enclosed in double quotes, column 2)",
        f"  - {one}:3: task 'moody' does not exist. Did you mean 'mood'? "
        "Known tasks: mood, squad, news.",
        f"  - {two}:1: no field 'label'.",
    ]


def test_a_missing_file_does_not_hide_the_problems_of_another(
    write: Writer, tmp_path: Path
) -> None:
    one = write(GOOD, "{")
    missing = tmp_path / "nowhere.jsonl"

    text = refusal(one, missing)

    assert f"{one}:2: not JSON" in text
    assert str(missing) in text
    assert "No such file or directory" in text


def test_of_very_many_problems_the_first_are_listed_and_the_rest_counted(write: Writer) -> None:
    path = write(*[{**GOOD, "taskname": f"no {number}"} for number in range(25)])

    lines = refusal(path).splitlines()

    assert lines[0] == f"reading {path}: 25 problems:"
    assert lines[1].startswith(f"  - {path}:1: task 'no 0' does not exist")
    assert lines[20].startswith(f"  - {path}:20: task 'no 19' does not exist")
    assert lines[21:] == ["  - and 5 more."]


# Data to be answered


def test_where_answers_are_not_needed_they_may_be_missing(write: Writer) -> None:
    path = write({"taskname": "squad", "context": "c", "question": "q"}, GOOD)

    examples = read_examples([path], TEMPLATES, answers=False)

    assert examples[0].fields == {"context": "c", "question": "q"}
    assert examples[1].fields == {"text": "who", "label": " cold"}


def test_where_answers_are_not_needed_there_may_be_several(write: Writer) -> None:
    path = write(
        {"taskname": "squad", "context": "c", "question": "q", "answer": ["a", "b"]},
        {"taskname": "news", "text": "who", "label": "sideways"},
    )

    examples = read_examples([path], TEMPLATES, answers=False)

    assert examples[0].fields["answer"] == ["a", "b"]
    assert examples[1].fields["label"] == "sideways"


def test_where_answers_are_not_needed_input_fields_still_are(write: Writer) -> None:
    path = write({"taskname": "squad", "context": ["c"], "answer": "a"})

    text = refusal(path, answers=False)

    assert "no field 'question'" in text
    assert "field 'context' is a list; expected text or a number" in text
    assert "'answer'" not in text


def test_an_example_to_learn_from_has_one_answer(write: Writer) -> None:
    path = write({"taskname": "squad", "context": "c", "question": "q", "answer": ["a", "b"]})

    assert "field 'answer' is a list; expected text or a number" in refusal(path)


# Options of an example's own

_KNOWN = ("max_tokens", "stop", "seed")


def read_with_options(path: Path, **templates: Any) -> list[Example]:
    return read_examples([path], {**TEMPLATES, **templates}, answers=False, options=_KNOWN)


def test_options_are_read_apart_from_fields(write: Writer) -> None:
    options = {"max_tokens": 3, "stop": ["\n"]}
    path = write({**GOOD, "options": options}, GOOD, {**GOOD, "options": {}})

    examples = read_with_options(path)

    assert [example.options for example in examples] == [options, {}, {}]
    assert {tuple(example.fields.items()) for example in examples} == {
        (("text", "who"), ("label", " cold"))
    }


def test_a_field_that_is_called_options_is_a_field(write: Writer) -> None:
    template = "<|VIRTUAL_PROMPT_0|>{options} {label}"
    spec = replace(TEMPLATES["mood"].task, taskname="pick", prompt_template=template)
    pick = parse_template(spec)
    path = write({"taskname": "pick", "options": "a or b"})

    (example,) = read_with_options(path, pick=pick)

    assert (example.fields, example.options) == ({"options": "a or b"}, {})


def test_what_is_wrong_with_options_stands_beside_all_else(write: Writer) -> None:
    path = write(
        {**GOOD, "options": {"max_token": 3}},
        {**GOOD, "options": [3]},
        {**GOOD, "max_tokens": 3},
        {"taskname": "mood", "options": {}},
        {**GOOD, "taskname": "mod", "options": {}},
    )

    with pytest.raises(DataError) as error:
        read_with_options(path)

    assert [line.partition(": ")[2] for line in str(error.value).splitlines()[1:]] == [
        "option 'max_token' does not exist. Did you mean 'max_tokens'? Known options: max_tokens, "
        "stop, seed.",
        "'options' is no object; expected options by name",
        "'max_tokens' not in the template of 'mood': write \"options\": {\"max_tokens\": \u2026}",
        "no field 'text'",
        "task 'mod' does not exist. Did you mean 'mood'? Known tasks: mood, squad, news.",
    ]


def test_data_has_no_options(write: Writer) -> None:
    assert "'options' not in the template of 'mood'" in refusal(write({**GOOD, "options": {}}))
