"""A batch: rows in the slots of an engine. Each is admitted, fed and retired at its own time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from pl_compile.runtime.engines.engine import Engine, OfRows, Prompt, Step
from pl_compile.runtime.sampling import Draw
from pl_compile.shapes import Float32, Int64, Shape

Ids = Annotated[Int64, Shape("seq")]


@dataclass(frozen=True, eq=False)
class Output:
    """What the engine gives for a row after the tokens that it was fed.

    Attributes:
        logits: float32 `[vocab]`; valid until the row is fed again.
        token: the next token, if the graph was asked to choose it; else None.
    """

    logits: Annotated[Float32, Shape("vocab")]
    token: int | None

    @property
    def is_finite(self) -> bool:
        """Whether all logits are numbers; if not, any token could seem the likeliest."""
        return bool(np.isfinite(self.logits.max()))  # NaN if one of them is NaN


@dataclass
class _Held:
    """What a slot holds."""

    prompt: Prompt
    entries: int


class Batch:
    """Rows that step together on an engine.

    A row is admitted, fed and retired whatever the others do. Its output is the same as if it were
    alone, to the last bit where the engine's kernels allow it (docs/compiling.md). The cache of an
    engine belongs to one batch at a time.

    Args:
        engine: what runs the steps.
    """

    def __init__(self, engine: Engine) -> None:
        self.max_batch = engine.max_batch
        self._engine = engine
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
        held = self._engine.admit(slot, prompt)
        self._held[slot] = _Held(prompt, held if entries is None else entries)

    def feed(
        self, ids: Mapping[int, Ids], draws: Mapping[int, Draw | None] | None = None
    ) -> dict[int, Output]:
        """Feeds tokens to rows, after those that they hold. Other rows stay as they are.

        Args:
            ids: by slot, int64 `[seq]`, at least one; `vocab + r` stands for row `r` of the prompt.
                Together with what the slot holds they must fit into the engine's capacity. A prompt
                may come in several pieces, one feed each.
            draws: by slot, how the graph chooses the next token; left out where it need not.

        Returns:
            By slot, what follows the last of the tokens.
        """
        outputs: dict[int, Output] = {}
        lengths = {slot: len(given) for slot, given in sorted(ids.items())}
        entries = {slot: self._held[slot].entries for slot in lengths}
        for slots in slots_of_steps(lengths, entries, self._engine.capacity):
            outputs |= self._step(slots, ids, draws or {})
        return outputs

    def _step(
        self, slots: range, ids: Mapping[int, Ids], draws: Mapping[int, Draw | None]
    ) -> dict[int, Output]:
        held = [self._held[slot] for slot in slots]
        padded, lengths = pad_right([ids[slot] for slot in slots])
        step = Step(
            first=slots.start,
            input_ids=padded,
            past_lengths=np.asarray([each.entries for each in held], np.int64),
            last_index=lengths - 1,
            prompts=[each.prompt for each in held],
            draws=[draws.get(slot) for slot in slots],
        )
        logits, tokens = self._engine.step(step)
        for each, length in zip(held, lengths.tolist(), strict=True):
            each.entries += length
        chosen = [
            None if draw is None or tokens is None else int(tokens[index])
            for index, draw in enumerate(step.draws)
        ]
        return {slot: Output(*each) for slot, *each in zip(slots, logits, chosen, strict=True)}

    def keep(self, slots: Sequence[int], entries: int | None = None) -> None:
        """Moves the row of slot `slots[i]` to slot `i`; after that the other slots are free.

        Args:
            slots: in ascending order; the row of one that is named more than once is copied.
            entries: most entries of each row that are kept; all of them if None.
        """
        held = [self._held[slot] for slot in slots]
        kept = [each.entries if entries is None else min(entries, each.entries) for each in held]
        self._engine.keep(slots, max(kept))
        pairs = enumerate(zip(held, kept, strict=True))
        self._held = {slot: _Held(each.prompt, count) for slot, (each, count) in pairs}

    @property
    def slots(self) -> list[int]:
        """Those in use."""
        return list(self._held)

    @property
    def entries(self) -> int:
        """Entries of the cache that hold a token of a row."""
        return sum(held.entries for held in list(self._held.values()))

    def retire(self, slots: Iterable[int]) -> None:
        """Makes slots free. What they hold stays in the cache until it is overwritten."""
        for slot in slots:
            del self._held[slot]

    def clear(self, slots: Sequence[int]) -> None:
        """Sets slots to zero whose numbers are not finite, so that they reach no later row.

        After that they must be retired: nothing else can be done with their rows.
        """
        self._engine.clear(slots)


def pad_right(rows: Sequence[Ids]) -> tuple[Annotated[Int64, Shape("batch longest")], OfRows]:
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
