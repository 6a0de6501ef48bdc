"""Continuous batching: rows come and go at any time, and step together on one engine."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pl_compile.runtime.engines.engine import Engine, Shared
from pl_compile.runtime.requests import Event
from pl_compile.runtime.rows import Row
from pl_compile.runtime.scheduler import Scheduler, Turn
from pl_compile.runtime.step_costs import StepCosts
from pl_compile.runtime.stepping import Batch, Output

# Most pieces of prompts in a step where fewer rows write than prompts are under way.
_RUSH = 8


def scheduler_of(slots: int, piece: int, *, together: bool) -> Scheduler[Any]:
    """The scheduler of a session.

    Args:
        slots: of its engine.
        piece: of a prompt, by the engine.
        together: whether no number of a token depends on those that come with it. Then a prompt may
            be cut anywhere, and tokens of several prompts cost less each in one step. Else every
            prompt is cut as the engine says, whatever else runs.
    """
    if together:
        return Scheduler(slots, piece=None, budget=piece, rush=_RUSH * piece)
    return Scheduler(slots, piece=piece, budget=piece)


@dataclass(frozen=True)
class Load:
    """How much an engine has to do.

    Attributes:
        running: rows that hold a slot.
        waiting: rows in the queue.
        slots: of the cache.
        entries: of the cache, in all slots.
        entries_in_use: those of running rows that hold a token.
        shared: what rows have shared of their prompts; None where the engine shares nothing.
    """

    running: int
    waiting: int
    slots: int
    entries: int
    entries_in_use: int
    shared: Shared | None = None


class Continuous:
    """Rows under way on an engine, and those that wait for a slot.

    A row's answer does not depend on what else runs, nor on when it came: prompts are cut alike
    where that changes bits (`scheduler_of`), and rows step together to the last bit as alone
    (`stepping.Batch`).

    Args:
        engine: runs the steps; its cache belongs to this object.
        clock: seconds that only grow, for the timeouts of requests.
        costs: are told what each step took.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Callable[[], float] = time.monotonic,
        costs: StepCosts | None = None,
    ) -> None:
        self.batch = Batch(engine)
        self._engine = engine
        self._clock = clock
        self._costs = costs
        self._deadlines: dict[Row, float] = {}  # of rows under way with a timeout
        self._scheduler: Scheduler[Row] = scheduler_of(
            engine.max_batch, engine.piece, together=engine.branches
        )

    @property
    def is_busy(self) -> bool:
        """Whether rows wait or run."""
        return bool(self._scheduler)

    @property
    def load(self) -> Load:
        """How much there is to do; any thread may ask, between steps or within one."""
        engine, running = self._engine, self._scheduler.running
        return Load(
            running=running,
            waiting=max(0, len(self._scheduler) - running),
            slots=engine.max_batch,
            entries=engine.max_batch * engine.capacity,
            entries_in_use=sum(self.batch.entries.values()),
            shared=self.batch.shared,
        )

    def submit(self, row: Row, priority: int = 0) -> None:
        """Puts a row into the queue. It may come at any time between steps.

        Args:
            row: a new one.
            priority: larger ones are admitted first.
        """
        self._scheduler.submit(row, len(row.input_ids), priority)
        if row.request.timeout is not None:
            self._deadlines[row] = self._clock() + row.request.timeout

    def cancel(self, row: Row) -> None:
        """Takes a row out that waits or runs; its slot is free at once."""
        self._deadlines.pop(row, None)
        slot = self._scheduler.withdraw(row)
        if slot is not None:
            self.batch.retire([slot])

    def step(self) -> list[tuple[Row, Event]]:
        """Feeds prompts or answers, whichever have their turn.

        A row whose logits are not finite is taken out and marked as `failed`. Where the time of
        rows is over, waiting or running, they are taken out instead, and nothing is fed.

        Returns:
            The events of rows that got a token, or whose time was over. Rows that are finished have
            left.
        """
        if overdue := self._overdue():
            for row in overdue:
                self.cancel(row)
            return [(row, row.time_out()) for row in overdue]
        self._admit()
        turn = self._scheduler.turn(self.batch.alike)
        if turn is None:
            return []
        began = time.perf_counter()
        outputs = self._run(turn)
        if self._costs is not None:
            self._costs.note(sum(turn.tokens.values()), time.perf_counter() - began)
        events = []
        for slot, output in outputs.items():
            row = turn.stepping[slot]
            if row.left:
                continue
            if row.has_numbers(output):
                events.append((row, row.advance(output)))
                if row.is_live:
                    # Tokens that come together have other bits where the engine takes no branches.
                    self._scheduler.ask(slot, row.left if row.branches else 1)
            else:
                row.failed = True
        broken = [slot for slot, row in turn.stepping.items() if row.failed]
        if broken:
            self.batch.clear(broken)
        over = [slot for slot, row in turn.stepping.items() if not row.is_live]
        for slot in over:
            self._deadlines.pop(turn.stepping[slot], None)
        self._scheduler.finish(over)
        self.batch.retire(over)
        return events

    def _overdue(self) -> list[Row]:
        """The rows whose time is over."""
        if not self._deadlines:
            return []
        now = self._clock()
        return [row for row, deadline in self._deadlines.items() if deadline <= now]

    def _admit(self) -> None:
        """Rows take the free slots. Those that were fed nothing begin with what others computed.

        They look for it before each step: of rows that come together and begin alike, the first one
        computes the beginning while the others wait.
        """
        for slot, row in self._scheduler.admit().items():
            self.batch.admit(slot, row.task, row.held)
        for slot, row in self._scheduler.not_begun.items():
            row.begin_with(self.batch.share(slot, row.input_ids))
            self._scheduler.shorten(slot, row.left)

    def _run(self, turn: Turn[Row]) -> dict[int, Output]:
        """Feeds rows; gives by slot what follows."""
        feeds = {slot: row.take(turn.tokens[slot]) for slot, row in turn.stepping.items()}
        for slot, feed in feeds.items():
            if feed.after is not None:
                self.batch.rewind(slot, feed.after)
        chooses = self._engine.candidates, self._engine.sampling_inputs
        # Noise is drawn for tokens that are chosen: not after a part of what is fed.
        draws = {slot: row.draw(*chooses) for slot, row in turn.stepping.items() if not row.left}
        return self.batch.feed(
            {slot: feed.ids for slot, feed in feeds.items()},
            draws,
            wanted={slot: feed.wanted for slot, feed in feeds.items() if feed.wanted is not None},
            parents={
                slot: feed.parents for slot, feed in feeds.items() if feed.parents is not None
            },
            looked_at={slot: row.looked_at for slot, row in turn.stepping.items()},
        )
