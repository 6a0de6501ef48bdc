"""Regular expressions match as the library's engine does: random ones, on random texts."""

import random
import re

import pytest
from known_tokenizers import byte_level, sequence, split
from reader import Reader
from tiny_tokenizers import byte_level_tokenizer, with_parts
from tokenizers import Regex, pre_tokenizers

from pl_compile.errors import TablesError
from pl_compile.text.tables import tables_of
from pl_compile.text.tables.code_points import matched_by
from pl_compile.text.tables.patterns import OneOf, parse

_ATOMS = ("a", "b", "c", " ", "[ab]", "[^a]", r"\s", r"\S", r"[^\sb]", r"\p{L}", "(?i:s|ab)", "ab")
_QUANTIFIERS = ("", "", "", "?", "*", "+", "{2}", "{1,3}", "{2,}", "{0,2}")
_LETTERS = ["a", "b", "c", "s", "S", "\u017f", " ", "\n", "1", "ab", "A"]


def _reader(pattern: str) -> Reader:
    splits = sequence(split(pattern), byte_level())
    return Reader(tables_of(with_parts(byte_level_tokenizer("no split"), pre_tokenizer=splits)))


def _pieces_of_library(pattern: str, text: str) -> list[str]:
    found = pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(text)
    return [piece for piece, _ in found]


def _pattern(source: random.Random, depth: int) -> str:
    """A regular expression; most of them are in the subset."""
    kind = source.random()
    if depth == 0 or kind < 0.3:
        return source.choice(_ATOMS)
    if kind < 0.5:
        return f"(?:{_pattern(source, depth - 1)}){source.choice(_QUANTIFIERS)}"
    if kind < 0.6:
        return f"{_pattern(source, depth - 1)}(?!{source.choice(_ATOMS[:8])})"
    if kind < 0.8:
        return f"{_pattern(source, depth - 1)}{_pattern(source, depth - 1)}"
    return f"(?:{_pattern(source, depth - 1)}|{_pattern(source, depth - 1)})"


@pytest.mark.parametrize("seed", range(4))
def test_random_expressions_split_random_texts_as_the_library_does(seed: int) -> None:
    source = random.Random(seed)
    compared, refused = 0, list[str]()
    for _ in range(150):
        pattern = _pattern(source, 4)
        try:
            reader = _reader(pattern)
        except TablesError as error:
            refused.append(error.found)
            continue
        for _ in range(25):
            text = "".join(source.choices(_LETTERS, k=source.randrange(1, 14)))
            assert reader.pieces(text) == _pieces_of_library(pattern, text), (pattern, text)
        compared += 1
    assert compared > 60
    assert all(re.search("empty|nothing|lazy", found) for found in refused)


@pytest.mark.parametrize(
    "pattern",
    [
        r"\s+(?!\S)|\s+",
        "a|ab",
        "(?:a|ab)(?:c|bcd)?",
        "(a|ab)(c|bcd)",
        "a{1,2}ab",
        "(?:ab)+a?b",
        "a+(?!b)|b",
        "(?!a)[abc]+",
        r"[ab](?!a)(?!b)\s(?!\S)|[^\S]",
        r"\u0061b|\.",
        "[-a]b|[b-]",
        r"\s+$",
        r"a$|b$\n|[^a]+$",
        r"(?:a|\s)+$\s?",
        "]a}",
    ],
)
def test_the_first_option_that_lets_the_rest_match_is_taken(pattern: str) -> None:
    reader = _reader(pattern)
    source = random.Random(0)

    for _ in range(300):
        text = "".join(source.choices("aabbc  \n.-]}", k=source.randrange(1, 12)))
        assert reader.pieces(text) == _pieces_of_library(pattern, text), text


@pytest.mark.parametrize(
    "source",
    [
        r"\S",
        r"\P{L}",
        r"\D",
        r"\W",
        r"[\p{L}\p{M}]",
        r"[^\r\n\p{L}\p{N}]",
        r"[^\s\p{L}\p{N}]",
        r"[a-z\-\]\\^]",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]",
        r"[\u4e00-\u9fa5\u3040-\u309f]",
        "[a-c-e]",
        "[-a]",
        "[^-a]",
        "[a-]",
        "[+--]",
        "[a[bc]d]",
        "[^a[^b-z]]",
        "[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]",
        r"[[\p{L}][a-]-]",
        "[a^]",
        r"\u00e9",
        r"\/",
        "(?i:k)",
        "(?i:')",
    ],
)
def test_a_set_has_the_code_points_that_the_library_says(source: str) -> None:
    """Halves of surrogate pairs aside, which no text has."""
    node = parse(source)

    assert isinstance(node, OneOf)
    wanted = matched_by(source)
    ends = {code + step for code in (*wanted.changes, *node.codes.changes) for step in (-1, 0)}
    codes = [code for code in ends if 0 <= code < 0x110000 and not 0xD800 <= code < 0xE000]
    assert codes
    assert [code in node.codes for code in codes] == [code in wanted for code in codes]


