"""What a long step tells while it runs, without knowing who listens.

The rooms take a `Progress`; the command line gives one that draws on a terminal, tests and services
take `SILENT`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bar(Protocol):
    """One long step that is under way."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Moves on by `amount`; `note` is shown beside the bar (a loss, a file name).

        By 0 it changes the note alone, within a long part.
        """


class Progress(Protocol):
    """Who is told of lines and long steps."""

    def say(self, line: str) -> None:
        """A line for a person."""

    def bar(self, label: str, total: int) -> AbstractContextManager[Bar]:
        """A step of `total` parts, for the time of a `with` block."""


class _Silent:
    def say(self, line: str) -> None:
        """Nobody listens."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Nobody listens."""

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Bar]:
        yield self


SILENT: Progress = _Silent()
