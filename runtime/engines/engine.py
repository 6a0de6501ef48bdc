"""The face of an engine: one step of a compiled graph over the first rows of a cache it owns.

The session decides what to run; an engine runs it. The cache has `capacity` entries for each of up
to `max_batch` rows and stays where it is: bound once, written in place.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pl_compile.runtime.sampling import Draw

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]


class Engine(Protocol):
    """Runs steps.

    Attributes:
        capacity: cache entries of a row: virtual and real tokens, given and generated.
        vocab: ids the base knows; `vocab + r` stands for row `r` of a prompt.
        max_batch: rows that can step together.
    """

    capacity: int
    vocab: int
    max_batch: int

    def start(self, prompts: Sequence["Prompt"]) -> Int64:
        """Begins a batch: places each row's prefix at the head of its cache.

        Args:
            prompts: the prompt of each row's task; row `i` of the cache is that of `prompts[i]`.

        Returns:
            Valid cache entries of each row, int64 `[batch]`: the `past_lengths` of the first step.
        """

    def step(
        self,
        input_ids: Int64,
        past_lengths: Int64,
        last_index: Int64,
        prompts: Sequence["Prompt"],
    ) -> Float32:
        """Runs one step over the first `batch` rows of the cache, which `start` has begun.

        No row may be written beyond its cache, padding included: `past_lengths[i] + seq` is at most
        `capacity`.

        Args:
            input_ids: int64 `[batch, seq]`, right-padded.
            past_lengths: int64 `[batch]`: valid cache entries of each row before the step.
            last_index: int64 `[batch]`: each row's last real token in `input_ids`.
            prompts: the prompt of each row's task.

        Returns:
            Logits after each row's last real token, float32 `[batch, vocab]`; valid until the next
            step.
        """

    def keep(self, rows: Sequence[int], entries: int) -> None:
        """Makes row `rows[i]` of the cache row `i`; the other rows are free afterwards.

        Args:
            rows: in ascending order; one that stands there more than once is copied.
            entries: how many of each row's are kept; what stands behind them is dropped.
        """

    def clear(self, rows: Sequence[int]) -> None:
        """Sets rows of the cache to zero: what is no number there would reach rows that come after.

        Attention over a whole cache weighs what stands behind a row's own entries with 0, and 0
        times NaN is NaN.
        """

    def cached(self, length: int) -> Float32:
        """The first `length` entries of row 0: float32 `[layers, 2, kv_heads, length, head_dim]`.

        As a prompt's `prefix_kv` takes them.
        """


@runtime_checkable
class DrawingEngine(Engine, Protocol):
    """An engine whose graph may choose the next token too.

    Attributes:
        candidates: the likeliest tokens among which it chooses; 0 where its graph does not sample.
        sampling_inputs: the numbers of `config.sampling` by which it chooses.
    """

    candidates: int
    sampling_inputs: tuple[str, ...]

    def step_and_draw(
        self,
        input_ids: Int64,
        past_lengths: Int64,
        last_index: Int64,
        prompts: Sequence["Prompt"],
        draws: Sequence[Draw],
    ) -> tuple[Float32, Int64]:
        """As `step`, and each row's next token, int64 `[batch]`, chosen by the graph.

        Args:
            input_ids: as in `step`.
            past_lengths: as in `step`.
            last_index: as in `step`.
            prompts: as in `step`.
            draws: of each row, with at most `candidates` as its `top_k`.
        """


@runtime_checkable
class ClosingEngine(Engine, Protocol):
    """An engine that holds more than memory, which is not given back with the object alone."""

    def close(self) -> None:
        """Gives it back; once is enough."""


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
    """Cache entries that `Engine.start` fills for a row."""
    return 0 if prompt.prefix_kv is None else prompt.prefix_kv.shape[3]
