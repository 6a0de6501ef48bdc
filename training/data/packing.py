"""Lays the rows of a micro-batch end to end, without padding; tokens that rows share stand once.

In: training sequences. Out: a `PackedBatch`: one line of tokens for everything that works token by
token, and a description of which tokens attend to which. Rows of a task begin with the same tokens:
virtual tokens, and the fixed text up to the first field. In a causal model, later tokens cannot
change what these tokens compute. So this common start of a task's rows stands in the line once, and
all the rows attend to it. The loss and its gradient are those of the padded batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pl_compile.training.data.dataset import TrainingSequence

# They stay on the CPU: reading them from a GPU would wait for it.
_ON_CPU = ("virtual_rows", "tasks")


@dataclass(frozen=True)
class Span:
    """Neighbouring tokens of the line: `start` to `start + length - 1`."""

    start: int
    length: int


@dataclass(frozen=True)
class Group:
    """The rows of one task.

    Attributes:
        task: its number.
        common: the tokens that all its rows begin with; may be empty.
        rows: the other tokens of each row. They attend to their row, to the common tokens, and to
            the task's learned prefix where there is one.
    """

    task: int
    common: Span
    rows: tuple[Span, ...]


@dataclass(frozen=True)
class PackedBatch:
    """A micro-batch as one line of tokens.

    Attributes:
        token_ids: int64 `[tokens]`; 0 where virtual.
        virtual_rows: int64 `[tokens]`; the row of the task's prompt, -1 where the token is real.
            Always on the CPU, where it is used.
        tasks: int64 `[tokens]`; likewise.
        positions: int64 `[tokens]`; a learned prefix takes the first ones.
        groups: which tokens attend to which.
        loss_at: int64 `[targets]`; the place in the line that predicts each target.
        targets: int64 `[targets]`; token ids.
        target_tasks: int64 `[targets]`.
    """

    token_ids: Tensor
    virtual_rows: Tensor
    tasks: Tensor
    positions: Tensor
    groups: tuple[Group, ...]
    loss_at: Tensor
    targets: Tensor
    target_tasks: Tensor

    def to(self, device: torch.device) -> "PackedBatch":
        """The batch with the tensors that the base computes with on another device."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name not in _ON_CPU
        }
        return replace(self, **moved)


def pack(sequences: Sequence[TrainingSequence], *, learned_prefix: bool = False) -> PackedBatch:
    """One micro-batch.

    Args:
        sequences: its rows.
        learned_prefix: whether the virtual tokens at the start of each row are learned keys and
            values, and so not in the line. Then no token predicts the first real token.
    """
    line = _Line()
    groups = []
    for task in sorted({sequence.task for sequence in sequences}):
        rows = [_Row(sequence, learned_prefix) for sequence in sequences if sequence.task == task]
        groups.append(line.add(task, rows))
    return line.batch(tuple(groups))


class _Row:
    """A sequence without its learned prefix."""

    def __init__(self, sequence: TrainingSequence, learned_prefix: bool) -> None:
        virtual = sequence.rendered.virtual_rows
        learned = np.flatnonzero((virtual >= 0) & learned_prefix)
        self.first = len(learned)  # position
        start = int(learned[-1]) + 1 if self.first else 0  # a BOS before the prefix is a part of it
        self.ids = sequence.rendered.token_ids[start:]
        self.virtual = virtual[start:]
        self.in_loss = sequence.in_loss[start:]

    def __len__(self) -> int:
        return len(self.ids)


class _Line:
    """Tokens laid end to end."""

    def __init__(self) -> None:
        self._length = 0
        self._tokens: list[tuple[NDArray[np.int64], ...]] = []
        self._losses: list[tuple[NDArray[np.int64], ...]] = []

    def add(self, task: int, rows: Sequence[_Row]) -> Group:
        """Appends the common tokens of a task's rows, and then the rest of each row."""
        shared = _common_start(rows)
        common = self._append(task, rows[0], 0, shared)
        spans = []
        for row in rows:
            span = self._append(task, row, shared, len(row))
            wanted = np.flatnonzero(row.in_loss[1:])  # the token after it is a target
            place = np.where(wanted < shared, common.start, span.start - shared) + wanted
            self._losses.append((place, row.ids[wanted + 1], np.full_like(place, task)))
            spans.append(span)
        return Group(task, common, tuple(spans))

    def _append(self, task: int, row: _Row, start: int, end: int) -> Span:
        span = Span(self._length, end - start)
        positions = np.arange(row.first + start, row.first + end)
        tasks = np.full_like(positions, task)
        self._tokens.append((row.ids[start:end], row.virtual[start:end], tasks, positions))
        self._length += span.length
        return span

    def batch(self, groups: tuple[Group, ...]) -> PackedBatch:
        """The whole line as tensors."""
        ids, virtual, tasks, positions = map(_joined, zip(*self._tokens, strict=True))
        loss_at, targets, target_tasks = map(_joined, zip(*self._losses, strict=True))
        return PackedBatch(ids, virtual, tasks, positions, groups, loss_at, targets, target_tasks)


def _joined(parts: Sequence[NDArray[np.int64]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _common_start(rows: Sequence[_Row]) -> int:
    """How many tokens all rows begin with, except the last of a row; 0 for a single row."""
    if len(rows) == 1:
        return 0
    length = min(map(len, rows)) - 1
    same = np.ones(length, bool)
    for row in rows[1:]:
        same &= row.ids[:length] == rows[0].ids[:length]
        same &= row.virtual[:length] == rows[0].virtual[:length]
    return length if same.all() else int(same.argmin())
