"""The text of an answer as its tokens arrive: no stop text, no outer blanks.

In one piece it is what decoding the tokens at once gives, up to the first stop text, without blanks
(U+0020) at both ends. What is handed out is never taken back, so text is held while a later token
may change it, or while it may turn out to be the start of a stop text or blanks at the end.
"""

from collections.abc import Sequence

from pl_compile.text.tokenizer import Tokenizer


class AnswerText:
    """Collects tokens into text.

    Args:
        tokenizer: the base's.
        stops: texts that end the answer.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._stream = tokenizer.stream()
        self._stops = tuple(stops)
        # Tokens in which a stop text may stand: four for a character, and some to both sides.
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
        # A later token may change what is pending, but a stop text in it ends the answer here. All
        # that is pending, which may be the whole answer, is looked at only where there may be one.
        recent = self._held + self._stream.pending(self._recent) if self._stops else ""
        if any(stop in recent for stop in self._stops) and self._ends_in(
            self._held + self._stream.pending()
        ):
            return self.finish()
        return self._give(len(self._held) - self._uncertain())

    def finish(self) -> str:
        """What was held, once nothing can follow."""
        if not self.stopped:
            self._held += self._stream.finish()
            self._ends_in(self._held)
        return self._give(len(self._held.rstrip(" ")))

    def _ends_in(self, text: str) -> bool:
        """Whether a stop text is in a text; then what stands before it is all that is held."""
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
        """Length of the held text's longest end that may open a stop text or be outer blanks."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        certain = self._held[: len(self._held) - longest]
        return longest + len(certain) - len(certain.rstrip(" "))
