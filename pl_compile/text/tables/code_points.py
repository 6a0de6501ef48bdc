r"""Sets of code points, and which of them a class such as `\p{L}` has.

The library `tokenizers` is asked, not Python's `unicodedata`: its engine of regular expressions,
its `Digits` and its `NFC` follow three versions of Unicode, none of them Python's.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from string import ascii_letters

import numpy as np

from pl_compile.errors import TablesError

END = 0x110000  # one more than the largest code point
SURROGATES = range(0xD800, 0xE000)  # no text has them


@dataclass(frozen=True)
class CodePoints:
    """A set of code points.

    Attributes:
        changes: the code points at which membership changes, in ascending order: the first one is
            in the set, those from the second one on are not, and so on.
    """

    changes: tuple[int, ...]

    @classmethod
    def between(cls, first: int, last: int) -> "CodePoints":
        """All from `first` to `last`, both included."""
        return cls((first, last + 1) if last + 1 < END else (first,))

    @classmethod
    def of(cls, character: str) -> "CodePoints":
        """One character alone."""
        return cls.between(ord(character), ord(character))

    @classmethod
    def of_characters(cls, characters: Iterable[str]) -> "CodePoints":
        """Some characters."""
        return union(map(cls.of, characters))

    def __contains__(self, code_point: int) -> bool:
        return bisect_right(self.changes, code_point) % 2 == 1

    def __invert__(self) -> "CodePoints":
        if self.changes[:1] == (0,):
            return CodePoints(self.changes[1:])
        return CodePoints((0, *self.changes))

    @property
    def ranges(self) -> Iterator[tuple[int, int]]:
        """First and one more than the last code point of each run."""
        ends = self.changes if len(self.changes) % 2 == 0 else (*self.changes, END)
        return zip(ends[::2], ends[1::2], strict=True)


def union(sets: Iterable[CodePoints]) -> CodePoints:
    """The code points that are in any of some sets."""
    changes: list[int] = []
    for first, end in sorted(run for each in sets for run in each.ranges):
        if changes and first <= changes[-1]:
            changes[-1] = max(changes[-1], end)
        else:
            changes += (first, end)
    return CodePoints(tuple(change for change in changes if change < END))


@dataclass(frozen=True)
class Classes:
    """The coarsest division of all code points that respects some sets.

    Attributes:
        starts: the first code point of each run of one class, in ascending order; the first is 0.
        classes: the class of each run; numbered from 0 in the order in which they first occur.
        examples: a code point of each class.
    """

    starts: tuple[int, ...]
    classes: tuple[int, ...]
    examples: tuple[int, ...]

    def of_set(self, codes: CodePoints) -> frozenset[int]:
        """The classes that a set consists of; it must be one of those divided by."""
        return frozenset(key for key, example in enumerate(self.examples) if example in codes)


def divide(sets: Iterable[CodePoints]) -> Classes:
    """Divides all code points into classes, so that each set consists of whole classes."""
    known = list(dict.fromkeys(sets))
    starts = sorted({0, *(change for each in known for change in each.changes)})
    numbers: dict[tuple[bool, ...], int] = {}
    examples, classes = [], []
    for start in starts:
        member = tuple(start in each for each in known)
        if member not in numbers:
            numbers[member] = len(numbers)
            examples.append(start)
        classes.append(numbers[member])
    return Classes(tuple(starts), tuple(classes), tuple(examples))


@cache
def matched_by(source: str) -> CodePoints:
    r"""The code points that a regular expression for one code point (`\p{L}`) matches.

    Raises:
        TablesError: the library does not know the expression.
    """
    return _matched_among(source, _every_character())


@cache
def alike_without_case(letter: str) -> CodePoints:
    """What `(?i:s)` matches for an ASCII letter: s, S and U+017F."""
    return _matched_among(f"(?i:{letter})", _like_any_ascii_letter())


@cache
def numeric() -> CodePoints:
    r"""What `Digits` takes for a digit: Rust's `char::is_numeric`, which is not `\p{N}`."""
    from tokenizers import PreTokenizedString, pre_tokenizers

    text = PreTokenizedString(_every_character())
    pre_tokenizers.Digits(individual_digits=False).pre_tokenize(text)
    # The library cuts a text into runs without and with digits by turns. U+0000 is no digit.
    # Places in bytes: to count characters takes twice the time of all the rest.
    runs = text.get_splits(offset_referential="normalized", offset_type="byte")
    return CodePoints(tuple(_code_point_at(place) for _, (place, _), _ in runs[1:]))


def _matched_among(source: str, text: str) -> CodePoints:
    """The code points of a text, each once in ascending order, that an expression matches."""
    from tokenizers import Regex, normalizers

    try:
        # Of all ways to ask, to remove what matches is the cheapest: no lists of pieces.
        left = normalizers.Replace(Regex(source), "").normalize_str(text)
    except Exception as error:  # the library has no class of its own for it
        raise TablesError(f"the regular expression {source!r} ({error})") from error
    matched = np.zeros(END + 1, np.bool_)
    matched[_numbers(text)] = True
    matched[_numbers(left)] = False
    changes = (np.flatnonzero(matched[1:] != matched[:-1]) + 1).tolist()
    return CodePoints((0, *changes) if matched[0] else tuple(changes))


def _numbers(text: str) -> np.ndarray:  # uint32 [characters]
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


@cache
def _every_character() -> str:
    numbers = np.arange(END, dtype="<u4")
    return np.delete(numbers, SURROGATES).tobytes().decode("utf-32-le")


@cache
def _like_any_ascii_letter() -> str:
    """The few characters that an ASCII letter may match without case, in ascending order."""
    found = matched_by("(?i:[a-z])").ranges
    characters = {chr(code) for first, end in found for code in range(first, end)}
    return "".join(sorted(characters | set(ascii_letters)))


# Where the code points of each length in UTF-8 begin, in the text of all characters: the place in
# bytes, the code point, and bytes of each from there on.
_UTF8_PARTS = [(0, 0, 1), (0x80, 0x80, 2), (0x80 + 2 * 0x780, 0x800, 3)]
_UTF8_PARTS.append((_UTF8_PARTS[2][0] + 3 * 0xD000, 0xE000, 3))
_UTF8_PARTS.append((_UTF8_PARTS[3][0] + 3 * 0x2000, 0x10000, 4))


def _code_point_at(place: int) -> int:
    """The code point at a place, in bytes of UTF-8, of the text of all characters."""
    start, first, width = max(part for part in _UTF8_PARTS if part[0] <= place)
    return first + (place - start) // width
