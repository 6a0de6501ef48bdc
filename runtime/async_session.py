"""The session for asyncio: one thread runs the steps, and coroutines wait for what they bring."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import numpy as np

from pl_compile.errors import AnswerError
from pl_compile.runtime.label_rows import BestLabelRow, ScoresRow
from pl_compile.runtime.requests import BestLabel, Event, LabelScore, Request, Result
from pl_compile.runtime.rows import Row
from pl_compile.runtime.session import Brought, Session, closed_session

# How often it is looked whether the thread has ended.
_LOOKS_SECONDS = 0.01


@dataclass(eq=False)
class _Answer:
    """An answer that somebody waits for.

    Attributes:
        every: whether each event is wanted, or the last one only.
        loop: where it is waited for.
        found: events, or the error that ended it; used within the loop only.
        row: once it was submitted; used by the thread of the steps only.
        left: whether nobody waits any more.
    """

    every: bool
    loop: asyncio.AbstractEventLoop
    found: asyncio.Queue[Event | Exception] = field(default_factory=asyncio.Queue)
    row: Row | None = None
    left: bool = False


class AsyncSession:
    """Answers requests of coroutines, of any number of event loops.

    A thread of its own prepares requests and runs steps while there is work; else it sleeps. What
    a step brings reaches a loop in one call, however many rows it is for. The same session may be
    used by threads at the same time: all rows step together.

    Close it with `await close()`, or use it as a context manager
    (`async with AsyncSession(Session.open(bundle)) as session:`).

    Args:
        session: answers the requests, and is closed with this object.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._wake = threading.Condition()
        self._asked: list[Callable[[], None]] = []  # of the thread, before its next step
        self._is_closed = False
        self._answers: dict[
            Row, _Answer
        ] = {}  # of rows under way; changed under the session's lock
        self._thread = threading.Thread(target=self._run, name="plc-steps", daemon=True)
        self._thread.start()

    async def generate(self, request: Request) -> Result:
        """The answer to a request. Where the awaiting task is cancelled, its row is taken out.

        Raises:
            RequestError: the request cannot be served, or the session was closed.
            AnswerError: its logits are not finite numbers.
            Exception: a step failed; the session goes on with other requests.
        """
        async with aclosing(self._events(request, every=False)) as events:
            async for event in events:
                if event.result is not None:
                    return event.result
        raise AssertionError("an answer without an end")

    def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """The answer piece by piece, one event for each token; the request starts with the first.

        Where the awaiting task is cancelled or the iterator is closed (`aclose`), the row is taken
        out.

        Raises:
            Exception: as for `generate`, from the iterator.
        """
        return self._events(request, every=True)

    async def score(self, request: Request) -> tuple[LabelScore, ...]:
        """The probability of every label, in the order of the task's `choices`.

        Raises:
            Exception: as for `generate`; `RequestError` also where the task has no choices.
        """
        found = await self._labels(request, ScoresRow)
        assert isinstance(found, tuple)
        return found

    async def classify(self, request: Request) -> BestLabel:
        """The likeliest label, with its probability; see `Session.classify`.

        Raises:
            Exception: as for `score`.
        """
        found = await self._labels(request, BestLabelRow)
        assert isinstance(found, BestLabel)
        return found

    async def _labels(
        self, request: Request, kind: type[ScoresRow]
    ) -> tuple[LabelScore, ...] | BestLabel:
        async with aclosing(self._events(request, every=False, kind=kind)) as events:
            async for event in events:
                if event.labels is not None:
                    return event.labels
        raise AssertionError("a search without an end")

    async def close(self) -> None:
        """Ends all requests with a `RequestError`, then the thread, and closes the session.

        It waits for the step that runs. Closing once more does nothing.
        """
        with self._wake:
            self._is_closed = True
            self._wake.notify()
        # No other thread waits for this one: where memory has run out, none can be started.
        while self._thread.is_alive():
            await asyncio.sleep(_LOOKS_SECONDS)

    async def __aenter__(self) -> Self:
        """The session itself."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Closes it, also after an error."""
        await self.close()

    async def _events(
        self, request: Request, *, every: bool, kind: type[ScoresRow] | None = None
    ) -> AsyncGenerator[Event, None]:
        answer = _Answer(every, asyncio.get_running_loop())
        self._ask(partial(self._begin, answer, request, kind))
        try:
            while True:
                found = await answer.found.get()
                if isinstance(found, Exception):
                    raise found
                yield found
                if found.is_last:
                    return
        finally:
            self._leave(answer)

    def _ask(self, call: Callable[[], None]) -> None:
        """Has the thread make a call before its next step."""
        with self._wake:
            if self._is_closed:
                raise closed_session()
            self._asked.append(call)
            self._wake.notify()

    def _leave(self, answer: _Answer) -> None:
        """Has the thread take out a row, unless it is over."""
        answer.left = True
        with self._wake:
            if not self._is_closed:
                self._asked.append(partial(self._cancel, answer))
                self._wake.notify()

    # What the thread does.

    @np.errstate(all="ignore")
    def _run(self) -> None:
        while not self._is_closed:
            with self._wake:
                while not (self._asked or self._answers or self._is_closed):
                    self._wake.wait()
                asked, self._asked = self._asked, []
            for call in asked:
                call()
            self._step()
        self.session.close()  # all rows end with an error
        for call in self._asked:
            call()  # so do those that have not begun

    def _step(self) -> None:
        if not self._answers:
            return
        # Each row has ended with the error, and its awaiter raises it.
        with suppress(Exception):
            self.session.advance()

    def _begin(self, answer: _Answer, request: Request, kind: type[ScoresRow] | None) -> None:
        if answer.left:
            return
        try:
            row = answer.row = self.session.prepare(request, kind)
            self._answers[row] = answer
            self.session.submit([row], self._take)
        except Exception as error:
            if answer.row is not None:
                self._answers.pop(answer.row, None)
            _tell([(answer, error)])

    def _cancel(self, answer: _Answer) -> None:
        if answer.row is not None:
            self.session.leave([answer.row])
            self._answers.pop(answer.row, None)

    def _take(self, brought: Brought) -> None:
        """What a step brought, whichever thread ran it."""
        found: list[tuple[_Answer, Event | Exception]] = []
        for row, event in brought:
            answer = self._answers[row] if row.is_live else self._answers.pop(row)
            if event is None or not (row.is_live or event.is_last):
                found.append((answer, _error_of(row)))
            elif answer.every or event.is_last:
                found.append((answer, event))
        for answer in _tell(found):
            self._leave(answer)


def _tell(found: Iterable[tuple[_Answer, Event | Exception]]) -> list[_Answer]:
    """Hands out what was found, in one call a loop; gives the answers whose loop was closed."""
    parts: dict[asyncio.AbstractEventLoop, list[tuple[_Answer, Event | Exception]]] = {}
    for answer, what in found:
        parts.setdefault(answer.loop, []).append((answer, what))
    lost = []
    for loop, part in parts.items():
        try:
            loop.call_soon_threadsafe(_put, part)
        except RuntimeError:
            lost += [answer for answer, _ in part]
    return lost


def _put(found: Iterable[tuple[_Answer, Event | Exception]]) -> None:
    for answer, what in found:
        answer.found.put_nowait(what)


def _error_of(row: Row) -> Exception:
    """Why a row ended without a result."""
    if row.error is not None:
        return row.error
    place = {row.index: f"the request (task '{row.request.task}')"}
    return AnswerError("answering a request", place)
