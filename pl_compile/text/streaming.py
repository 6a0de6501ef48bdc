"""Turns ids into text as they arrive. The whole text equals that of decoding all ids at once.

Text that was handed out is never taken back. So only text that no later token can change is handed
out. The decoder of the tokenizer says which text that is:

- `ByteLevel` turns tokens into bytes, and the bytes into text: all but an unfinished character is
  certain.
- Most others write each token by itself. Only byte tokens (`<0xF0>`) wait for each other: if the
  bytes of a run are not UTF-8, the whole run becomes U+FFFD. A run is certain once it has ended.
- A decoder may change text far back (a pattern over several tokens, say). Then nothing is certain
  before the end.

The cost of a token does not grow with the answer.
"""

import codecs
import json
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HfTokenizer

# These write each token by itself; at most they treat the first one differently.
_BY_TOKEN = {"Replace", "ByteFallback", "Strip", "Metaspace", "WordPiece"}


class TextStream(Protocol):
    """Ids in, text out."""

    def push(self, token_id: int) -> str:
        """The text that `token_id` makes certain; often empty."""

    def peek(self, token_id: int) -> str:
        """The text that was not handed out yet, if `token_id` were the last token.

        Nothing changes. An unfinished character may be left out.
        """

    def pending(self, last: int | None = None) -> str:
        """The text that would follow if no more tokens came; it is not handed out yet.

        An unfinished character at its end is left out.

        Args:
            last: look only at this many of the latest waiting tokens; None for all. A small number
                costs little, but tokens before them might change how they are written.
        """

    def finish(self) -> str:
        """The rest, after the last token. An unfinished character becomes U+FFFD."""


def open_stream(tokenizer: "HfTokenizer", left_out: Collection[int]) -> TextStream:
    """A stream of a tokenizer.

    Args:
        tokenizer: its decoder is read once.
        left_out: ids that are not text.
    """
    chain = decoders_of(tokenizer)

    def token_of(token_id: int) -> str | None:
        return None if token_id in left_out else tokenizer.id_to_token(token_id)

    def decode(ids: list[int]) -> str:
        text: str = tokenizer.decode(ids, skip_special_tokens=False)
        return text

    if [part["type"] for part in chain] == ["ByteLevel"]:
        return _Bytes(token_of)
    kinds = [part["type"] for part in chain]
    waits = _never
    if not _is_local(chain):
        waits = _always
    elif "ByteFallback" in kinds:
        waits = _is_byte
    strips = "Strip" in kinds[_fused(kinds) :]
    return _Windows(token_of, decode, waits=waits, strips=strips)


def decoders_of(tokenizer: "HfTokenizer") -> list[dict[str, Any]]:
    """The decoders of a tokenizer in their order, as the file has them; empty if it has none.

    Raises:
        ValueError: one of them is a `Strip` at the end of texts. On a short text the library
            aborts there ("slice index"), and the error cannot be caught.
    """
    if tokenizer.decoder is None:
        return []
    chain = list(_flat(json.loads(tokenizer.decoder.__getstate__())))
    if any(part["type"] == "Strip" and part["stop"] for part in chain):
        raise ValueError("a decoder that strips the end of texts ('Strip' with 'stop')")
    return chain


def _flat(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        yield decoder
    for part in decoder.get("decoders", ()):
        yield from _flat(part)


def _always(token: str) -> bool:
    return True


def _never(token: str) -> bool:
    return False


def _is_byte(token: str) -> bool:
    return token.startswith("<0x") and token.endswith(">")


def _is_local(chain: list[dict[str, Any]]) -> bool:
    """Whether each token only adds text, which does not depend on tokens far back."""
    kinds = [part["type"] for part in chain]
    fused = _fused(kinds)
    return set(kinds[:fused]) <= _BY_TOKEN and all(map(_is_local_in_text, chain[fused:]))


def _fused(kinds: list[str]) -> int:
    """The place of the decoder that joins the tokens; those after it are given the whole text."""
    return kinds.index("Fuse") if "Fuse" in kinds else len(kinds)


def _is_local_in_text(part: dict[str, Any]) -> bool:
    """Whether a decoder that is given the whole text changes nothing but its start."""
    if part["type"] == "Replace":
        return len(part["pattern"].get("String", "")) == 1
    return part["type"] in ("Fuse", "Strip")  # a `Strip` of the end was refused: `decoders_of`


class _Bytes:
    """For byte-level tokenizers."""

    def __init__(self, token_of: Callable[[int], str | None]) -> None:
        self._token_of = token_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        token = self._token_of(token_id) or ""
        try:
            data = bytes(_BYTES[character] for character in token)
        except KeyError:  # a token that was added as text
            data = token.encode()
        return self._decoder.decode(data)

    def peek(self, token_id: int) -> str:
        state = self._decoder.getstate()
        text = self.push(token_id)
        self._decoder.setstate(state)
        return text

    def pending(self, last: int | None = None) -> str:
        return ""  # what waits is an unfinished character

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _Windows:
    """For tokenizers that write each token by itself, except those that `waits` names.

    A window of the latest tokens is decoded with and without the new ones: the difference is the
    new text. The window is needed since a decoder writes the start of a text differently.
    """

    def __init__(
        self,
        token_of: Callable[[int], str | None],
        decode: Callable[[list[int]], str],
        *,
        waits: Callable[[str], bool],
        strips: bool,
    ) -> None:
        """Where the decoder `strips` the whole text, a window has text of its own."""
        self._token_of, self._decode, self._waits, self._strips = token_of, decode, waits, strips
        self._ids: list[int] = []  # the window, and the new tokens
        self._new = 0  # where the new ones start
        self._next = 0  # where the next window starts
        self._given = 0  # length of the window's text

    def push(self, token_id: int) -> str:
        token = self._token_of(token_id)
        if token is None:
            return ""
        self._ids.append(token_id)
        return "" if self._waits(token) else self._taken()

    def peek(self, token_id: int) -> str:
        if self._token_of(token_id) is None:
            return self._rest()
        self._ids.append(token_id)
        text = self._rest()
        self._ids.pop()
        return text

    def pending(self, last: int | None = None) -> str:
        if last is None or last >= len(self._ids) - self._new:
            return self._rest().rstrip("\ufffd")
        start = len(self._ids) - last
        # A window never starts inside a character: at most three of its bytes continue it.
        places = range(start, max(start - 4, self._new - 1), -1)
        start = next((place for place in places if not self._continues(place)), start)
        return self._decode(self._ids[start:]).rstrip("\ufffd")

    def _continues(self, place: int) -> bool:
        """Whether the token there is a byte that continues a character."""
        token = self._token_of(self._ids[place]) or ""
        return _is_byte(token) and token[3] in "89AB"

    def finish(self) -> str:
        return self._taken()

    def _taken(self) -> str:
        """The text of the new tokens. They become the window of those that follow."""
        piece = self._rest()
        later = self._decode(self._ids[self._next :])
        if later or not self._strips:
            self._ids = self._ids[self._next :]
            self._next, self._given = len(self._ids), len(later)
        else:
            self._given += len(piece)
        self._new = len(self._ids)
        return piece

    def _rest(self) -> str:
        return self._decode(self._ids)[self._given :] if self._new < len(self._ids) else ""


def _byte_level_alphabet() -> dict[str, int]:
    """How byte-level tokenizers write bytes (GPT-2's table): printable ones as themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + place): byte for place, byte in enumerate(others)},
    }


_BYTES = _byte_level_alphabet()
