"""The order of training: which sequences form a step.

The order is a pure function of seed and epoch, so a resumed run finds its place from the step
number alone. Lengths play no part in it: rows are packed without padding (`packing.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pl_compile.training.data.dataset import TrainingSequence


@dataclass(frozen=True)
class BatchOrder:
    """The order of a run.

    Attributes:
        examples: how many there are.
        global_batch_size: examples per step.
        micro_batch_size: examples per micro-batch.
        seed: of the shuffles.
        shuffle: whether each epoch has its own order; otherwise all have the order of the examples.
    """

    examples: int
    global_batch_size: int
    micro_batch_size: int
    seed: int
    shuffle: bool = True

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in one pass. The rest is dropped; it differs from pass to pass."""
        return self.examples // self.global_batch_size

    def step(self, step: int) -> list[list[int]]:
        """The micro-batches of step `step` (from 0), as indices of examples."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _order(self.examples, self.seed, epoch if self.shuffle else None)
        start = place * self.global_batch_size
        batch: list[int] = order[start : start + self.global_batch_size].tolist()
        size = self.micro_batch_size
        return [batch[i : i + size] for i in range(0, len(batch), size)]


@lru_cache(maxsize=2)
def _order(examples: int, seed: int, epoch: int | None) -> NDArray[np.int64]:
    if epoch is None:
        return np.arange(examples)
    return np.random.default_rng([seed, epoch]).permutation(examples)


def for_validation(
    sequences: Sequence[TrainingSequence], batch_size: int
) -> list[list[TrainingSequence]]:
    """All sequences in batches, sorted by task and length: in validation the order is free."""
    ordered = sorted(sequences, key=lambda sequence: (sequence.task, len(sequence)))
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
