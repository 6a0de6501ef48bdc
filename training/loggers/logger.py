"""The face of a logger, and the names under which all of them show a run's numbers.

In: the very records of `metrics.jsonl`. Out: flat names and numbers. Knows no logging package.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

PREDICTION_COLUMNS = ("task", "prompt", "answer", "expected")

_NAMES = {
    "train_loss": "loss/train",
    "val_loss": "loss/validation",
    "baseline": "loss/no-prompt",
    "lr": "optimizer/lr",
    "gradient_norm": "optimizer/gradient_norm",
    "loss_scale": "optimizer/loss_scale",
    "tokens": "speed/tokens",
    "seconds": "speed/seconds",
}
_BY_TASK = {"by_task": "loss/validation", "baseline_by_task": "loss/no-prompt"}


class Logger(Protocol):
    """Who gets a run's records beside `metrics.jsonl`."""

    def log(self, record: dict[str, Any]) -> None:
        """One record of `metrics.jsonl`."""

    def predictions(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        """Answers that were written at the validation after `step`.

        Args:
            step: optimiser steps done.
            rows: what was asked, answered and expected, under `PREDICTION_COLUMNS`.
        """

    def finish(self, artifacts: Sequence[Path]) -> None:
        """The run came to its end; no other call follows.

        Args:
            artifacts: what it made: the prompt table (a file), a bundle (a folder).
        """

    def abort(self) -> None:
        """The run failed or was stopped; no other call follows."""


def scalars(record: Mapping[str, Any], tasknames: Sequence[str]) -> dict[str, float]:
    """The numbers of a record under the names that a reader of curves looks for.

    Args:
        record: with "step", which is no scalar itself.
        tasknames: of the task numbers that "by_task" and "baseline_by_task" have as keys.

    Returns:
        {"loss/train": …, "loss/validation": …, "loss/validation/<task>": …, …}. A number under a
        key that this module does not know goes to "other/<key>": nothing is dropped.
    """
    found: dict[str, float] = {}
    for key, value in record.items():
        if key in _BY_TASK:
            for number, loss in value.items():
                found[f"{_BY_TASK[key]}/{tasknames[int(number)]}"] = loss
        elif key == "val_metrics":
            for task, metric, percent in percentages(record):
                found[f"{metric}/validation/{task}"] = percent
        elif key == "skipped_rows":
            found["skipped/rows"] = len(value)
        elif key != "step" and isinstance(value, int | float):
            found[_NAMES.get(key, f"other/{key}")] = value
    if record.get("tokens") and record.get("seconds"):
        found["speed/tokens_per_second"] = record["tokens"] / record["seconds"]
    return found


def percentages(record: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """The validation scores of a record as (task, metric, percent).

    Metrics also count their rows under "total", which is no score.
    """
    return [
        (task, metric, percent)
        for task, metrics in record.get("val_metrics", {}).items()
        for metric, percent in metrics.items()
        if metric != "total"
    ]
