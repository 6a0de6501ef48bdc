"""A batch: rows in slots of an engine. Each is admitted, fed and retired at its own time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np

from pl_compile.runtime.engines.engine import (
    Engine,
    Feed,
    Logits,
    PrefixKv,
    Prompt,
    Shared,
    prefix_length,
)
from pl_compile.runtime.sampling import Draw
from pl_compile.shapes import Float32, Int64, Shape

Ids = Annotated[Int64, Shape("seq")]


@dataclass(frozen=True, eq=False)
class Output:
    """What the engine gives for a row after the tokens that it was fed.

    Attributes:
        after: float32 `[outputs, vocab]`: logits after each token that was asked for; valid until
            the next step of the batch. Those that are not looked at may be minus infinity.
        token: the next token, if the graph was asked to choose it; else None.
    """

    after: Logits
    token: int | None

    @property
    def logits(self) -> Annotated[Float32, Shape("vocab")]:
        """float32 `[vocab]`: after the last token that was asked for."""
        last: Float32 = self.after[-1]
        return last

    @cached_property
    def largest(self) -> int:
        """The token of the largest of `logits`, or of one that is no number. Found once."""
        return int(self.logits.argmax())

    @property
    def is_finite(self) -> bool:
        """Whether all logits are numbers; if not, any token could seem the likeliest.

        Those that were not computed do not matter.
        """
        if len(self.after) == 1:
            return bool(np.isfinite(self.after[0, self.largest]))
        # The place of the largest, or of a NaN: faster than the largest itself.
        return bool(np.isfinite(self.after.flat[self.after.argmax()]))


@dataclass
class _Held:
    """What a slot holds."""

    prompt: Prompt
    begin: int  # entries of the prefix
    entries: int


class Batch:
    """Rows that step together on an engine.

    A row is admitted, fed and retired whatever the others do. Its output is the same as if it were
    alone, to the last bit where the engine's kernels allow it (docs/compiling.md). The rows of an
    engine belong to one batch at a time.

    Args:
        engine: what runs the steps.
    """

    def __init__(self, engine: Engine) -> None:
        self.max_batch = engine.max_batch
        self._rows = engine.rows()
        self._held: dict[int, _Held] = {}  # by slot

    def admit(self, slot: int, prompt: Prompt, entries: int | None = None) -> None:
        """Begins a row with a prompt's prefix.

        Args:
            slot: one that is free.
            prompt: of the row's task.
            entries: how many of the prefix's positions it begins with; all of them if None. Fewer
                where the prefix is the whole prompt: a step needs a token, so the last one is fed.
        """
        assert slot not in self._held
        held = self._rows.admit(slot, prompt)
        begin = held if entries is None else entries
        self._held[slot] = _Held(prompt, begin, begin)

    def share(self, slot: int, ids: Ids) -> int:
        """Begins a row's prompt with entries that other rows have computed: see `Rows.share`.

        Args:
            slot: of a row that was fed nothing.
            ids: int64 `[seq]`: all that it is to be fed of its prompt.

        Returns:
            How many of `ids` it holds already, fewer than all.
        """
        held = self._held[slot]
        if held.begin != prefix_length(held.prompt):
            return 0
        count = self._rows.share(slot, ids)
        held.entries = held.begin + count
        return count

    def alike(self, slot: int, other: int) -> bool:
        """Whether a row had better wait for the end of another's prompt: see `Rows.alike`."""
        return self._rows.alike(slot, other)

    @property
    def shared(self) -> Shared | None:
        """What rows have shared; None where the engine shares nothing. Any thread may ask."""
        return self._rows.shared

    def feed(
        self,
        ids: Mapping[int, Ids],
        draws: Mapping[int, Draw | None] | None = None,
        *,
        wanted: Mapping[int, Annotated[Int64, Shape("_")]] | None = None,
        parents: Mapping[int, Annotated[Int64, Shape("_")]] | None = None,
        looked_at: Mapping[int, Annotated[Int64, Shape("_")] | None] | None = None,
    ) -> dict[int, Output]:
        """Feeds tokens to rows, after those that they hold. Other rows stay as they are.

        Args:
            ids: by slot, int64 `[seq]`, at least one; `vocab + r` stands for row `r` of the prompt.
                Together with what the slot holds they must fit into the engine's capacity. A prompt
                may come in several pieces, one feed each.
            draws: by slot, how the graph chooses the next token; left out where it need not.
            wanted: by slot, as in `Feed`; left out where only the last token's logits are.
            parents: by slot, as in `Feed`; left out where each token follows the one before. Such a
                row holds afterwards what it held before.
            looked_at: by slot, as in `Feed`; left out where all logits may be looked at.

        Returns:
            By slot, what follows the tokens that were asked for.
        """
        draws, wanted, parents = draws or {}, wanted or {}, parents or {}
        looked_at = looked_at or {}
        feeds = [
            Feed(
                slot,
                given,
                self._held[slot].entries,
                self._held[slot].prompt,
                draws.get(slot),
                wanted.get(slot),
                parents.get(slot),
                looked_at.get(slot),
            )
            for slot, given in ids.items()
        ]
        found = self._rows.step(feeds)
        for feed in feeds:
            if feed.parents is None:
                self._held[feed.slot].entries += len(feed.ids)
        return {feed.slot: Output(*each) for feed, each in zip(feeds, found, strict=True)}

    def rewind(self, slot: int, entries: int) -> None:
        """Makes a row forget what follows its first entries."""
        assert entries <= self._held[slot].entries
        self._held[slot].entries = entries

    def cached(self, slot: int, length: int) -> PrefixKv:
        """A row's first `length` entries: float32 `[layers, 2, kv_heads, length, head_dim]`."""
        return self._rows.cached(slot, length)

    @property
    def entries(self) -> dict[int, int]:
        """How many entries each slot in use holds; any thread may ask."""
        return {slot: held.entries for slot, held in list(self._held.items())}

    def retire(self, slots: Iterable[int]) -> None:
        """Makes slots free."""
        slots = list(slots)
        for slot in slots:
            del self._held[slot]
        self._rows.retire(slots)

    def clear(self, slots: Sequence[int]) -> None:
        """Sets slots to zero whose numbers are not finite, so that they reach no later row.

        After that they must be retired: nothing else can be done with their rows.
        """
        self._rows.clear(slots)
