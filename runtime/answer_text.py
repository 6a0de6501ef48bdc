"""The text of an answer as its tokens arrive, without stop text and outer blanks.

All pieces together are what decoding the tokens at once gives, up to the first stop text, without
blanks (U+0020) at both ends. A piece that was handed out is never taken back. So text is held while
a later token may change it, or while it may be the start of a stop text or blanks at the end.
"""

from collections.abc import Sequence
from typing import Protocol

from pl_compile.text.streaming import TextStream


class HasStream(Protocol):
    """What tokens become text by: a tokenizer, or the field that an answer is copied from."""

    def stream(self) -> TextStream:
        """A decoder for ids that arrive one by one."""


class AnswerText:
    """Collects tokens into text.

    Args:
        source: the base's tokenizer, or what an answer is copied from.
        stops: texts that end the answer.
    """

    def __init__(self, source: HasStream, stops: Sequence[str]) -> None:
        self._stream = source.stream()
        self._stops = tuple(stops)
        # A stop text lies in at most so many tokens: four for a character, and some on both sides.
        self._recent = 4 * max(map(len, stops), default=0) + 8
        self._given = ""
        self._held = ""
        self.stopped = False

    @property
    def text(self) -> str:
        """The answer so far, without what is held."""
        return self._given

    def push(self, token_id: int) -> str:
        """The text that a token makes certain."""
        self._held += self._stream.push(token_id)
        # A later token may change the pending text, but a stop text in it ends the answer here. The
        # pending text may be the whole answer, so it is searched only where a stop text is
        # possible.
        recent = self._held + self._stream.pending(self._recent) if self._stops else ""
        if any(stop in recent for stop in self._stops) and self._cut_at_stop(
            self._held + self._stream.pending()
        ):
            return self.finish()
        return self._give(len(self._held) - self._uncertain())

    def finish(self) -> str:
        """The text that was held. Call it when no more tokens come."""
        if not self.stopped:
            self._held += self._stream.finish()
            self._cut_at_stop(self._held)
        return self._give(len(self._held.rstrip(" ")))

    def _cut_at_stop(self, text: str) -> bool:
        """Holds the part of a text before its first stop text, and notes that the answer stopped.

        Returns:
            Whether there is a stop text.
        """
        places = [text.find(stop) for stop in self._stops]
        found = [place for place in places if place >= 0]
        if found:
            self._held = text[: min(found)]
            self.stopped = True
        return self.stopped

    def _give(self, length: int) -> str:
        piece, self._held = self._held[:length], self._held[length:]
        if not self._given:
            piece = piece.lstrip(" ")
        self._given += piece
        return piece

    def _uncertain(self) -> int:
        """Length of the held text's longest end that may begin a stop text or be outer blanks."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        certain = self._held[: len(self._held) - longest]
        return longest + len(certain) - len(certain.rstrip(" "))
