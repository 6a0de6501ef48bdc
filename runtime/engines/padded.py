"""Engines whose steps take rows in neighbouring slots, padded to the same length.

Such an engine has a cache with `max_batch` slots of `capacity` entries, one for each row, which
stays where it is: bound once, written in place. `PaddedRows` makes rows of them that do not care
where they lie.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Protocol

import numpy as np

from pl_compile.runtime.engines.engine import Fed, Feed, Logits, PrefixKv, Prompt
from pl_compile.runtime.sampling import Draw
from pl_compile.shapes import Int64, Shape

# One number for each row of a step.
OfRows = Annotated[Int64, Shape("batch")]

# Tokens of a row that are computed together: enough for matrix products at full speed.
PIECE = 256


@dataclass(frozen=True, eq=False)
class Step:
    """Tokens of rows in neighbouring slots of the cache, which are computed together.

    Attributes:
        first: the slot of the step's first row; the others follow it.
        input_ids: int64 `[batch, seq]`, right-padded; `vocab + r` stands for row `r` of a prompt.
        past_lengths: int64 `[batch]`: valid cache entries of each row before the step.
        last_index: int64 `[batch]`: each row's last real token in `input_ids`.
        prompts: one for each row: that of its task.
        draws: how the graph chooses each row's next token; None for a row where it need not. A
            draw's `top_k` is at most the engine's `candidates`.
    """

    first: int
    input_ids: Annotated[Int64, Shape("batch seq")]
    past_lengths: OfRows
    last_index: OfRows
    prompts: Sequence[Prompt]
    draws: Sequence[Draw | None]

    def fits(self, capacity: int, max_batch: int) -> bool:
        """Whether all that the step writes, padding included, fits into the cache."""
        batch, seq = self.input_ids.shape
        fullest = int(self.past_lengths.max())
        return bool(self.first + batch <= max_batch and fullest + seq <= capacity)

    def row(self, index: int) -> "Step":
        """One of its rows, without padding."""
        one = slice(index, index + 1)
        return Step(
            self.first + index,
            self.input_ids[one, : self.last_index[index] + 1],
            self.past_lengths[one],
            self.last_index[one],
            self.prompts[one],
            self.draws[one],
        )

    def runs(self, piece: int = PIECE) -> Iterator["Step"]:
        """The step in parts without padding.

        Rows of one token each are one part. Rows of several tokens come one by one, in pieces of at
        most `piece` tokens: for a token, nothing after its piece is computed.
        """
        if self.input_ids.shape[1] == 1:
            yield self
            return
        for index in range(len(self.input_ids)):
            yield from self.row(index)._pieces(piece)

    def _pieces(self, size: int) -> Iterator["Step"]:
        """A step of one row in parts of at most `size` tokens, each after the one before."""
        for start in range(0, self.input_ids.shape[1], size):
            ids = self.input_ids[:, start : start + size]
            past, last = self.past_lengths + start, np.asarray([ids.shape[1] - 1])
            yield replace(self, input_ids=ids, past_lengths=past, last_index=last)


class PaddedEngine(Protocol):
    """An engine that runs padded steps; its attributes are those of `Engine`."""

    capacity: int
    vocab: int
    max_batch: int
    candidates: int
    sampling_inputs: tuple[str, ...]
    piece: int = PIECE
    branches: bool = False

    def admit(self, slot: int, prompt: Prompt) -> int:
        """Begins a slot anew with the prompt's prefix at its start. Other slots stay as they are.

        Args:
            slot: of the cache.
            prompt: of the task of the row that takes it.

        Returns:
            Valid cache entries of the slot: the length of the prefix.
        """

    def step(self, step: Step) -> tuple[Logits, OfRows | None]:
        """Runs one step over rows that were admitted.

        No row may be written beyond its cache, padding included: `step.fits`.

        Returns:
            Logits after each row's last real token, float32 `[batch, vocab]`, and the tokens that
            the graph chose, int64 `[batch]`; None where it cannot choose. Both are valid until the
            next step of these rows.
        """

    def copy(self, source: int, target: int, entries: int) -> None:
        """Copies the first entries of a slot over those of another one."""

    def clear(self, slots: Sequence[int]) -> None:
        """Sets slots of the cache to zero: see `Rows.clear`."""

    def cached(self, slot: int, length: int) -> PrefixKv:
        """A slot's first `length` entries: see `Rows.cached`."""

    def close(self) -> None:
        """See `Engine.close`."""

    def rows(self) -> "PaddedRows":
        """See `Engine.rows`."""
        return PaddedRows(self)


