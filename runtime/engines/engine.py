"""The interface of an engine: it computes tokens of rows, whose keys and values it keeps.

The session decides what to run; an engine runs it. Rows are in slots, each at its own place of its
own text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np

from pl_compile.runtime.sampling import Draw
from pl_compile.shapes import Float32, Int64, Shape

PromptRows = Annotated[Float32, Shape("virtual hidden")]
PrefixKv = Annotated[Float32, Shape("layers 2 kv_heads prefix head_dim")]
Logits = Annotated[Float32, Shape("outputs vocab")]

# `Feed.looked_at` of a row whose logits nobody looks at.
NO_TOKENS = np.zeros(0, np.int64)


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
    """Entries that a row begins with: see `Rows.admit`."""
    return 0 if prompt.prefix_kv is None else prompt.prefix_kv.shape[3]


@dataclass(frozen=True, eq=False)
class Feed:
    """Tokens that a row is fed in a step.

    Attributes:
        slot: of the row.
        ids: int64 `[seq]`, at least one; `vocab + r` stands for row `r` of the prompt.
        past: valid entries of the row before the step; together with `ids` at most the capacity.
        prompt: of the row's task.
        draw: how the graph chooses the next token; None where it need not. Its `top_k` is at most
            the engine's `candidates`.
        wanted: int64 `[outputs]`, ascending: the tokens after which logits are computed, as places
            in `ids`; None for the last one.
        parents: int64 `[seq]`: for each token the one of `ids` that it follows, which stands before
            it; -1 for the row's last entry. None where each follows the one before. Branches are
            computed as if each were alone; none is kept after the step.
        looked_at: int64 `[tokens]`: the tokens of the vocabulary whose logits are looked at; the
            logits of others may be minus infinity. None for all.
    """

    slot: int
    ids: Annotated[Int64, Shape("seq")]
    past: int
    prompt: Prompt
    draw: Draw | None = None
    wanted: Annotated[Int64, Shape("outputs")] | None = None
    parents: Annotated[Int64, Shape("seq")] | None = None
    looked_at: Annotated[Int64, Shape("tokens")] | None = None


# Logits after each wanted token of a feed, float32 `[outputs, vocab]`, and the token that the graph
# chose after the last one; None where it chose none. Both are valid until the next step.
Fed = tuple[Logits, int | None]


@dataclass(frozen=True)
class Shared:
    """What rows have shared of the beginnings of their prompts.

    Attributes:
        entries: that are kept while no row uses them.
        most: how many such entries may be kept; the least recently used ones leave.
        entry_bytes: memory of one.
        hits: rows that began with entries of other rows.
        tokens: of their prompts that were not computed for that.
        evicted: entries that left for others.
    """

    entries: int
    most: int
    entry_bytes: int
    hits: int
    tokens: int
    evicted: int


class Rows(Protocol):
    """The rows of an engine. Whatever one of them does, the others stay as they are.

    Attributes:
        shared: what they have shared; None where they share nothing.
    """

    @property
    def shared(self) -> Shared | None:
        """What they have shared; None where they share nothing."""

    def admit(self, slot: int, prompt: Prompt) -> int:
        """Begins a row with the prefix of its prompt.

        Args:
            slot: one without a row, below the engine's `max_batch`.
            prompt: of the task of the row.

        Returns:
            Valid entries of the row: the length of the prefix.
        """

    def share(self, slot: int, ids: Annotated[Int64, Shape("seq")]) -> int:
        """Begins a prompt with entries that other rows have computed, where rows share them.

        It may be called again before the row is fed: others may have computed more by then.

        Args:
            slot: of a row that was fed nothing.
            ids: int64 `[seq]`, at least one: all that the row is to be fed of its prompt, from the
                end of its prefix on. What it is fed later must be the rest of this.

        Returns:
            How many of `ids` the row holds, fewer than all: a step needs a token. The bits of the
            entries are those that the row would compute.
        """

    def alike(self, slot: int, other: int) -> bool:
        """Whether a prompt had better wait for the end of another: it could share most of it then.

        Args:
            slot: of a row that `share` was called for, and that was fed nothing.
            other: of another one that it was called for.
        """

    def step(self, feeds: Sequence[Feed]) -> list[Fed]:
        """Computes tokens of some rows, one feed for each, in the order of `feeds`."""

    def clear(self, slots: Sequence[int]) -> None:
        """Sets entries of rows to zero whose numbers are not finite, before they are retired.

        What is left of a row stays in memory, and attention may multiply it by 0, which NaN
        survives.
        """

    def retire(self, slots: Sequence[int]) -> None:
        """Ends rows: their slots are free."""

    def cached(self, slot: int, length: int) -> PrefixKv:
        """A row's first `length` entries: float32 `[layers, 2, kv_heads, length, head_dim]`.

        They have the form of a prompt's `prefix_kv`.
        """


class Engine(Protocol):
    """Runs steps.

    Attributes:
        capacity: most entries of a row: virtual and real tokens, given and generated.
        vocab: ids that the base knows; `vocab + r` stands for row `r` of a prompt.
        max_batch: most rows at once.
        candidates: how many of the likeliest tokens the graph chooses from; 0 if it cannot choose.
        sampling_inputs: the numbers of `config.sampling` that its choice takes.
        piece: tokens of a prompt that are best computed together: enough for matrix products at
            full speed. Where sums depend on how a prompt is cut, all prompts are cut so.
        branches: whether a feed may have `parents`.
    """

    capacity: int
    vocab: int
    max_batch: int
    candidates: int
    sampling_inputs: tuple[str, ...]
    piece: int
    branches: bool

    def rows(self) -> Rows:
        """Its rows, none of which holds anything. Those that it gave before are done with."""

    def close(self) -> None:
        """Frees what is not freed with the object itself. Calling it once is enough."""
