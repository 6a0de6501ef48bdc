"""What all routes share: the session once it is there, limits, keys, what is counted."""

import asyncio
import hashlib
import hmac
import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pl_compile.errors import ConfigError, RankError, RequestError, reason_of
from pl_compile.runtime.async_session import AsyncSession
from pl_compile.runtime.engines.engine import Shared, prefix_length
from pl_compile.runtime.requests import BestLabel, Event, LabelScore, Request
from pl_compile.runtime.served_task import ServedTask
from pl_compile.runtime.server.faults import HttpError, unknown_task
from pl_compile.runtime.server.limits import Gate, Limits
from pl_compile.runtime.server.metrics import Metrics

T = TypeVar("T")

log = logging.getLogger("plc.server")

# Seconds that clients have to take the error that ends a request when the server ends.
_TO_TAKE_ERRORS = 1


@dataclass(frozen=True)
class Keys:
    """The keys that clients must send; None where none is needed.

    Attributes:
        api: for `/v1/…`.
        admin: for `/admin/…`, which is not there without one.
    """

    api: str | None = None
    admin: str | None = None


def same_key(given: str, key: str) -> bool:
    """Whether two keys are equal, in a time that does not depend on where they differ."""
    sums = (hashlib.sha256(each.encode()).digest() for each in (given, key))
    return hmac.compare_digest(*sums)


@dataclass
class Clock:
    """The times of one request, in seconds of the loop's clock.

    Attributes:
        limits: the server's.
        timeout: the client's own, if it gave one.
        began: when the request came.
        last: when the last token came; None before the first.
    """

    limits: Limits
    timeout: float | None
    began: float = field(default_factory=time.monotonic)
    last: float | None = None

    @property
    def ends(self) -> float:
        """When the request must have ended."""
        return self.began + min(self.limits.request_seconds, self.timeout or float("inf"))

    @property
    def deadline(self) -> float:
        """When the next token must be there. A session ends its rows earlier, at `ends`."""
        late = self.ends + self.limits.late_seconds
        return late if self.last is not None else min(late, self._first_by)

    @property
    def _first_by(self) -> float:
        return self.began + self.limits.queue_seconds

    def refusal(self) -> HttpError:
        """What a client is told whose request took too long."""
        if self.last is None and self._first_by < self.ends:
            return HttpError(
                "queue_timeout",
                f"No token within {self.limits.queue_seconds:g} s. Ask again later.",
            )
        return HttpError("request_timeout", f"No end within {self.ends - self.began:g} s.")


