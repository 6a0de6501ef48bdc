"""Writes `src/character_kinds.inc`: the kinds of characters that words are made of.

    python runtime/native/tools/write_character_kinds.py > runtime/native/src/character_kinds.inc

The kinds are those of `pl_compile/text/words.py`, by the Unicode version of the Python that runs
this (`unicodedata`). Only where a kind begins is written.
"""

import unicodedata
from collections.abc import Iterator

from pl_compile.text.words import is_letter, is_mark

OTHER, LETTER, MARK, WHITE_SPACE = range(4)
_PER_LINE = 10


def kind_of(character: str) -> int:
    """The kind of a character."""
    if character.isspace():
        return WHITE_SPACE
    if is_mark(character):
        return MARK
    return LETTER if is_letter(character) else OTHER


def starts() -> Iterator[int]:
    """For each run of characters of one kind, in order: its first code point << 2 | the kind."""
    last = None
    for code in range(0x110000):
        kind = kind_of(chr(code))
        if kind != last:
            yield code << 2 | kind
        last = kind


def content() -> str:
    """The file."""
    numbers = [f"0x{number:X}," for number in starts()]
    lines = [
        " ".join(numbers[start : start + _PER_LINE]) for start in range(0, len(numbers), _PER_LINE)
    ]
    return "\n".join(
        [
            f"// Unicode {unicodedata.unidata_version}. Written by tools/write_character_kinds.py.",
            "// Where a run of one kind begins: its first code point << 2 | the kind.",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    print(content(), end="")
