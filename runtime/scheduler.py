"""From a queue to slots: who is admitted where, and what each row is fed next.

It knows no engine and no numbers: a request may be any object of the caller's.
"""

import heapq
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

# Whether the prompt in a slot waits for that in another.
Alike = Callable[[int, int], bool]


def _unlike(slot: int, other: int) -> bool:
    return False


@dataclass(frozen=True)
class Turn(Generic[T]):
    """What happens next.

    Attributes:
        stepping: the requests that step, by their slots.
        tokens: how many tokens each of them is fed, by slot: a piece of its prompt, or what it
            asked for.
    """

    stepping: dict[int, T]
    tokens: dict[int, int]


@dataclass(eq=False)
class _Entry(Generic[T]):
    """A request that waits or runs.

    Attributes:
        request: the caller's.
        place: in the queue: a smaller one comes first.
        unfed: tokens of its prompt that were not fed.
        asked: tokens that it is fed at once, after its prompt.
        slot: that it holds; None while it waits.
        begun: whether it was fed anything.
    """

    request: T
    place: tuple[int, int]
    unfed: int
    asked: int = 1
    slot: int | None = None
    begun: bool = False

    def __lt__(self, other: "_Entry[T]") -> bool:
        return self.place < other.place


class Scheduler(Generic[T]):
    """Gives requests slots, and says what their rows are fed.

    The next request takes a free slot at once: of a higher priority first, then as they came. Its
    prompt is fed in pieces. Each turn, rows whose prompt was fed get what they ask for, and prompts
    share what else a turn may hold, in the order of the queue: so neither keeps the other waiting
    for long. Where fewer rows write than prompts are under way, a turn may hold more of these: more
    rows gain by that than lose.

    Args:
        slots: how many there are.
        piece: most tokens of a prompt that are fed at once. Each piece of a prompt but the last has
            this many, whatever else runs. None: a prompt may be cut anywhere.
        budget: most tokens of prompts in a turn; one piece at least.
        rush: the same where fewer rows write than prompts are under way, if it is more.
    """

    def __init__(self, slots: int, *, piece: int | None, budget: int, rush: int = 0) -> None:
        self._slots, self._piece, self._budget = slots, piece, budget
        self._rush = max(budget, rush)
        self._entries: dict[T, _Entry[T]] = {}
        self._waiting: list[_Entry[T]] = []  # a heap, with some that were withdrawn
        self._running: dict[int, _Entry[T]] = {}
        self._count = 0

    def __len__(self) -> int:
        """How many requests wait or run."""
        return len(self._entries)

    @property
    def running(self) -> int:
        """How many requests hold a slot."""
        return len(self._running)

    def submit(self, request: T, tokens: int, priority: int = 0) -> None:
        """Puts a request into the queue.

        Args:
            request: one that neither waits nor runs.
            tokens: of its prompt that are to be fed; at least one.
            priority: larger ones are admitted first.
        """
        assert request not in self._entries
        assert tokens >= 1
        entry = _Entry(request, (-priority, self._count), tokens)
        self._count += 1
        self._entries[request] = entry
        heapq.heappush(self._waiting, entry)

    def withdraw(self, request: T) -> int | None:
        """Takes a request out, whether it waits or runs.

        Returns:
            The slot that becomes free; None if it held none.
        """
        slot = self._entries.pop(request).slot
        if slot is not None:
            del self._running[slot]
        elif len(self._waiting) > 2 * self._queued():
            # Where requests of a higher priority keep coming, the others are never popped.
            self._waiting = [entry for entry in self._waiting if self._is_in(entry)]
            heapq.heapify(self._waiting)
        return slot

    def finish(self, slots: Iterable[int]) -> None:
        """Takes out the requests that hold some slots."""
        for slot in list(slots):
            self.withdraw(self._running[slot].request)

    def ask(self, slot: int, tokens: int) -> None:
        """Says how many tokens a request whose prompt was fed is fed in its next turns."""
        assert tokens >= 1
        self._running[slot].asked = tokens

    def admit(self) -> dict[int, T]:
        """Gives the free slots to the first requests of the queue: these, by their slots."""
        return {slot: self._next(slot) for slot in self._free()[: self._queued()]}

    @property
    def not_begun(self) -> dict[int, T]:
        """The requests by their slots that were fed nothing."""
        return {slot: each.request for slot, each in self._running.items() if not each.begun}

    def shorten(self, slot: int, tokens: int) -> None:
        """Says how many tokens of a prompt are to be fed, before any was."""
        assert tokens >= 1
        assert not self._running[slot].begun
        self._running[slot].unfed = tokens

    def turn(self, alike: Alike = _unlike) -> Turn[T] | None:
        """What the requests that hold a slot are fed next; None where none does.

        Args:
            alike: whether the prompt in a slot, of which nothing was fed, had better wait until
                that in another slot was fed: then less of it is to be computed.
        """
        if not self._running:
            return None
        tokens = self._tokens(alike)
        stepping = {slot: self._running[slot].request for slot in tokens}
        return Turn(stepping, tokens)

    def _queued(self) -> int:
        return len(self._entries) - len(self._running)

    def _is_in(self, entry: _Entry[T]) -> bool:
        """Whether an entry was not withdrawn."""
        return self._entries.get(entry.request) is entry

    def _free(self) -> list[int]:
        return [slot for slot in range(self._slots) if slot not in self._running]

    def _next(self, slot: int) -> T:
        """The first request of the queue, now in a slot."""
        while True:
            entry = heapq.heappop(self._waiting)
            if self._is_in(entry):
                entry.slot = slot
                self._running[slot] = entry
                return entry.request

    def _tokens(self, alike: Alike) -> dict[int, int]:
        """How many tokens which rows are fed, by slot."""
        tokens = {slot: each.asked for slot, each in self._running.items() if not each.unfed}
        prompts = [slot for slot, entry in self._running.items() if entry.unfed]
        left = self._rush if len(tokens) < len(prompts) else self._budget
        under_way: list[int] = []
        for slot in sorted(prompts, key=lambda slot: self._running[slot].place):
            entry = self._running[slot]
            piece = min(self._piece or left, entry.unfed)
            if not 0 < piece <= left:
                break
            if not entry.begun and any(alike(slot, other) for other in under_way):
                continue
            under_way.append(slot)
            tokens[slot] = piece
            left -= piece
            entry.unfed -= piece
            entry.begun = True
        return dict(sorted(tokens.items()))
