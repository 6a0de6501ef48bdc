"""One engine made of several: ranks that each hold a part of the base and step together.

A rank may be an engine in this process, or a process of its own (`local_group.py`). Tensor
parallelism needs the latter: sums over ranks are made inside the graphs, while all ranks run. All
ranks are given the same, except that each gets only its own attention heads of a prefix.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from pl_compile.config.contract import GraphContract
from pl_compile.config.ranks import kv_heads_of_ranks
from pl_compile.runtime.engines.engine import (
    Logits,
    PrefixKv,
    Prompt,
    PromptRows,
    prefix_length,
)
from pl_compile.runtime.engines.padded import OfRows, PaddedEngine, Step

# How many prompts are remembered, here and by each rank: so a prefix is sent once, not for each
# row.
REMEMBERED = 32


@dataclass(frozen=True)
class RankPrompt:
    """A prompt as one rank gets it.

    Attributes:
        rows: as in `Prompt`; of length 0 where no id needs them.
        prefix_kv: as in `Prompt`, with the rank's own heads; None in a step, which reads no prefix.
        task_id: as in `Prompt`.
    """

    rows: PromptRows
    prefix_kv: PrefixKv | None
    task_id: int


class Rank(Protocol):
    """One rank. A call of its engine is begun on all ranks before any of them is waited for."""

    def begin(self, method: str, *arguments: Any) -> None:
        """Begins a call."""

    def result(self) -> Any:
        """Waits for the call that was begun."""


class RankedEngine(PaddedEngine):
    """An engine on several ranks.

    Args:
        ranks: in their order.
        contract: of the whole base, with its number of ranks.
        max_batch: slots of each rank's cache.
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

    def admit(self, slot: int, prompt: Prompt) -> int:
        """See `PaddedEngine.admit`."""
        if prompt.prefix_kv is not None:
            self._each([("admit", slot, part) for part in self._divided(prompt, prompt.prefix_kv)])
        return prefix_length(prompt)

    def step(self, step: Step) -> tuple[Logits, OfRows | None]:
        """See `PaddedEngine.step`; the results of all ranks are the same."""
        logits, tokens = self._each(self._step_calls(step), first_only=True)[0]
        return logits, tokens

    def step_on_each(self, step: Step) -> list[Logits]:
        """As `step`, but gives the logits of every rank, to compare them."""
        return [logits.copy() for logits, _ in self._each(self._step_calls(step))]

    def copy(self, source: int, target: int, entries: int) -> None:
        """See `PaddedEngine.copy`."""
        self._each([("copy", source, target, entries)] * len(self._ranks))

    def clear(self, slots: Sequence[int]) -> None:
        """See `PaddedEngine.clear`."""
        self._each([("clear", list(slots))] * len(self._ranks))

    def cached(self, slot: int, length: int) -> PrefixKv:
        """See `PaddedEngine.cached`: the heads of all ranks."""
        parts = self._each([("cached", slot, length)] * len(self._ranks))
        return np.concatenate(parts, axis=2)

    def close(self) -> None:
        """Nothing: ranks in this process hold memory, which goes with them."""

    def _step_calls(self, step: Step) -> list[tuple[Any, ...]]:
        """The same step for all ranks, with as much of its prompts as it reads."""
        asked_for = (step.input_ids >= self.vocab).any()
        # One object for each prompt, so that it is sent to a process once for all rows of a task.
        read = {
            key: RankPrompt(each.rows if asked_for else each.rows[:0], None, each.task_id)
            for key, each in {id(each): each for each in step.prompts}.items()
        }
        prompts = [read[id(prompt)] for prompt in step.prompts]
        return [("step", replace(step, prompts=prompts))] * len(self._ranks)

    def _divided(self, prompt: Prompt, prefix: PrefixKv) -> list[RankPrompt]:
        """Each rank's part of a prompt; the same objects again while the prompt is remembered."""
        if id(prompt) not in self._parts:
            if len(self._parts) == REMEMBERED:
                self._parts.clear()
            heads = [prefix[:, :, heads.start : heads.stop] for heads in self._heads]
            none = prompt.rows[:0]  # `admit` needs only the prefix
            self._parts[id(prompt)] = (
                prompt,
                [RankPrompt(none, np.ascontiguousarray(own), prompt.task_id) for own in heads],
            )
        return self._parts[id(prompt)][1]

    def _each(self, calls: Sequence[tuple[Any, ...]], *, first_only: bool = False) -> list[Any]:
        """Makes a call on every rank. Returns all results, or (`first_only`) the first rank's."""
        for rank, (method, *arguments) in zip(self._ranks, calls, strict=True):
            rank.begin(method, *arguments)
        return [rank.result() for rank in self._ranks]
