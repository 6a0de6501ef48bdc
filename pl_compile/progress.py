"""What a long step reports while it runs, without knowing who listens.

The packages take a `Progress`. The command line gives one that draws on a terminal; tests and
services give `SILENT`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bar(Protocol):
    """One long step that is under way."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Moves on by `amount`; `note` is shown beside the bar (a loss, a file name).

        An `amount` of 0 changes only the note, within a long part.
        """


class Progress(Protocol):
    """What receives lines and long steps."""

    def say(self, line: str) -> None:
        """Shows a line to a person."""

    def bar(self, label: str, total: int) -> AbstractContextManager[Bar]:
        """A step of `total` parts that lasts as long as the `with` block."""


class _Silent:
    def say(self, line: str) -> None:
        """Nobody listens."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Nobody listens."""

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Bar]:
        yield self


SILENT: Progress = _Silent()