class Service:
    """A server's state.

    Args:
        limits: what is let in.
        keys: that clients must send.
        bundles: whose tasks may be added while the server runs.
    """

    def __init__(self, limits: Limits, keys: Keys, bundles: Sequence[Path] = ()) -> None:
        self.limits, self.keys, self.bundles = limits, keys, tuple(bundles)
        self.metrics = Metrics(self._gauges)
        self.gate = Gate(0)
        self.started = int(time.time())
        self.draining = False
        self.cut = False  # the time to drain is over
        self._waiting: set[asyncio.Task[Any]] = set()  # for a session's answers
        self.broken = False  # a rank has ended: no request can be answered any more
        self._session: AsyncSession | None = None

    def open(self, session: AsyncSession) -> None:
        """Begins to answer, with a session that was warmed."""
        self.gate = Gate(session.session.engine.max_batch + self.limits.queue)
        self._session = session

    async def cut_short(self) -> None:
        """Ends all requests with an error, and waits until their clients had time to take it.

        It waits for no step: the one that runs may take long.
        """
        self.cut = True
        for task in self._waiting:
            task.cancel()
        await self.gate.until_idle(_TO_TAKE_ERRORS)

    async def close(self) -> None:
        """Closes the session, if there is one."""
        if self._session is not None:
            await self._session.close()

    @property
    def is_open(self) -> bool:
        """Whether the bundle was loaded."""
        return self._session is not None

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered."""
        return self._session is not None and not self.draining and not self.broken

    def check_open(self) -> None:
        """Raises `HttpError` where no new request is answered."""
        if self.draining:
            raise HttpError(
                "draining", "The server is shutting down.", headers={"connection": "close"}
            )
        _ = self.session

    @property
    def session(self) -> AsyncSession:
        """What answers, also the last requests before the end.

        Raises:
            HttpError: the server is starting.
        """
        if self._session is None:
            message = "The bundle is being checked and loaded. Ask again in a moment."
            raise HttpError("starting", message, headers={"retry-after": "2"})
        return self._session

    @property
    def tasks(self) -> dict[str, ServedTask]:
        """All tasks by name."""
        return self.session.session.tasks

    def task(self, name: str) -> ServedTask:
        """A task.

        Raises:
            HttpError: there is none of this name.
        """
        tasks = self.tasks
        if name not in tasks:
            raise unknown_task(name, tuple(tasks))
        return tasks[name]

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts a request in, and out again.

        Raises:
            HttpError: too many are under way, or the server is starting or shutting down.
        """
        self.check_open()
        with self.gate.entered():
            yield

    async def events(self, request: Request, clock: Clock) -> AsyncGenerator[Event, None]:
        """The events of an answer, in time and counted.

        Raises:
            HttpError: it took too long.
            Exception: as for `AsyncSession.stream`.
        """
        task = self.metrics.label(request.task)
        first = self.metrics.first_token.labels(task)
        between = self.metrics.between_tokens.labels(task)
        left = max(0.001, clock.ends - time.monotonic())
        events = self.session.stream(replace(request, timeout=left))
        result = None
        try:
            while result is None:
                event = await self._in_time(request, anext(events), clock)
                ended = event.result
                if ended is not None and ended.finish_reason == "timeout" and not ended.token_ids:
                    raise clock.refusal()  # before its first token
                now = time.monotonic()
                if clock.last is None:
                    first.observe(now - clock.began)
                else:
                    between.observe(now - clock.last)
                clock.last, result = now, event.result
                if result is not None:
                    self.metrics.request.labels(task).observe(now - clock.began)
                    self.metrics.tokens_in.labels(task).inc(result.prompt_tokens)
                    self.metrics.tokens_out.labels(task).inc(len(result.token_ids))
                    self.metrics.finished.labels(task, result.finish_reason).inc()
                    self.gate.note(now - clock.began)
                yield event
        finally:
            await events.aclose()

    async def scores(self, request: Request, clock: Clock) -> tuple[LabelScore, ...]:
        """The probability of every label, in time and counted: no part of them comes earlier.

        Raises:
            HttpError: it took too long.
            Exception: as for `AsyncSession.score`.
        """
        return await self._labels(request, self.session.score(request), clock)

    async def likeliest(self, request: Request, clock: Clock) -> BestLabel:
        """The likeliest label, as `scores`.

        Raises:
            Exception: as for `scores`.
        """
        return await self._labels(request, self.session.classify(request), clock)

    async def _labels(self, request: Request, work: Awaitable[T], clock: Clock) -> T:
        clock = replace(clock, limits=replace(clock.limits, late_seconds=0))
        found = await self._in_time(request, work, clock)
        task, seconds = self.metrics.label(request.task), time.monotonic() - clock.began
        self.metrics.request.labels(task).observe(seconds)
        self.metrics.finished.labels(task, "labels").inc()
        self.gate.note(seconds)
        return found

    async def _in_time(self, request: Request, work: Awaitable[T], clock: Clock) -> T:
        """What `work` for a request gives; notes what its errors say about the server."""
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            return await in_time(work, clock)
        except asyncio.CancelledError:
            if not self.cut:
                raise
            task.uncancel()
            raise HttpError("draining", "The server shut down before the end.") from None
        except RankError:
            self.broken = True
            raise
        except RequestError:
            self.task(request.task)  # it may have been removed since it was looked for
            raise
        finally:
            self._waiting.discard(task)

    def _gauges(self) -> Iterator[tuple[str, str, float]]:
        if self._session is None:
            return
        session = self._session.session
        load = session.load
        yield "plc_requests_running", "Requests that hold a slot.", load.running
        waiting = max(0, self.gate.under_way - load.running)
        yield "plc_requests_waiting", "Requests that wait for a slot.", waiting
        yield "plc_slots", "Slots of the cache.", load.slots
        yield "plc_cache_entries", "Entries of the KV cache, of all slots.", load.entries
        yield "plc_cache_entries_in_use", "Entries that hold a token.", load.entries_in_use
        yield from _gauges_of(load.shared or _NOTHING_SHARED)
        tasks = session.tasks.values()
        prefixes = [task.prefix_kv for task in tasks if prefix_length(task)]
        yield "plc_tasks", "Tasks that are served.", len(tasks)
        yield "plc_prefixes_resident", "Tasks with a prefix.", len(prefixes)
        size = sum(each.nbytes for each in prefixes if each is not None)
        yield "plc_prefix_bytes", "Of all prefixes, as float32; memory holds what was used.", size


# Where an engine shares nothing: a page of numbers has the same lines everywhere.
_NOTHING_SHARED = Shared(entries=0, most=0, entry_bytes=0, hits=0, tokens=0, evicted=0)


def _gauges_of(shared: Shared) -> Iterator[tuple[str, str, float]]:
    """What is measured of prompts that begin alike."""
    yield (
        "plc_shared_entries",
        "Entries of prompts that are kept for later ones, and that no request uses now.",
        shared.entries,
    )
    yield "plc_shared_bytes", "Memory that they take.", shared.entries * shared.entry_bytes
    yield "plc_shared_entries_limit", "Most of them.", shared.most
    yield "plc_shared_hits_total", "Requests that began with entries of others.", shared.hits
    yield "plc_shared_tokens_total", "Tokens of prompts that were not computed.", shared.tokens
    yield "plc_shared_evicted_total", "Entries that left for others.", shared.evicted


async def in_time(work: Awaitable[T], clock: Clock) -> T:
    """What `work` gives.

    Raises:
        HttpError: it took too long, and was cancelled.
    """
    try:
        async with asyncio.timeout(clock.deadline - time.monotonic()) as bound:
            return await work
    except TimeoutError:
        if bound.expired():
            raise clock.refusal() from None
        raise


def read_key(path: Path | None, variable: str) -> str | None:
    """A key from a file of one line, or from an environment variable; None if neither is there.

    Raises:
        ConfigError: the file cannot be read, or the key is empty or holds blanks.
    """
    doing = f"reading the key in {variable if path is None else path}"
    try:
        text = os.environ.get(variable) if path is None else path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(doing, found=reason_of(error), expected="a text file") from error
    if text is None:
        return None
    key = text.strip()
    if not key.isascii() or not key.isprintable() or " " in key or not key:
        raise ConfigError(
            doing,
            found="no key" if not key else "blanks, or characters that are not ASCII",
            expected="one line: a key of ASCII characters without blanks",
        )
    return key
