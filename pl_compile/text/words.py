"""Where the words of a text begin and end: the places at which a span may."""

import unicodedata
from typing import NamedTuple

# Scripts whose words are not set apart by blanks, or carry particles: each letter is a word. Thai,
# Lao; Myanmar; Khmer; kana and their extensions; Han, with its compatibility forms and planes 2 and
# 3; Hangul syllables.
_APART = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7AF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_JOINERS = "\u200c\u200d"


class Word(NamedTuple):
    """A word of a text: the characters from `begin` to before `end`."""

    begin: int
    end: int


def words_of(text: str) -> list[Word]:
    """The words of a text, in order; they do not overlap, and white space is in none.

    A word is a longest run of letters, digits and `_`; or one letter of a script without blanks
    between words; or one other character that is not white space. Marks (Unicode's categories M,
    and joiners) belong to what stands before them.
    """
    words: list[Word] = []
    joins = False  # whether a letter would continue the last word
    for place, character in enumerate(text):
        if character.isspace():
            joins = False
            continue
        touches = bool(words) and words[-1].end == place
        marks = is_mark(character)
        letter = not marks and is_letter(character)
        if touches and (marks or (joins and letter)):
            words[-1] = Word(words[-1].begin, place + 1)
        else:
            words.append(Word(place, place + 1))
            joins = letter
    return words


def is_mark(character: str) -> bool:
    """Whether a character belongs to what stands before it."""
    return character in _JOINERS or unicodedata.category(character)[0] == "M"


def is_letter(character: str) -> bool:
    """Whether a character makes one word with others of its kind."""
    if not (character.isalnum() or character == "_"):
        return False
    code = ord(character)
    return code < _APART[0][0] or not any(first <= code <= last for first, last in _APART)