class PaddedRows:
    """Rows on a padded engine: the `Rows` of it.

    Rows that step together must be neighbours, so each has a place among the slots of the cache,
    and the last rows move into gaps before a step.

    Args:
        engine: none of its slots is in use.
    """

    def __init__(self, engine: PaddedEngine) -> None:
        self._engine = engine
        self._places: dict[int, int] = {}  # by slot
        self._entries: dict[int, int] = {}  # by slot

    def admit(self, slot: int, prompt: Prompt) -> int:
        """See `Rows.admit`."""
        self._entries[slot] = held = self._engine.admit(self._take(slot), prompt)
        return held

    @property
    def shared(self) -> None:
        """None: each row has a place of its own for all its entries."""
        return None

    def share(self, slot: int, ids: Annotated[Int64, Shape("seq")]) -> int:
        """See `Rows.share`: nothing."""
        return 0

    def alike(self, slot: int, other: int) -> bool:
        """See `Rows.alike`: they share nothing."""
        return False

    def _take(self, slot: int) -> int:
        """The lowest place that is free, for a row."""
        assert slot not in self._places
        used = set(self._places.values())
        self._places[slot] = next(place for place in range(len(used) + 1) if place not in used)
        return self._places[slot]

    def step(self, feeds: Sequence[Feed]) -> list[Fed]:
        """See `Rows.step`."""
        self._close_gaps()
        for feed in feeds:
            assert feed.parents is None
            self._entries[feed.slot] = feed.past + len(feed.ids)
        plain = {self._places[feed.slot]: feed for feed in feeds if feed.wanted is None}
        found = self._together(dict(sorted(plain.items())))
        for feed in feeds:
            if feed.wanted is not None:
                found[self._places[feed.slot]] = self._one_by_one(feed, feed.wanted)
        return [found[self._places[feed.slot]] for feed in feeds]

    def _together(self, feeds: Mapping[int, Feed]) -> dict[int, Fed]:
        """Feeds by place, in ascending order, in as few steps as they allow."""
        lengths = {place: len(feed.ids) for place, feed in feeds.items()}
        held = {place: feed.past for place, feed in feeds.items()}
        found: dict[int, Fed] = {}
        for places in slots_of_steps(lengths, held, self._engine.capacity):
            group = [feeds[place] for place in places]
            padded, sizes = pad_right([feed.ids for feed in group])
            logits, tokens = self._engine.step(
                Step(
                    first=places.start,
                    input_ids=padded,
                    past_lengths=np.asarray([feed.past for feed in group], np.int64),
                    last_index=sizes - 1,
                    prompts=[feed.prompt for feed in group],
                    draws=[feed.draw for feed in group],
                )
            )
            for index, (place, feed) in enumerate(zip(places, group, strict=True)):
                chosen = None if feed.draw is None or tokens is None else int(tokens[index])
                found[place] = logits[index : index + 1], chosen
        return found

    def _one_by_one(self, feed: Feed, wanted: Annotated[Int64, Shape("outputs")]) -> Fed:
        """A feed with several outputs: a step up to each of them, and one for what follows."""
        place, begin, logits = self._places[feed.slot], 0, []
        for end in (wanted + 1).tolist():
            part = replace(feed, ids=feed.ids[begin:end], past=feed.past + begin, wanted=None)
            found, chosen = self._together({place: part})[place]
            logits.append(found.copy())
            begin = end
        if begin < len(feed.ids):
            rest = replace(feed, ids=feed.ids[begin:], past=feed.past + begin, wanted=None)
            self._together({place: rest})
        return np.concatenate(logits), chosen

    def _close_gaps(self) -> None:
        """Moves the last rows into places that are free before them."""
        by_place = {place: slot for slot, place in self._places.items()}
        for gap in range(len(by_place)):
            if gap not in by_place:
                last = max(by_place)
                slot = by_place[gap] = by_place.pop(last)
                self._engine.copy(last, gap, self._entries[slot])
                self._places[slot] = gap

    def clear(self, slots: Sequence[int]) -> None:
        """See `Rows.clear`."""
        self._engine.clear([self._places[slot] for slot in slots])

    def retire(self, slots: Sequence[int]) -> None:
        """See `Rows.retire`."""
        for slot in slots:
            del self._places[slot], self._entries[slot]

    def cached(self, slot: int, length: int) -> PrefixKv:
        """See `Rows.cached`."""
        return self._engine.cached(self._places[slot], length)


def pad_right(
    rows: Sequence[Annotated[Int64, Shape("seq")]],
) -> tuple[Annotated[Int64, Shape("batch longest")], OfRows]:
    """Rows padded with 0 on the right, and their lengths.

    Args:
        rows: int64 `[seq]` each, at least one.

    Returns:
        int64 `[batch, longest]` and int64 `[batch]`.
    """
    lengths = np.asarray([len(row) for row in rows], np.int64)
    padded = np.zeros((len(rows), int(lengths.max())), np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded, lengths


def slots_of_steps(
    lengths: Mapping[int, int], held: Mapping[int, int], capacity: int
) -> list[range]:
    """Which rows share a step: as many neighbours as possible.

    A step writes as many entries to each of its slots as the longest row has tokens. So a long row
    and a row that holds much may have to step apart, though each of them fits. And rows of one
    token do not step with rows of several: they would be padded to as many tokens, and cost as
    much.

    Args:
        lengths: tokens of each row, by slot in ascending order.
        held: entries that each slot holds before; together with its length at most `capacity`.
        capacity: cache entries of a slot.
    """
    steps: list[range] = []
    longest = fullest = 0
    for slot, length in lengths.items():
        longest, fullest = max(longest, length), max(fullest, held[slot])
        joins = bool(steps) and slot == steps[-1].stop
        alike = joins and (lengths[steps[-1].start] == 1) == (length == 1)
        if alike and longest + fullest <= capacity:
            steps[-1] = range(steps[-1].start, slot + 1)
        else:
            steps.append(range(slot, slot + 1))
            longest, fullest = length, held[slot]
    return steps
