"""Sequences to micro-batches: which ones together, in which order, padded how.

The order is a pure function of seed and epoch, so a resumed run finds its place from the step
number alone. Rows of a micro-batch have nearly equal lengths: padding is work for nothing.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pl_compile.training.data.dataset import TrainingSequence

# Sorting within a window of this many micro-batches removes most padding and keeps batches mixed.
_WINDOW = 16


@dataclass(frozen=True)
class MicroBatch:
    """Right-padded rows.

    Attributes:
        token_ids: int64 `[batch, seq]`; 0 where virtual or padding.
        virtual_rows: int64 `[batch, seq]`; -1 where the token is real or padding.
        tasks: int64 `[batch]`.
        targets: int64 `[batch, seq]`; the next token where it is in the loss, -1 elsewhere.
    """

    token_ids: Tensor
    virtual_rows: Tensor
    tasks: Tensor
    targets: Tensor


def collate(rows: Sequence[TrainingSequence]) -> MicroBatch:
    """One micro-batch of `rows`, padded on the right.

    Right padding needs no attention mask: in a causal model nothing real can see what follows it.
    """
    longest = max(len(row) for row in rows)
    ids = np.zeros((len(rows), longest), np.int64)
    virtual = np.full_like(ids, -1)
    targets = np.full_like(ids, -1)
    for index, row in enumerate(rows):
        n = len(row)
        ids[index, :n] = row.rendered.token_ids
        virtual[index, :n] = row.rendered.virtual_rows
        next_ids = row.rendered.token_ids[1:]
        targets[index, : n - 1] = np.where(row.in_loss[1:], next_ids, -1)
    return MicroBatch(
        torch.from_numpy(ids),
        torch.from_numpy(virtual),
        torch.tensor([row.task for row in rows]),
        torch.from_numpy(targets),
    )


@dataclass(frozen=True)
class BatchPlan:
    """The order of a run.

    Attributes:
        lengths: tokens of each sequence.
        global_batch_size: sequences per step.
        micro_batch_size: sequences per micro-batch.
        seed: of the shuffles.
    """

    lengths: tuple[int, ...]
    global_batch_size: int
    micro_batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in one pass; the rest is dropped, another rest each time."""
        return len(self.lengths) // self.global_batch_size

    def step(self, step: int) -> list[list[int]]:
        """The micro-batches of step `step` (from 0), as indices of sequences."""
        epoch, place = divmod(step, self.steps_per_epoch)
        micro = self._epoch(epoch)
        per_step = self.global_batch_size // self.micro_batch_size
        return micro[place * per_step : (place + 1) * per_step]

    def _epoch(self, epoch: int) -> list[list[int]]:
        shuffle = random.Random(f"{self.seed}/{epoch}")
        order = list(range(len(self.lengths)))
        shuffle.shuffle(order)
        order = order[: self.steps_per_epoch * self.global_batch_size]
        window = _WINDOW * self.micro_batch_size
        batches: list[list[int]] = []
        for start in range(0, len(order), window):
            near = sorted(order[start : start + window], key=lambda index: self.lengths[index])
            batches += [
                near[i : i + self.micro_batch_size]
                for i in range(0, len(near), self.micro_batch_size)
            ]
        shuffle.shuffle(batches)
        return batches


def in_length_order(
    sequences: Sequence[TrainingSequence], batch_size: int
) -> list[list[TrainingSequence]]:
    """All sequences, shortest first, in batches: the order of validation, where order is free."""
    ordered = sorted(sequences, key=len)
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
