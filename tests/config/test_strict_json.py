"""JSON that programs read differently is refused, with a word that says what it is."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pl_compile.config.strict_json import parse_json, parse_json_array, with_null

_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_VALUES, st.booleans())
def test_what_any_writer_of_json_writes_is_read_as_it_is(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": NaN}', "NaN is not JSON"),
        ("[Infinity]", "Infinity is not JSON"),
        ("-Infinity", "-Infinity is not JSON"),
        ("[1e999]", "1e999 is beyond the range of a double"),
        ("-1.5e400", "-1.5e400 is beyond"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' is given twice"),
        ('[{"x": {"b": 1, "b": 1}}]', "the key 'b' is given twice"),
        (r'{"a": "\ud800"}', "half of a surrogate pair"),
        (r'{"a\udfff": 1}', "half of a surrogate pair"),
        ("[" * 100_000, "nested too deep"),
        ("[" + "1" * 10_000 + "]", "digits"),
        ("", "Expecting value"),
        ("{'a': 1}", "double quotes"),
    ],
)
def test_what_is_read_differently_elsewhere_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("(", r"\(")):
        parse_json(text)


def test_a_whole_pair_is_one_character() -> None:
    assert parse_json(r'"\ud83d\ude00"') == "😀"


def test_what_is_written_has_null_where_there_is_no_number() -> None:
    value = {"a": [1.5, float("nan"), (float("inf"), "NaN")], "b": {"c": -float("inf"), "d": 3}}

    assert with_null(value) == {"a": [1.5, None, [None, "NaN"]], "b": {"c": None, "d": 3}}


@given(st.lists(_VALUES), st.sampled_from([None, 1]))
def test_an_array_is_read_item_by_item(values: list[object], indent: int | None) -> None:
    assert list(parse_json_array(f" {json.dumps(values, indent=indent)}\n")) == values


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1,\n\n NaN]", "NaN is not JSON: .*: line 3 column 2 "),
        ('[{"a": 1},\n{"a": 1, "a": 2}]', "the key 'a' is given twice: line 2 column 10 "),
        ('["x",\n"\\ud800"]', "half of a surrogate pair.*: line 2 column 1 "),
        ("[1,\n" + "[" * 100_000, "values nested too deep: line 2 column 1 "),
        ("[1\n2]", "',' delimiter: line 2"),
        ("[1,]", "Expecting value"),
        ("[1", "',' delimiter"),
        ("[", "Expecting value"),
        ("[1] 2", "Extra data"),
    ],
)
def test_a_mistake_in_an_array_has_its_line(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        list(parse_json_array(text))


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ('{"a":\n NaN}', 2, 2),
        ('{"NaN": "Infinity, 1e999",\n"b": [{"c":\n -Infinity}]}', 3, 2),
        ("[1, 2.5,\n\n-1e999, NaN]", 3, 1),
        ('{"b": {"a": 1}, "c": [{"a": 1}, {"a": 2}],\n "a": 3,\n   "a": 4}', 3, 4),
        ('{"a": 1, "\\u0061":\n 2}', 1, 10),
        ('{"a": "x \\" : , { a", "b": "a",\n"b": 1}', 2, 1),
        ('["\\ud83d\\ude00",\n "\\ude00"]', 2, 2),
        ('{"x": 1,\n"\\ud83d": 2}', 2, 1),
    ],
)
def test_what_is_refused_has_its_place(text: str, line: int, column: int) -> None:
    with pytest.raises(json.JSONDecodeError) as error:
        parse_json(text)

    assert (error.value.lineno, error.value.colno) == (line, column)


@given(_VALUES, st.integers(0))
def test_the_place_is_that_of_the_first_value_refused(value: object, at: int) -> None:
    text = json.dumps([value, value, 0], indent=1)
    zeros = [m.start() for m in re.finditer(r"(?<=\s)-?\d+(?=,?\n)", text)]
    place = zeros[at % len(zeros)]
    changed = f"{text[:place]}NaN{re.sub('^-?[0-9]+', '', text[place:])}"

    with pytest.raises(json.JSONDecodeError, match="NaN is not JSON") as error:
        parse_json(changed)

    assert error.value.pos == place
