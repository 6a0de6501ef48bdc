"""The face of an engine: one step of a compiled graph over rows of a cache that it owns.

The session decides what to run; an engine runs it. The cache has `capacity` entries for each of up
to `max_batch` rows and stays where it is: bound once, written in place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pl_compile.runtime.sampling import Draw

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]


class Prompt(Protocol):
    """The prompt of a task, as an engine needs it.

    Attributes:
        rows: float32 `[virtual, hidden]`; none where prefix tuning learned the task.
        prefix_kv: float32 `[layers, 2, kv_heads, prefix, head_dim]`, the keys (as the attention
            uses them: rotated where the base rotates) and values of the row's first positions,
            learned or folded; None where there are none.
        task_id: its number where prompts are baked into the graph, else 0.
    """

    @property
    def rows(self) -> Float32:
        """float32 `[virtual, hidden]`."""

    @property
    def prefix_kv(self) -> Float32 | None:
        """float32 `[layers, 2, kv_heads, prefix, head_dim]`, or None."""

    @property
    def task_id(self) -> int:
        """Its number in a graph with baked prompts."""


def prefix_length(prompt: Prompt) -> int:
    """Cache entries that `Engine.admit` fills for a row."""
    return 0 if prompt.prefix_kv is None else prompt.prefix_kv.shape[3]


@dataclass(frozen=True, eq=False)
class Step:
    """Tokens of neighbouring rows of the cache, which are computed together.

    Attributes:
        first: the row of the cache that is the step's first; the others follow it.
        input_ids: int64 `[batch, seq]`, right-padded; `vocab + r` stands for row `r` of a prompt.
        past_lengths: int64 `[batch]`: valid cache entries of each row before the step.
        last_index: int64 `[batch]`: each row's last real token in `input_ids`.
        prompts: of each row's task.
        draws: how the graph chooses each row's next token; None where nobody asks it to. A draw
            has at most the engine's `candidates` as its `top_k`.
    """

    first: int
    input_ids: Int64
    past_lengths: Int64
    last_index: Int64
    prompts: Sequence[Prompt]
    draws: Sequence[Draw | None]

    def fits(self, capacity: int, max_batch: int) -> bool:
        """Whether all that the step writes, padding included, has its place in the cache."""
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

    def pieces(self, size: int) -> Iterator["Step"]:
        """A step of one row in parts of at most `size` tokens, each after the one before."""
        for start in range(0, self.input_ids.shape[1], size):
            ids = self.input_ids[:, start : start + size]
            past, last = self.past_lengths + start, np.asarray([ids.shape[1] - 1])
            yield replace(self, input_ids=ids, past_lengths=past, last_index=last)


class Engine(Protocol):
    """Runs steps.

    Attributes:
        capacity: cache entries of a row: virtual and real tokens, given and generated.
        vocab: ids the base knows; `vocab + r` stands for row `r` of a prompt.
        max_batch: rows of the cache.
        candidates: the likeliest tokens among which the graph can choose the next one; 0 where it
            cannot.
        sampling_inputs: the numbers of `config.sampling` by which it chooses.
    """

    capacity: int
    vocab: int
    max_batch: int
    candidates: int
    sampling_inputs: tuple[str, ...]

    def admit(self, row: int, prompt: Prompt) -> int:
        """Begins a row anew: places the prompt's prefix at its start. Other rows stay as they are.

        Args:
            row: of the cache.
            prompt: of the row's task.

        Returns:
            Valid cache entries of the row: the length of the prefix.
        """

    def step(self, step: Step) -> tuple[Float32, Int64 | None]:
        """Runs one step over rows that were admitted.

        No row may be written beyond its cache, padding included: `step.fits`.

        Returns:
            Logits after each row's last real token, float32 `[batch, vocab]`, and the tokens that
            the graph chose, int64 `[batch]`; None where it cannot choose. Both are valid until the
            next step of these rows.
        """

    def keep(self, rows: Sequence[int], entries: int) -> None:
        """Makes row `rows[i]` of the cache row `i`; the other rows are free afterwards.

        Args:
            rows: in ascending order; one that stands there more than once is copied.
            entries: how many of each row's are kept; what follows them is dropped.
        """

    def clear(self, rows: Sequence[int]) -> None:
        """Sets rows of the cache to zero: what is no number there would reach rows that come after.

        Attention over a whole cache weighs what follows a row's own entries with 0, and 0 times NaN
        is NaN.
        """

    def cached(self, row: int, length: int) -> Float32:
        """A row's first `length` entries: float32 `[layers, 2, kv_heads, length, head_dim]`.

        As a prompt's `prefix_kv` takes them.
        """

    def close(self) -> None:
        """Gives back what is not given back with the object alone; once is enough."""
