"""One engine made of several: ranks that each hold a part of the base and step together.

A rank may be an engine in this process, or a process of its own (`local_group.py`), as tensor
parallelism needs it: sums over ranks are made inside of the graphs, while all ranks run. What a
rank is given differs in one thing: of a prefix, it gets its own heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from pl_compile.config.contract import GraphContract
from pl_compile.config.ranks import kv_heads_of_ranks
from pl_compile.runtime.engines.engine import Float32, Int64, Prompt, Step, prefix_length

# Prompts that are remembered, here and by each rank: a prefix is sent once, not for each row.
REMEMBERED = 32


@dataclass(frozen=True)
class RankPrompt:
    """A prompt as one rank gets it.

    Attributes:
        rows: as in `Prompt`; none where nothing asks for them.
        prefix_kv: as in `Prompt`, with the rank's own heads; None in a step: that reads none.
        task_id: as in `Prompt`.
    """

    rows: Float32
    prefix_kv: Float32 | None
    task_id: int


class Rank(Protocol):
    """One rank: calls of a method of its engine, begun on all ranks before any is waited for."""

    def begin(self, method: str, *arguments: Any) -> None:
        """Begins a call."""

    def result(self) -> Any:
        """Waits for the call that was begun."""


class RankedEngine:
    """An engine on several ranks.

    Args:
        ranks: in their order.
        contract: of the whole base, with its number of ranks.
        max_batch: rows of each rank's cache.
    """

    def __init__(self, ranks: Sequence[Rank], contract: GraphContract, max_batch: int) -> None:
        assert len(ranks) == contract.ranks
        self.capacity = contract.capacity
        self.vocab = contract.vocab
        self.candidates = contract.candidates
        self.sampling_inputs = contract.sampling_inputs
        self.max_batch = max_batch
        self._ranks = list(ranks)
        self._heads = kv_heads_of_ranks(contract.kv_heads, contract.ranks)
        self._parts: dict[int, tuple[Prompt, list[RankPrompt]]] = {}

    def admit(self, row: int, prompt: Prompt) -> int:
        """See `Engine.admit`."""
        if prompt.prefix_kv is not None:
            self._each([("admit", row, part) for part in self._divided(prompt, prompt.prefix_kv)])
        return prefix_length(prompt)

    def step(self, step: Step) -> tuple[Float32, Int64 | None]:
        """See `Engine.step`; the results of all ranks are the same."""
        logits, tokens = self._each(self._step_calls(step), first_only=True)[0]
        return logits, tokens

    def step_on_each(self, step: Step) -> list[Float32]:
        """As `step`, with the logits of every rank: for those who compare them."""
        return [logits.copy() for logits, _ in self._each(self._step_calls(step))]

    def keep(self, rows: Sequence[int], entries: int) -> None:
        """See `Engine.keep`."""
        self._each([("keep", list(rows), entries)] * len(self._ranks))

    def clear(self, rows: Sequence[int]) -> None:
        """See `Engine.clear`."""
        self._each([("clear", list(rows))] * len(self._ranks))

    def cached(self, row: int, length: int) -> Float32:
        """See `Engine.cached`: the heads of all ranks."""
        parts = self._each([("cached", row, length)] * len(self._ranks))
        return np.concatenate(parts, axis=2)

    def close(self) -> None:
        """Nothing: ranks in this process hold memory, which goes with them."""

    def _step_calls(self, step: Step) -> list[tuple[Any, ...]]:
        """The same step for all ranks, with as much of its prompts as it reads."""
        asked_for = (step.input_ids >= self.vocab).any()
        # One object for each prompt: rows of one task bring it to a process once.
        read = {
            key: RankPrompt(each.rows if asked_for else each.rows[:0], None, each.task_id)
            for key, each in {id(each): each for each in step.prompts}.items()
        }
        prompts = [read[id(prompt)] for prompt in step.prompts]
        return [("step", replace(step, prompts=prompts))] * len(self._ranks)

    def _divided(self, prompt: Prompt, prefix: Float32) -> list[RankPrompt]:
        """The part of each rank; the same objects for the same prompt, while it is remembered."""
        if id(prompt) not in self._parts:
            if len(self._parts) == REMEMBERED:
                self._parts.clear()
            heads = [prefix[:, :, heads.start : heads.stop] for heads in self._heads]
            none = prompt.rows[:0]  # a row is begun with its prefix alone
            self._parts[id(prompt)] = (
                prompt,
                [RankPrompt(none, np.ascontiguousarray(own), prompt.task_id) for own in heads],
            )
        return self._parts[id(prompt)][1]

    def _each(self, calls: Sequence[tuple[Any, ...]], *, first_only: bool = False) -> list[Any]:
        """Makes a call on every rank; all results, or the first rank's where only it is asked."""
        for rank, (method, *arguments) in zip(self._ranks, calls, strict=True):
            rank.begin(method, *arguments)
        return [rank.result() for rank in self._ranks]
