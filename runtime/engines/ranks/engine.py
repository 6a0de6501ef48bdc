"""One engine made of several: ranks that each hold a part of the base and step together.

A rank may be an engine in this process, or a process of its own (`local_group.py`), as tensor
parallelism needs it: sums over ranks are made inside of the graphs, while all ranks run. What a
rank is given differs in one thing: of a prefix, it gets its own heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pl_compile.config.contract import GraphContract
from pl_compile.config.ranks import kv_heads_of_ranks
from pl_compile.runtime.engines.engine import Float32, Int64, Prompt, prefix_length
from pl_compile.runtime.sampling import GREEDY, Draw


@dataclass(frozen=True)
class RankPrompt:
    """A prompt as one rank gets it: `Prompt` with its own heads of the prefix."""

    rows: Float32
    prefix_kv: Float32 | None
    task_id: int

    @classmethod
    def of(cls, prompt: Prompt, heads: range) -> "RankPrompt":
        """The part of a rank that holds these heads."""
        prefix = prompt.prefix_kv
        if prefix is not None:
            prefix = np.ascontiguousarray(prefix[:, :, heads.start : heads.stop])
        return cls(prompt.rows, prefix, prompt.task_id)


class Rank(Protocol):
    """One rank: calls of a method of its engine, begun on all ranks before any is waited for."""

    def begin(self, method: str, *arguments: Any) -> None:
        """Begins a call."""

    def result(self) -> Any:
        """Waits for the call that was begun."""


class RankedEngine:
    """An engine (`DrawingEngine`) on several ranks.

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

    def start(self, prompts: Sequence[Prompt]) -> Int64:
        """See `Engine.start`."""
        self._parts.clear()
        self._each([("start", part) for part in self._divided(prompts)])
        return np.asarray([prefix_length(prompt) for prompt in prompts], np.int64)

    def step(
        self,
        input_ids: Int64,
        past_lengths: Int64,
        last_index: Int64,
        prompts: Sequence[Prompt],
    ) -> Float32:
        """See `Engine.step`."""
        draws = [GREEDY] * len(input_ids)
        return self.step_and_draw(input_ids, past_lengths, last_index, prompts, draws)[0]

    def step_and_draw(
        self,
        input_ids: Int64,
        past_lengths: Int64,
        last_index: Int64,
        prompts: Sequence[Prompt],
        draws: Sequence[Draw],
    ) -> tuple[Float32, Int64]:
        """See `DrawingEngine.step_and_draw`; the results of all ranks are the same."""
        calls = [
            ("step_and_draw", input_ids, past_lengths, last_index, part, list(draws))
            for part in self._divided(prompts)
        ]
        logits, tokens = self._each(calls, first_only=True)[0]
        return logits, tokens

    def keep(self, rows: Sequence[int], entries: int) -> None:
        """See `Engine.keep`."""
        self._each([("keep", list(rows), entries)] * len(self._ranks))

    def clear(self, rows: Sequence[int]) -> None:
        """See `Engine.clear`."""
        self._each([("clear", list(rows))] * len(self._ranks))

    def cached(self, length: int) -> Float32:
        """See `Engine.cached`: the heads of all ranks."""
        parts = self._each([("cached", length)] * len(self._ranks))
        return np.concatenate(parts, axis=2)

    def step_on_each(
        self,
        input_ids: Int64,
        past_lengths: Int64,
        last_index: Int64,
        prompts: Sequence[Prompt],
    ) -> list[Float32]:
        """As `step`, with the logits of every rank: for those who compare them."""
        draws = [GREEDY] * len(input_ids)
        calls = [
            ("step_and_draw", input_ids, past_lengths, last_index, part, draws)
            for part in self._divided(prompts)
        ]
        return [logits.copy() for logits, _ in self._each(calls)]

    def _divided(self, prompts: Sequence[Prompt]) -> list[list[RankPrompt]]:
        """Of each rank, its parts of the prompts; made once for each prompt of a batch."""
        for prompt in prompts:
            if id(prompt) not in self._parts:
                parts = [RankPrompt.of(prompt, heads) for heads in self._heads]
                self._parts[id(prompt)] = (prompt, parts)
        return [
            [self._parts[id(prompt)][1][rank] for prompt in prompts]
            for rank in range(len(self._ranks))
        ]

    def _each(self, calls: Sequence[tuple[Any, ...]], *, first_only: bool = False) -> list[Any]:
        """Makes a call on every rank; all results, or the first rank's where only it is asked."""
        for rank, (method, *arguments) in zip(self._ranks, calls, strict=True):
            rank.begin(method, *arguments)
        return [rank.result() for rank in self._ranks]
