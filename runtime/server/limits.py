"""How much is let in, and how long it may take."""

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pl_compile.runtime.server.faults import HttpError

# A client is told to come back after this many seconds at most.
_MOST_RETRY_AFTER = 60


@dataclass(frozen=True)
class Limits:
    """The server's limits.

    Attributes:
        queue: most requests that wait for a slot.
        max_tokens: most tokens that a request may ask for.
        body_bytes: of a request.
        body_seconds: for the body to arrive.
        queue_seconds: from a request to its first token.
        request_seconds: from a request to its end. Then it has the text so far.
        late_seconds: how long after that an answer may come, until the request is cut.
        drain_seconds: for requests under way, once the server was told to stop.
    """

    queue: int = 64
    max_tokens: int = 4096
    body_bytes: int = 1 << 20
    body_seconds: float = 30
    queue_seconds: float = 60
    request_seconds: float = 300
    late_seconds: float = 5
    drain_seconds: float = 30


class Gate:
    """Counts requests under way, and turns away those that are too many.

    Args:
        most: requests under way: in slots, and in the queue.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._seconds = 1.0  # of a request: a moving average

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Counts a request in, and out again.

        Raises:
            HttpError: too many are under way.
        """
        if self.under_way >= self.most:
            seconds = min(_MOST_RETRY_AFTER, max(1, math.ceil(self._seconds)))
            raise HttpError(
                "queue_full",
                f"{self.under_way} requests are under way, and the server takes at most "
                f"{self.most}. Ask again in {seconds} s.",
                headers={"retry-after": str(seconds)},
            )
        self.under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.under_way -= 1
            if not self.under_way:
                self._idle.set()

    async def until_idle(self, seconds: float) -> int:
        """Waits until no request is under way; gives how many still are after `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        return self.under_way

    def note(self, seconds: float) -> None:
        """Notes how long a request took that was answered."""
        self._seconds += (seconds - self._seconds) / 8
