"""What is asked of the library for all code points at once is what it says of each alone."""

import random

import pytest
from tiny_tokenizers import any_character
from tokenizers import Regex, normalizers, pre_tokenizers

from pl_compile.errors import TablesError
from pl_compile.text.tables.code_points import (
    CodePoints,
    alike_without_case,
    divide,
    matched_by,
    numeric,
    union,
)
from pl_compile.text.tables.normal_forms import normal_forms

_END = 0x110000


def _is_split_off(character: str, by: pre_tokenizers.PreTokenizer) -> bool:
    pieces = by.pre_tokenize_str(f"a{character}a")
    return [piece for piece, _ in pieces] == ["a", character, "a"]


def _codes(found: CodePoints) -> list[int]:
    """Those at each change, those beside them, and random ones."""
    source = random.Random(2)
    beside = {change + step for change in found.changes[::9] for step in (-1, 0)}
    beside |= {ord(any_character(source)) for _ in range(500)}
    return sorted(code for code in beside - {_END, ord("a")} if not 0xD800 <= code < 0xE000)


@pytest.mark.parametrize("source", [r"\p{L}", r"\s", r"\p{M}", r"\p{Lu}"])
def test_a_class_has_the_code_points_that_are_found_one_by_one(source: str) -> None:
    by = pre_tokenizers.Split(Regex(f"(?!a){source}"), "isolated")
    found = matched_by(source)

    for code in _codes(found):
        assert (code in found) == _is_split_off(chr(code), by), hex(code)


def test_digits_are_those_of_the_library_and_not_those_of_its_expressions() -> None:
    by = pre_tokenizers.Digits(individual_digits=True)
    found = numeric()

    for code in _codes(found):
        assert (code in found) == _is_split_off(chr(code), by), hex(code)
    assert found != matched_by(r"\p{N}")


def test_letters_without_case_have_more_than_two_forms() -> None:
    found = {letter: list(alike_without_case(letter).ranges) for letter in "sKt"}

    assert found["s"] == [(ord(each), ord(each) + 1) for each in "Ss\u017f"]
    assert found["K"] == [(ord(each), ord(each) + 1) for each in "Kk\u212a"]
    assert len(found["t"]) == 2


def test_an_unknown_class_is_refused_with_the_reason_of_the_library() -> None:
    with pytest.raises(TablesError, match=r"regular expression .*Nothing.*invalid character"):
        matched_by(r"\p{Nothing}")


def test_sets_are_joined_inverted_and_divided() -> None:
    a, b = CodePoints.between(5, 9), CodePoints.between(8, _END - 1)

    assert union([b, a]).changes == (5,)
    assert union([a, CodePoints.between(10, 11)]).changes == (5, 12)
    assert (~a).changes == (0, 5, 10)
    assert ~~a == a
    assert (~CodePoints(())).changes == (0,)
    classes = divide([a, b, a])
    assert (classes.starts, classes.classes) == ((0, 5, 8, 10), (0, 1, 2, 3))
    assert classes.of_set(b) == {2, 3}
    assert divide([]).classes == (0,)


def test_each_mark_has_the_class_that_unicode_gives_it() -> None:
    marks = normal_forms().marks

    known = {"\u0334": 1, "\u093c": 7, "\u3099": 8, "\u0327": 202, "\u0301": 230, "\u0345": 240}
    assert {mark: marks[mark] for mark in known} == known
    assert len(marks) > 700


def test_marks_move_past_those_of_other_classes_alone() -> None:
    marks = normal_forms().marks
    source = random.Random(3)

    for _ in range(3000):
        first, second = source.choices(list(marks), k=2)
        moves = normalizers.NFD().normalize_str(first + second) != first + second
        assert moves == (marks[first] > marks[second])


def test_nothing_composes_or_moves_beyond_the_planes_that_are_asked_for() -> None:
    codes = [*range(0xC0), *range(0x40000, _END)]
    for normalizer in (normalizers.NFC(), normalizers.NFD()):
        text = "\n".join(f"\u0345{chr(code)}\n{chr(code)}\u0334" for code in codes if code != 10)
        # Of these, letters of ASCII compose with marks of other classes only.
        assert normalizer.normalize_str(text) == text
