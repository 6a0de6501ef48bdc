"""The text of an answer as its tokens arrive: whole characters, no stop text, no outer blanks.

What is handed out is never taken back, so text is held while it may turn out to be the start of a
stop text or blanks at the end.
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
        places = [self._held.find(stop) for stop in self._stops]
        found = [place for place in places if place >= 0]
        if found:
            self._held = self._held[: min(found)]
            self.stopped = True
            return self.finish()
        return self._give(len(self._held) - self._uncertain())

    def finish(self) -> str:
        """What was held, once nothing can follow."""
        return self._give(len(self._held.rstrip(" ")))

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
