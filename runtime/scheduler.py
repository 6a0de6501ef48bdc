"""From a queue to slots: which request is admitted where, and which rows step together.

It knows no engine and no numbers: a request may be any object of the caller's.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Turn(Generic[T]):
    """What happens next, in this order.

    Attributes:
        admitted: requests that leave the queue, by the free slots that they take.
        kept: slots whose rows are moved to lie side by side: slot `kept[i]` becomes slot `i`; None
            where all stay.
        stepping: the requests that step, by their slots after the move.
    """

    admitted: dict[int, T]
    kept: list[int] | None
    stepping: dict[int, T]


class Scheduler(Generic[T]):
    """Gives requests slots, in their order.

    The next request takes a free slot at once. New requests first step without the others, each
    with its whole prompt. After that they have one token a step, as the others have, and all step
    together. When no request waits for a free slot, the rows are moved side by side, since only
    neighbours share a step.

    Args:
        waiting: the queue.
        slots: how many there are.
    """

    def __init__(self, waiting: Iterable[T], slots: int) -> None:
        self._waiting = deque(waiting)
        self._slots = slots
        self._running: dict[int, T] = {}

    def turn(self) -> Turn[T] | None:
        """The next turn; None when all are finished."""
        admitted = {slot: self._waiting.popleft() for slot in self._free()[: len(self._waiting)]}
        running = dict(sorted((self._running | admitted).items()))
        if not running:
            return None
        self._running = dict(enumerate(running.values()))
        kept = None if list(running) == list(self._running) else list(running)
        # New requests took the lowest free slots, so they are not moved.
        return Turn(admitted, kept, admitted or dict(self._running))

    def _free(self) -> list[int]:
        return [slot for slot in range(self._slots) if slot not in self._running]

    def finish(self, slots: Iterable[int]) -> None:
        """Makes slots free."""
        for slot in slots:
            del self._running[slot]
