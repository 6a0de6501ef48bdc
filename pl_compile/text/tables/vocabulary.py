"""What the tokens of a vocabulary write, and which of them stand for bytes."""

import re
from collections.abc import Mapping, Sequence
from functools import cache

from pl_compile.errors import TablesError
from pl_compile.text.tables.added_tokens import AddedToken

_BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
_LIKE_BYTE_TOKEN = re.compile(r"<0x[0-9a-fA-F+][0-9a-fA-F]>")  # what the library decodes as a byte


@cache
def byte_alphabet() -> Mapping[str, int]:
    """The byte that each of the 256 characters of ByteLevel stands for (GPT-2).

    A byte whose character in Latin-1 can be seen is that character; the others are those from
    U+0100 on, in ascending order.
    """
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in seen)
    return {chr(byte): byte for byte in seen} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }


def written_by(text: str, *, byte_level: bool) -> bytes:
    """The bytes that the library's decoder makes of a token.

    Args:
        text: what the vocabulary or the list of added tokens calls it.
        byte_level: whether the decoder is ByteLevel: it takes a text for characters that stand for
            bytes where all of them can be, even that of an added token.
    """
    alphabet = byte_alphabet()
    if byte_level and alphabet.keys() >= set(text):
        return bytes(alphabet[character] for character in text)
    return text.encode()


def byte_ids(vocabulary: Mapping[str, int], *, byte_level: bool) -> list[int]:
    """The id of the token for each byte, -1 for a byte without one; [256]."""
    names: Sequence[str] = _BYTE_TOKENS
    if byte_level:
        names = sorted(byte_alphabet(), key=byte_alphabet().__getitem__)
    return [vocabulary.get(name, -1) for name in names]


def check_byte_tokens(
    vocabulary: Mapping[str, int], added: Sequence[AddedToken], *, byte_level: bool
) -> None:
    """Raises `TablesError` where byte_fallback lacks a byte, or has more than one token for it."""
    if byte_level:
        return
    missing = [name for name in _BYTE_TOKENS if name not in vocabulary]
    if missing:
        raise TablesError(f"a BPE with byte_fallback without the token {missing[0]}")
    for text in [*(vocabulary.keys() - set(_BYTE_TOKENS)), *(token.text for token in added)]:
        if _LIKE_BYTE_TOKEN.fullmatch(text):
            raise TablesError(f"the token {text}, which is decoded as a byte, but is none")


def whole_tokens(vocabulary: Mapping[str, int], *, byte_level: bool) -> dict[bytes, int]:
    """The tokens that are looked for by their bytes.

    Byte-level: those that can be a piece (for ignore_merges). Else: the characters.
    """
    if byte_level:
        alphabet = byte_alphabet().keys()
        return {
            written_by(text, byte_level=True): key
            for text, key in vocabulary.items()
            if alphabet >= set(text)
        }
    return {text.encode(): key for text, key in vocabulary.items() if len(text) == 1}
