"""Rows that guess their next tokens, and look in one step at how far the guess holds.

A row feeds its last token and a draft of those that may follow. The logits after each of them come
in one step. The row then chooses token by token, as it always does. While a token is the one of the
draft, the logits after it are there already. Where it differs, the rest of the draft is forgotten.
So the answer is the same, to the last bit, where an engine gives tokens that come together the bits
that each has alone (`Engine.branches`): elsewhere nothing is drafted.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from pl_compile.runtime.requests import Event
from pl_compile.runtime.rows import Row, RowFeed
from pl_compile.runtime.sampling import Draw
from pl_compile.runtime.stepping import Output


class DraftRow(Row, ABC):
    """A row that drafts what `propose` says."""

    def __post_init__(self) -> None:
        """Begins without a draft."""
        super().__post_init__()
        self._draft: list[int] = []  # to be fed
        self._tried: list[int] = []  # fed in this step
        self._kept: int | None = None  # entries that stay before the next tokens; None for all

    @abstractmethod
    def propose(self, most: int) -> list[int]:
        """The tokens that may follow the answer so far.

        Args:
            most: how many are of use; at least 1.
        """

    def note(self, drafted: int, taken: int) -> None:
        """Learns how many tokens of a draft were chosen."""

    @property
    def left(self) -> int:
        """How many tokens were not fed, those of the draft included."""
        return super().left + len(self._draft)

    def take(self, count: int) -> RowFeed:
        """The next tokens to feed; a draft goes with the last ones. See `Row.take`."""
        self._tried, self._draft = self._draft, []
        feed = super().take(count - len(self._tried))
        if self._tried:
            ids = np.concatenate([feed.ids, np.asarray(self._tried, np.int64)])
            feed = RowFeed(ids, np.arange(len(feed.ids) - 1, len(ids)))
        kept, self._kept = self._kept, None
        return feed if kept is None else replace(feed, after=kept)

    def draw(self, candidates: int, inputs: Collection[str]) -> Draw | None:
        """None after a draft: the graph chooses after the last token only. See `Row.draw`."""
        return None if self._tried else super().draw(candidates, inputs)

    def has_numbers(self, output: Output) -> bool:
        """Whether the logits after the tokens that were chosen are finite.

        The rest of the draft may be nothing that the base was made for.
        """
        return Output(output.after[:1], None).is_finite

    def advance(self, output: Output) -> Event:
        """Chooses tokens as long as their logits are there. See `Row.advance`."""
        draft, self._tried = self._tried, []
        begin, taken = len(self.token_ids), 0
        event = self.choose(replace(output, after=output.after[:1]))
        texts = [event.text]
        while True:
            written = self.token_ids[begin + taken :]
            same = _alike(written, draft[taken:])
            taken += same
            if same < len(written) or not self.is_live:
                break
            after = Output(output.after[taken : taken + 1], None)
            if not after.is_finite:
                taken -= 1  # the token is fed again, alone, and its row fails as any would
                break
            event = self.choose(after)
            texts.append(event.text)
        self._settle(draft, taken)
        return replace(event, text="".join(texts))

    def choose(self, output: Output) -> Event:
        """Takes the next token: see `Row.advance`."""
        return super().advance(output)

    def _settle(self, draft: Sequence[int], taken: int) -> None:
        """Keeps the part of a draft that was chosen, and drafts anew."""
        self._fed += taken
        if taken < len(draft):
            self._kept = self.held + self._fed
        if draft:
            self.note(len(draft), taken)
        most = self.limit - len(self.token_ids) - 1
        is_greedy = self.request.sampling.temperature == 0.0
        if self.branches and is_greedy and self.is_live and most > 0:
            self._draft = self.propose(most)


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
