"""A stream of events that one thread at a time reads."""

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pl_compile.errors import RequestError
from pl_compile.runtime.requests import Event


class OneReader(Generator[Event, None, None]):
    """A generator that refuses a second reader while one is reading.

    Its numbers are computed with numpy's default error handling, whatever `np.seterr` the reader
    has set.

    Args:
        events: what is read.
    """

    def __init__(self, events: Generator[Event, None, None]) -> None:
        self._events = events
        self._reading = threading.Lock()

    def send(self, value: None) -> Event:
        """The next event.

        Raises:
            RequestError: another thread is reading.
        """
        with self._alone():
            return self._events.send(value)

    def throw(self, *error: Any) -> Event:
        """Ends the stream, for `close`.

        Raises:
            RequestError: another thread is reading.
        """
        with self._alone():
            return self._events.throw(*error)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._reading.acquire(blocking=False):
            raise RequestError(
                "reading a stream",
                found="two threads that read it at once",
                fix="Read it in one thread, or give each a stream of its own.",
            )
        try:
            # Around each step: set inside the generator, it would apply to the reader's code, too.
            with np.errstate(all="ignore"):
                yield
        finally:
            self._reading.release()
