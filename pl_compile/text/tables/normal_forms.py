"""What NFC does to each code point, asked of the library.

Its normalizers follow a version of Unicode of their own. A text is normalised in three steps
(Unicode 3.11): characters are decomposed, runs of marks are put in the order of their combining
classes, and pairs are composed. Hangul is left out: there it is arithmetic (Unicode 3.12).
"""

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

from pl_compile.errors import TablesError
from pl_compile.text.tables.code_points import SURROGATES

_HANGUL, _HANGUL_PARTS = range(0xAC00, 0xD7A4), range(0x1100, 0x1200)
# What is below has no decomposition and is no mark: the controls and signs of Latin-1. Nor has what
# is above: planes that are empty, for tags or for private use.
_FIRST, _END = 0xC0, 0x40000
_BLOCK = 128

# Characters that stay where they are whatever stands beside them.
_BETWEEN, _BETWEEN_BLOCKS = "\n", "\r"

# Marks of the lowest and of the highest class: any other mark moves before or behind one of them.
_LOWEST, _HIGHEST = "\u0334", "\u0345"


@dataclass(frozen=True)
class NormalForms:
    """What NFC needs to know.

    Attributes:
        decompositions: for each character that has one, its full canonical decomposition.
        marks: for each mark that has none, its canonical combining class, above 0.
        compositions: for each pair that is composed, the character.
    """

    decompositions: Mapping[str, str]
    marks: Mapping[str, int]
    compositions: Mapping[tuple[str, str], str]


@cache
def normal_forms() -> NormalForms:
    """The tables of the library's NFC.

    Raises:
        TablesError: the library does not behave as Unicode says, so no table can say what it does.
    """
    decompositions = _decompositions()
    marks = _marks([c for c in _moving() if c not in decompositions])
    forms = NormalForms(decompositions, marks, _compositions(decompositions))
    _check(forms)
    return forms


def stays(text: str) -> bool:
    """Whether a text is in a NFC just where it was before, and parts what stands on its two sides.

    No character of it is made of others, or becomes a part of another one. Most letters are not so:
    "K" is also what the sign of kelvins becomes.
    """
    forms = normal_forms()
    moved = {*forms.decompositions, *forms.marks, *chain(*forms.decompositions.values())}
    moved |= {part for pair in forms.compositions for part in pair}
    return not any(
        character in moved or ord(character) in _HANGUL or ord(character) in _HANGUL_PARTS
        for character in text
    )


def _decompositions() -> dict[str, str]:
    blocks = list(_blocks())
    decomposed = _each(_nfd, blocks, _BETWEEN_BLOCKS)
    found: dict[str, str] = {}
    for block, result in zip(blocks, decomposed, strict=True):
        if block != result:
            pairs = zip(block.split(_BETWEEN), result.split(_BETWEEN), strict=True)
            found |= {character: parts for character, parts in pairs if character != parts}
    return found


def _moving() -> list[str]:
    """The characters that do not stay where they are beside a mark."""
    blocks = [
        _BETWEEN.join(f"{character}{_LOWEST}{_BETWEEN}{_HIGHEST}{character}" for character in block)
        for block in (block.split(_BETWEEN) for block in _blocks())
    ]
    moved = _each(_nfd, blocks, _BETWEEN_BLOCKS)
    found = []
    for block, result in zip(blocks, moved, strict=True):
        if block != result:
            before, after = block.split(_BETWEEN), result.split(_BETWEEN)
            found += [
                before[place][0]
                for place in range(0, len(before), 2)
                if before[place : place + 2] != after[place : place + 2]
            ]
    return found


def _marks(marks: Sequence[str]) -> dict[str, int]:
    """The combining class of each mark.

    Python knows the number of a class, of at least one of its marks. Which marks are of the same
    class is asked of the library: those that change places with the same others.
    """
    known: dict[int, str] = {}
    for mark in marks:
        known.setdefault(unicodedata.combining(mark), mark)
    known.pop(0, None)  # marks that only the library knows
    numbers = sorted(known)
    ordered = [known[number] for number in numbers]
    pairs = [mark + other for mark in marks for other in ordered]
    moves = [
        pair != result for pair, result in zip(pairs, _each(_nfd, pairs, _BETWEEN), strict=True)
    ]
    width = len(ordered)
    below = [sum(moves[row * width : row * width + width]) for row in range(len(marks))]
    # A mark moves behind those of all lower classes: their count is the place of its own class.
    found = {
        mark: numbers[count] for mark, count in zip(marks, below, strict=True) if count < width
    }
    same = [known[number] + mark for mark, number in found.items()]
    if len(found) < len(marks) or _each(_nfd, same, _BETWEEN) != same:
        raise TablesError("NFC with marks of an unknown class")
    return found


def _compositions(decompositions: Mapping[str, str]) -> dict[tuple[str, str], str]:
    wholes = [whole for whole, parts in decompositions.items() if len(parts) > 1]
    kept = [
        whole
        for whole, form in zip(wholes, _each(_nfc, wholes, _BETWEEN), strict=True)
        if whole == form
    ]
    firsts = _each(_nfc, [decompositions[whole][:-1] for whole in kept], _BETWEEN)
    return {
        (first, decompositions[whole][-1]): whole
        for whole, first in zip(kept, firsts, strict=True)
        if len(first) == 1
    }


def _check(forms: NormalForms) -> None:
    """Raises `TablesError` unless the library composes just as the table says."""
    pairs = ["".join(pair) for pair in forms.compositions]
    composed = _each(_nfc, pairs, _BETWEEN) == list(forms.compositions.values())
    wholes = _each(_nfc, forms.decompositions, _BETWEEN)
    kept = {
        whole for whole, form in zip(forms.decompositions, wholes, strict=True) if whole == form
    }
    if not composed or kept != set(forms.compositions.values()):
        raise TablesError("NFC that composes otherwise than Unicode says")


def _blocks() -> Iterable[str]:
    """All characters that can change, with `_BETWEEN` between them, in blocks."""
    for start in range(_FIRST, _END, _BLOCK):
        codes = range(start, min(start + _BLOCK, _END))
        kept = [chr(code) for code in codes if code not in _HANGUL and code not in SURROGATES]
        if kept:
            yield _BETWEEN.join(kept)


def _each(normalised: Callable[[str], str], texts: Iterable[str], between: str) -> list[str]:
    """The form of each text, in one call: the library takes longer to be called than to work."""
    return normalised(between.join(texts)).split(between)


def _nfd(text: str) -> str:
    from tokenizers import normalizers

    form: str = normalizers.NFD().normalize_str(text)
    return form


def _nfc(text: str) -> str:
    from tokenizers import normalizers

    form: str = normalizers.NFC().normalize_str(text)
    return form
