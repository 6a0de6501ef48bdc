"""The processes that train together: one alone, or those that `torchrun` started.

Data parallel processes hold the same prompts and the same base, take turns at the micro-batches of
a step, and add up their gradients: only what is trained is ever sent. Tensor parallel processes
hold a part of each layer between them (`parallel.py`) and do everything else alike.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """A process among its fellows.

    Attributes:
        rank: of the process, from 0.
        data_rank: its place among the data parallel ones.
        data_size: how many of these there are.
        group: torch's group of data parallel processes; None alone.
    """

    rank: int = 0
    data_rank: int = 0
    data_size: int = 1
    group: Any = None

    @property
    def leads(self) -> bool:
        """Whether this process talks, logs and writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items that this process works on."""
        return items[self.data_rank :: self.data_size]

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its sum over the data parallel processes."""
        if self.data_size == 1:
            return
        for tensor in tensors:
            torch.distributed.all_reduce(tensor, group=self.group)

    def any(self, here: bool) -> bool:
        """Whether something is so in any of the data parallel processes."""
        flag = torch.tensor([float(here)])
        self.add_up([flag])
        return bool(flag.item() > 0)


ALONE = Team()
