"""A closed set of answers as token sequences: which tokens may come next."""

from collections.abc import Sequence


class Choices:
    """The answers a row may give.

    Args:
        sequences: token ids of each answer, EOS included where the task has one.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self._open = [tuple(sequence) for sequence in sequences]
        self._written = 0

    def allowed(self) -> list[int]:
        """The tokens that continue an answer; empty once one is complete.

        With EOS in the answers, none is complete while another goes on. Without it the shorter one
        ends there: nothing else could.
        """
        if any(len(sequence) == self._written for sequence in self._open):
            return []
        return sorted({sequence[self._written] for sequence in self._open})

    def push(self, token_id: int) -> None:
        """Keeps the answers that go on with `token_id`."""
        self._open = [
            s for s in self._open if len(s) > self._written and s[self._written] == token_id
        ]
        self._written += 1
