"""The interface of an engine: it runs steps of a compiled graph over rows of a cache that it owns.

The session decides what to run; an engine runs it. The cache has `max_batch` slots of `capacity`
entries, one for each row, and stays where it is: bound once, written in place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Protocol

import numpy as np

from pl_compile.runtime.sampling import Draw
from pl_compile.shapes import Float32, Int64, Shape

PromptRows = Annotated[Float32, Shape("virtual hidden")]
PrefixKv = Annotated[Float32, Shape("layers 2 kv_heads prefix head_dim")]
Logits = Annotated[Float32, Shape("batch vocab")]
# One number for each row of a step.
OfRows = Annotated[Int64, Shape("batch")]


# Tokens of a row that are computed together: enough for matrix products at full speed.
PIECE = 256


class Prompt(Protocol):
    """The prompt of a task, as an engine needs it.

    Attributes:
        rows: float32 `[virtual, hidden]`; `virtual` is 0 where prefix tuning learned the task.
        prefix_kv: float32 `[layers, 2, kv_heads, prefix, head_dim]`, the keys (as the attention
            uses them: rotated where the base rotates) and values of the row's first positions,
            learned or folded; None if it has no prefix.
        task_id: its number among the tasks; a graph with baked prompts is given it.
    """

    @property
    def rows(self) -> PromptRows:
        """float32 `[virtual, hidden]`."""

    @property
    def prefix_kv(self) -> PrefixKv | None:
        """float32 `[layers, 2, kv_heads, prefix, head_dim]`, or None."""

    @property
    def task_id(self) -> int:
        """Its number in a graph with baked prompts."""


def prefix_length(prompt: Prompt) -> int:
    """Cache entries that `Engine.admit` fills for a row."""
    return 0 if prompt.prefix_kv is None else prompt.prefix_kv.shape[3]


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


class Engine(Protocol):
    """Runs steps.

    Attributes:
        capacity: cache entries of a slot: virtual and real tokens, given and generated.
        vocab: ids that the base knows; `vocab + r` stands for row `r` of a prompt.
        max_batch: slots of the cache.
        candidates: how many of the likeliest tokens the graph chooses from; 0 if it cannot choose.
        sampling_inputs: the numbers of `config.sampling` that its choice takes.
    """

    capacity: int
    vocab: int
    max_batch: int
    candidates: int
    sampling_inputs: tuple[str, ...]

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

    def keep(self, slots: Sequence[int], entries: int) -> None:
        """Makes slot `slots[i]` of the cache slot `i`; after that the other slots are free.

        Args:
            slots: in ascending order; a slot that is named more than once is copied.
            entries: how many entries of each slot are kept; what follows them is dropped.
        """

    def clear(self, slots: Sequence[int]) -> None:
        """Sets slots of the cache to zero: a NaN left there would spoil later slots.

        Attention over a whole cache multiplies what follows a row's own entries by 0, and 0 times
        NaN is NaN.
        """

    def cached(self, slot: int, length: int) -> PrefixKv:
        """A slot's first `length` entries: float32 `[layers, 2, kv_heads, length, head_dim]`.

        They have the form of a prompt's `prefix_kv`.
        """

    def close(self) -> None:
        """Frees what is not freed with the object itself. Calling it once is enough."""