REFUSED = {
    "a*?b": "lazy or possessive",
    "a++b": "lazy or possessive",
    "a{1,2}{3}": "lazy or possessive, or follows another",
    "(?:a*)+b": "a quantifier of what can be empty",
    "(?:(?!a)b?)+b": "a quantifier of what can be empty",
    "a*": "matches the empty text",
    "|a": "matches the empty text",
    "a{0}b{0}": "matches the empty text",
    "(?=a)b": "the group '\\(\\?=a'",
    "(?<=a)b": "the group '\\(\\?<='",
    "(?<n>a)": "the group '\\(\\?<n'",
    "(?>a)b": "the group '\\(\\?>a'",
    "(?i)a": "the group '\\(\\?i\\)'",
    "(?!ab)c": "a look-ahead that is not for one set",
    "^a": "the operator '\\^'",
    "$": "matches the empty text",
    "a.": "the operator '\\.'",
    r"\bA": r"the escape '\\b'",
    r"\x41": r"the escape '\\x'",
    r"(a)\1": r"the escape '\\1'",
    r"\R": r"the escape '\\R'",
    r"\X": r"the escape '\\X'",
    "[[:alpha:]]": "a set with '\\[:'",
    "[a&&b]": "a set with '\\[:' or '&&'",
    "(?i:ss)": "the text 'ss' without case",
    "(?i:st)": "the text 'st' without case",
    "(?i:é)": "the text 'é' without case",
    "(?i:[a-z])": "the text '\\[a-z\\]' without case",
    "a{1,2000}": "the count '2000'",
    "(?:(?:a{500}){500}){500}": "too large",
    "a{,3}": "the count ''",
}


@pytest.mark.parametrize("pattern", REFUSED)
def test_what_is_not_in_the_subset_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(TablesError, match=REFUSED[pattern]):
        _reader(pattern)


@pytest.mark.parametrize("source", [r"[\s-a]", r"[a-\s]", r"[\p{L}-\p{N}]"])
def test_a_range_of_classes_is_refused_before_the_library_is_asked(source: str) -> None:
    with pytest.raises(TablesError, match="a '-' beside a class in a set"):
        parse(source)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("a)", "a '\\)' that closes nothing"),
        ("(a", "a group without its '\\)'"),
        ("(?i:a", "without its '\\)'"),
        ("[a", "or without its '\\]'"),
        ("[a-", "or without its '\\]'"),
        ("[a[b]", "or without its '\\]'"),
        ("[a[]]", "a set without characters"),
        ("[[a]-c]", "a '-' behind a set in a set"),
        ("a$*", "a quantifier of what can be empty"),
        ("[]a]", "a set without characters"),
        ("[b-a]", "the range 'b-a'"),
        ("a{1", "without its '}'"),
        ("a{2,1}", r"the quantifier \{2,1\}"),
        ("\\p{L", "without its '}'"),
        ("\\u12", "the escape"),
        ("a\\", "the escape"),
        ("+a", "the operator '\\+'"),
        ("(" * 100_000, "nested too deep"),
    ],
)
def test_what_is_not_whole_is_refused_before_the_library_is_asked(source: str, found: str) -> None:
    with pytest.raises(TablesError, match=found):
        parse(source)


def test_no_text_breaks_the_parser() -> None:
    source = random.Random(5)
    signs = [*"ab^$.|?*+()[]{}\\-,12sSpPuix:!&'", "(?i:", "(?!", "(?:", "\\p{L}", "\\s", "é"]
    parsed = 0
    for _ in range(20_000):
        try:
            parse("".join(source.choices(signs, k=source.randrange(1, 9))))
            parsed += 1
        except TablesError:
            pass
    assert parsed > 1000


def test_what_matches_nothing_is_refused() -> None:
    with pytest.raises(TablesError, match="matches nothing"):
        _reader(r"a(?!\S)(?!\s)b")


def test_states_that_would_fill_the_memory_are_refused() -> None:
    with pytest.raises(TablesError, match="too many states"):
        _reader("(?:a|b)*a(?:a|b){13}")
