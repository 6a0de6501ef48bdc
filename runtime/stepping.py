"""A batch: rows of an engine's cache. Each is admitted, fed and retired at its own time."""

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
    """What a row of the cache holds."""

    prompt: Prompt
    entries: int


class Batch:
    """Rows that step together on an engine.

    A row is admitted, fed and retired whatever the others do. Its output is the same as if it were
    alone, to the last bit. The cache of an engine belongs to one batch at a time.

    Args:
        engine: what runs the steps.
    """

    def __init__(self, engine: Engine) -> None:
        self.max_batch = engine.max_batch
        self._engine = engine
        self._rows: dict[int, _Held] = {}

    def admit(self, row: int, prompt: Prompt, entries: int | None = None) -> None:
        """Begins a row with a prompt's prefix.

        Args:
            row: one that is free.
            prompt: of the row's task.
            entries: how many of the prefix's positions it begins with; all of them if None. Fewer
                where the prefix is the whole prompt: a step needs a token, so the last one is fed.
        """
        assert row not in self._rows
        held = self._engine.admit(row, prompt)
        self._rows[row] = _Held(prompt, held if entries is None else entries)

    def feed(
        self, ids: Mapping[int, Ids], draws: Mapping[int, Draw | None] | None = None
    ) -> dict[int, Output]:
        """Feeds tokens to rows, after those that they hold. Other rows stay as they are.

        Args:
            ids: for each row int64 `[seq]`, at least one; `vocab + r` stands for row `r` of its
                prompt. Together with what the row holds they must fit into the engine's capacity. A
                prompt may come in several pieces, one feed each.
            draws: how the graph chooses a row's next token; left out for rows where it need not.
        """
        outputs: dict[int, Output] = {}
        lengths = {row: len(given) for row, given in sorted(ids.items())}
        held = {row: self._rows[row].entries for row in lengths}
        for rows in rows_of_steps(lengths, held, self._engine.capacity):
            outputs |= self._step(rows, ids, draws or {})
        return outputs

    def _step(
        self, rows: range, ids: Mapping[int, Ids], draws: Mapping[int, Draw | None]
    ) -> dict[int, Output]:
        held = [self._rows[row] for row in rows]
        padded, lengths = pad_right([ids[row] for row in rows])
        step = Step(
            first=rows.start,
            input_ids=padded,
            past_lengths=np.asarray([each.entries for each in held], np.int64),
            last_index=lengths - 1,
            prompts=[each.prompt for each in held],
            draws=[draws.get(row) for row in rows],
        )
        logits, tokens = self._engine.step(step)
        for each, length in zip(held, lengths.tolist(), strict=True):
            each.entries += length
        chosen = [
            None if draw is None or tokens is None else int(tokens[index])
            for index, draw in enumerate(step.draws)
        ]
        return {row: Output(*each) for row, *each in zip(rows, logits, chosen, strict=True)}

    def keep(self, rows: Sequence[int], entries: int | None = None) -> None:
        """Makes row `rows[i]` row `i`; after that the other rows are free.

        Args:
            rows: in ascending order; a row that is named more than once is copied.
            entries: most entries of each row that are kept; all of them if None.
        """
        held = [self._rows[row] for row in rows]
        kept = [each.entries if entries is None else min(entries, each.entries) for each in held]
        self._engine.keep(rows, max(kept))
        pairs = enumerate(zip(held, kept, strict=True))
        self._rows = {row: _Held(each.prompt, count) for row, (each, count) in pairs}

    @property
    def rows(self) -> list[int]:
        """The rows that are in use."""
        return list(self._rows)

    def retire(self, rows: Iterable[int]) -> None:
        """Makes rows free. What they hold stays in the cache until it is overwritten."""
        for row in rows:
            del self._rows[row]

    def clear(self, rows: Sequence[int]) -> None:
        """Sets rows whose numbers are not finite to zero, so that they reach no later row.

        After that they must be retired: nothing else can be done with them.
        """
        self._engine.clear(rows)


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


def rows_of_steps(
    lengths: Mapping[int, int], held: Mapping[int, int], capacity: int
) -> list[range]:
    """Which rows share a step: as many neighbours as possible.

    A step writes as many entries to each of its rows as the longest has tokens. So a long row and a
    row that holds much may have to step apart, though each of them fits. And rows of one token do
    not step with rows of several: they would be padded to as many tokens, and cost as much.

    Args:
        lengths: tokens of each row, by row in ascending order.
        held: entries that each row holds before; together with its length at most `capacity`.
        capacity: cache entries of a row.
    """
    steps: list[range] = []
    longest = fullest = 0
    for row, length in lengths.items():
        longest, fullest = max(longest, length), max(fullest, held[row])
        joins = bool(steps) and row == steps[-1].stop
        alike = joins and (lengths[steps[-1].start] == 1) == (length == 1)
        if alike and longest + fullest <= capacity:
            steps[-1] = range(steps[-1].start, row + 1)
        else:
            steps.append(range(row, row + 1))
            longest, fullest = length, held[row]
    return steps
