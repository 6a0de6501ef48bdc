r"""The regular expressions of pre-tokenizers, as trees of sets of code points.

The library's engine is Oniguruma with the syntax of Ruby; this is the subset that pre-tokenizers
use. Anything else is refused by name.

    a                     a character                     ab, a|b          one after the other, or
    \p{L} \P{L} \s \S     a class, also \d \D \w \W       (ab) (?:ab)      a group
    \r \n \t \f \u1234    a character, also \. and such   (?i:'s|'t)       texts without case
    [a-z\s] [^a-z]        any one of, none of             (?!a)            no such character next
    [a[b-d]]              a set in a set                  $                the end of a line next
    a? a* a+ a{1,3}       as often as can be
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from string import ascii_letters, hexdigits

from pl_compile.errors import TablesError
from pl_compile.text.tables.code_points import (
    CodePoints,
    alike_without_case,
    matched_by,
    union,
)


@dataclass(frozen=True)
class OneOf:
    """One code point of a set."""

    codes: CodePoints


@dataclass(frozen=True)
class NotAhead:
    """Nothing, where no code point of a set comes next."""

    codes: CodePoints


@dataclass(frozen=True)
class InOrder:
    """One part after the other; without parts, nothing."""

    parts: tuple["Node", ...]


@dataclass(frozen=True)
class Either:
    """The first option that lets the rest match."""

    options: tuple["Node", ...]


@dataclass(frozen=True)
class Repeat:
    """A part as often as the rest lets it.

    Attributes:
        part: matches at least one code point.
        least: how often at least.
        most: how often at most; None for any number.
    """

    part: "Node"
    least: int
    most: int | None


Node = OneOf | NotAhead | InOrder | Either | Repeat

# A counted part is written out in the table.
_MOST_TIMES = 1000

_CONTROLS = {"r": "\r", "n": "\n", "t": "\t", "f": "\f"}
_CLASSES = ("s", "d", "w")

# What the texts without case of known tokenizers have: contractions.
_WITHOUT_CASE = {*ascii_letters, "'", "\u2019"}


def parse(source: str) -> Node:
    """The tree of a regular expression.

    Raises:
        TablesError: it has a part that is not in the subset.
    """
    try:
        return _Parser(source).whole()
    except RecursionError as error:
        raise TablesError("a regular expression with groups nested too deep") from error


def literal(text: str) -> Node:
    """The tree of a text that stands for itself."""
    return _in_order([OneOf(CodePoints.of(character)) for character in text])


def sets_of(node: Node) -> Iterator[CodePoints]:
    """All sets of a tree, from left to right."""
    match node:
        case OneOf(codes) | NotAhead(codes):
            yield codes
        case Repeat(part):
            yield from sets_of(part)
        case InOrder(parts) | Either(parts):
            for each in parts:
                yield from sets_of(each)


def may_be_empty(node: Node) -> bool:
    """Whether a tree can match no code point at all."""
    match node:
        case OneOf():
            return False
        case NotAhead():
            return True
        case Repeat(part, least):
            return least == 0 or may_be_empty(part)
        case InOrder(parts):
            return all(map(may_be_empty, parts))
        case Either(options):
            return any(map(may_be_empty, options))


class _Parser:
    """Reads a source from left to right; each method takes what it names."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._place = 0

    def whole(self) -> Node:
        node = self._either()
        if self._place < len(self._source):
            raise self._refused("a ')' that closes nothing")
        return node

    def _either(self) -> Node:
        options = [self._in_order()]
        while self._took("|"):
            options.append(self._in_order())
        return options[0] if len(options) == 1 else Either(tuple(options))

    def _in_order(self) -> Node:
        parts = []
        while self._next() not in ("", "|", ")"):
            parts.append(self._quantified(self._one()))
        return _in_order(parts)

    def _one(self) -> Node:
        if self._took("("):
            return self._group()
        if self._took("["):
            return OneOf(self._set())
        if self._took("\\"):
            return OneOf(self._escaped())
        if self._took("$"):
            return NotAhead(~CodePoints.of("\n"))
        if self._next() in "^.?*+{":
            raise self._refused(f"the operator '{self._next()}'")
        return OneOf(self._character())

    def _quantified(self, part: Node) -> Node:
        times = self._times()
        if times is None:
            return part
        if self._next() in ("?", "*", "+", "{"):
            raise self._refused("a quantifier that is lazy or possessive, or follows another")
        if may_be_empty(part):
            raise self._refused("a quantifier of what can be empty")
        return Repeat(part, *times)

    def _times(self) -> tuple[int, int | None] | None:
        for sign, least, most in (("?", 0, 1), ("*", 0, None), ("+", 1, None)):
            if self._took(sign):
                return least, most
        return self._counted() if self._took("{") else None

    def _counted(self) -> tuple[int, int | None]:
        first, comma, last = self._up_to("}").partition(",")
        least = self._count(first)
        if not comma:
            return least, least
        most = self._count(last) if last else None
        if most is not None and not 0 < most >= least:
            raise self._refused(f"the quantifier {{{first},{last}}}")
        return least, most

    def _count(self, digits: str) -> int:
        if not (digits.isascii() and digits.isdecimal() and int(digits[:5]) <= _MOST_TIMES):
            raise self._refused(f"the count '{digits}' (0 to {_MOST_TIMES})")
        return int(digits)

    def _group(self) -> Node:
        if self._took("?!"):
            return NotAhead(self._ahead())
        if self._took("?i:"):
            return self._without_case()
        if self._next() == "?" and not self._took("?:"):
            raise self._refused(f"the group '({self._source[self._place : self._place + 3]}'")
        node = self._either()
        self._close()
        return node

    def _without_case(self) -> Node:
        words = self._up_to(")").split("|")
        for word in words:
            if not word or set(word) - _WITHOUT_CASE:
                raise self._refused(
                    f"the text '{word}' without case, which is not of ASCII letters"
                )
            # "ss" matches "ß" as a whole, which no set of code points can say.
            if any(pair in word.lower() for pair in _folded_pairs()):
                raise self._refused(f"the text '{word}' without case, which has a letter like two")
        options = tuple(_in_order(list(map(_alike, word))) for word in words)
        return options[0] if len(options) == 1 else Either(options)

    def _ahead(self) -> CodePoints:
        node = self._either()
        self._close()
        if not isinstance(node, OneOf):
            raise self._refused("a look-ahead that is not for one set of characters")
        return node.codes

    def _close(self) -> None:
        if not self._took(")"):
            raise self._refused("a group without its ')'")

    def _set(self) -> CodePoints:
        others = self._took("^")
        if self._next() in ("]", ""):
            raise self._refused("a set without characters")
        found = []
        while not self._took("]"):
            found.append(self._member())
        codes = union(found)
        return ~codes if others else codes

    def _member(self) -> CodePoints:
        """A character, a class or a range of a set."""
        next_two = self._source[self._place : self._place + 2]
        if next_two in ("", "[:", "&&"):
            raise self._refused("a set with '[:' or '&&' in it, or without its ']'")
        is_set = self._took("[")
        first = self._set() if is_set else self._member_alone()
        if self._next() != "-" or self._source.startswith("-]", self._place):
            return first
        if is_set:
            raise self._refused("a '-' behind a set in a set")
        self._took("-")
        if self._next() in ("[", ""):
            raise self._refused("a set with '[' in it, or without its ']'")
        low, high = self._only_one(first), self._only_one(self._member_alone())
        if low > high:
            raise self._refused(f"the range '{chr(low)}-{chr(high)}'")
        return CodePoints.between(low, high)

    def _member_alone(self) -> CodePoints:
        return self._escaped() if self._took("\\") else self._character()

    def _only_one(self, codes: CodePoints) -> int:
        """The code point of an end of a range."""
        ranges = list(codes.ranges)
        if len(ranges) != 1 or ranges[0][1] - ranges[0][0] != 1:
            raise self._refused("a '-' beside a class in a set")
        return ranges[0][0]

    def _escaped(self) -> CodePoints:
        """What follows a backslash."""
        character = self._next()
        self._place += 1
        if character in _CONTROLS:
            return CodePoints.of(_CONTROLS[character])
        if character in _CLASSES:
            return matched_by(f"\\{character}")
        if character.lower() in _CLASSES:
            return ~matched_by(f"\\{character.lower()}")
        if character in ("p", "P") and self._took("{"):
            codes = matched_by(rf"\p{{{self._up_to('}')}}}")
            return ~codes if character == "P" else codes
        if character == "u":
            return self._numbered()
        if not character or character.isalnum() or not character.isascii():
            raise self._refused(f"the escape '\\{character}'")
        return CodePoints.of(character)

    def _numbered(self) -> CodePoints:
        digits = self._source[self._place : self._place + 4]
        self._place += 4
        if len(digits) < 4 or set(digits) - set(hexdigits):
            raise self._refused(f"the escape '\\u{digits}'")
        return CodePoints.of(chr(int(digits, 16)))

    def _character(self) -> CodePoints:
        character = self._next()
        self._place += 1
        return CodePoints.of(character)

    def _up_to(self, end: str) -> str:
        place = self._source.find(end, self._place)
        if place < 0:
            raise self._refused(f"a '{self._source[self._place - 1]}' without its '{end}'")
        found = self._source[self._place : place]
        self._place = place + len(end)
        return found

    def _next(self) -> str:
        return self._source[self._place : self._place + 1]

    def _took(self, text: str) -> bool:
        """Whether a text comes next; if so, it is behind us then."""
        if not self._source.startswith(text, self._place):
            return False
        self._place += len(text)
        return True

    def _refused(self, part: str) -> TablesError:
        return TablesError(f"{part} in the regular expression {self._source!r:.200}")


def _in_order(parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else InOrder(tuple(parts))


def _alike(character: str) -> OneOf:
    """What a character matches without case."""
    is_letter = character in ascii_letters
    return OneOf(alike_without_case(character) if is_letter else CodePoints.of(character))


@cache
def _folded_pairs() -> frozenset[str]:
    """The first two characters of all texts that match a single other character without case.

    All of them are in the first plane of Unicode.
    """
    folded = (chr(code).casefold() for code in range(0x10000))
    return frozenset(text[:2] for text in folded if len(text) > 1)
