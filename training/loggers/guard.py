"""Keeps a logger's failures away from the run that it logs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pl_compile.training.loggers.logger import Logger


class GuardedLogger:
    """A logger whose first failure is reported, and whose failures do not end the run.

    Later records are still passed on: a disk may have room again. `metrics.jsonl` has them all.

    Args:
        logger: the logger that gets the records.
        name: for the warning.
        say: gets the warning, as one line.
    """

    def __init__(self, logger: Logger, name: str, say: Callable[[str], None]) -> None:
        self._logger = logger
        self._name = name
        self._say = say
        self._warned = False

    def log(self, record: dict[str, Any]) -> None:
        """Passes on a record."""
        self._attempt(lambda: self._logger.log(record))

    def predictions(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        """Passes on answers."""
        self._attempt(lambda: self._logger.predictions(step, rows))

    def finish(self, artifacts: Sequence[Path]) -> None:
        """Passes on the end of the run."""
        self._attempt(lambda: self._logger.finish(artifacts))

    def abort(self) -> None:
        """Passes on the failure of the run."""
        self._attempt(self._logger.abort)

    def _attempt(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            if not self._warned:
                self._warned = True
                self._say(
                    f"warning: {self._name} failed ({one_line(error)}); the run goes on, and "
                    "metrics.jsonl has every record"
                )


def one_line(error: Exception) -> str:
    """The text of an exception on one line; its type where it has no text."""
    return " ".join(str(error).split()) or type(error).__name__
