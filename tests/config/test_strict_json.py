"""JSON that programs read differently is refused, with a word that says what it is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pl_compile.config.strict_json import parse_json, parse_json_array

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
        ("[" * 100_000, "nested without end"),
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


@given(st.lists(_VALUES), st.sampled_from([None, 1]))
def test_an_array_is_read_item_by_item(values: list[object], indent: int | None) -> None:
    assert list(parse_json_array(f" {json.dumps(values, indent=indent)}\n")) == values


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1,\n\n NaN]", "the item that opens at line 3: NaN is not JSON"),
        ('[{"a": 1},\n{"a": 1, "a": 2}]', "opens at line 2: the key 'a' is given twice"),
        ('["x",\n"\\ud800"]', "opens at line 2: .*half of a surrogate pair"),
        ("[1,\n" + "[" * 100_000, "opens at line 2: values nested without end"),
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
