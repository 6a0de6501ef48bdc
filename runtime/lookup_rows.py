"""Requests whose next tokens are looked up in what was read and written before.

Prompt lookup decoding (A. Saxena, 2023; with a reference text, arXiv:2304.04487): where the last
tokens stood before, those that followed there are the draft. It costs no model. Answers that repeat
their prompt (summaries, edits, quotes) take fewer steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pl_compile.runtime.draft_rows import DraftRow
from pl_compile.runtime.requests import Event
from pl_compile.runtime.step_costs import StepCosts
from pl_compile.runtime.stepping import Output

# Lengths of the sequences that are looked up: a longer one that is found is the better guess.
_LENGTHS = (3, 2)
_MOST = 12


class Lookup:
    """Sequences of tokens, and where each of them stood last.

    Args:
        tokens: those to begin with.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}  # of what follows the sequence
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Takes more tokens. A sequence is known once something follows it."""
        for token in tokens:
            end = len(self._tokens)
            for length in _LENGTHS:
                if end >= length:
                    self._places[tuple(self._tokens[-length:])] = end
            self._tokens.append(token)

    def following(self, most: int) -> list[int]:
        """What followed the last tokens where they stood before; the longest sequence counts."""
        for length in _LENGTHS:
            place = self._places.get(tuple(self._tokens[-length:]))
            if place is not None:
                return self._tokens[place : place + most]
        return []


@dataclass(eq=False)
class LookupRow(DraftRow):
    """Writes an answer that is open, and drafts what stood before.

    It drafts as many tokens as seem to save time: by how many guesses of this row were right, and
    by what steps cost. Guesses that are not fed count, too: they are compared with what comes.

    Attributes:
        costs: what steps cost.
    """

    costs: StepCosts = field(default_factory=StepCosts)

    def __post_init__(self) -> None:
        """Begins with the tokens of the prompt."""
        super().__post_init__()
        self._lookup = Lookup(self.seen)
        self._known = len(self.seen)
        self._guess: int | None = None  # the next token, if it was guessed
        self._right, self._guessed = 1, 2

    def choose(self, output: Output) -> Event:
        """Takes the next token, and compares it with the guess. See `Row.advance`."""
        event = super().choose(output)
        if self._guess is not None and self.token_ids:
            self._guessed += 1
            self._right += self.token_ids[-1] == self._guess
        self._guess = None
        return event

    def propose(self, most: int) -> list[int]:
        """What followed the last tokens before. See `DraftRow.propose`."""
        if self.request.sampling.no_repeat_ngram:
            return []  # it may not be repeated
        self._lookup.extend(self.seen[self._known :])
        self._known = len(self.seen)
        found = self._lookup.following(min(most, _MOST))
        self._guess = found[0] if found else None
        return found[: self._worthwhile]

    def note(self, drafted: int, taken: int) -> None:
        """Counts the guesses after the first, which `choose` counts."""
        self._right += max(0, taken - 1)
        self._guessed += max(0, min(taken + 1, drafted) - 1)

    @property
    def _worthwhile(self) -> int:
        """The draft with the most tokens for a step's cost; 0 where it would lose."""
        chance = self._right / self._guessed
        cost = self.costs.of_token
        best, most, expected, probability = 0, 1.0, 1.0, 1.0
        for count in range(1, _MOST + 1):
            probability *= chance
            expected += probability
            gain = expected / (1 + count * cost)
            if gain > most:
                best, most = count, gain
        return best
