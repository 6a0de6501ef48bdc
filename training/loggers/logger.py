"""The interface of a logger, and the names under which all loggers show a run's numbers.

In: the records of `metrics.jsonl`. Out: flat names and numbers. Knows no logging package.
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
    """Gets a run's records, besides `metrics.jsonl`."""

    def log(self, record: dict[str, Any]) -> None:
        """Takes one record of `metrics.jsonl`."""

    def predictions(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        """Takes answers that were generated at the validation after `step`.

        Args:
            step: optimiser steps done.
            rows: what was asked, answered and expected, under `PREDICTION_COLUMNS`.
        """

    def finish(self, artifacts: Sequence[Path]) -> None:
        """Called at the end of the run; no other call follows.

        Args:
            artifacts: the results of the run: the prompt table (a file), a bundle (a folder).
        """

    def abort(self) -> None:
        """Called if the run failed or was stopped; no other call follows."""


def scalars(record: Mapping[str, Any], tasknames: Sequence[str]) -> dict[str, float]:
    """The numbers of a record, by the usual names of curves.

    Args:
        record: with "step", which is not a curve itself.
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

    "total", under which metrics count their rows, is not a score and is left out.
    """
    return [
        (task, metric, percent)
        for task, metrics in record.get("val_metrics", {}).items()
        for metric, percent in metrics.items()
        if metric != "total"
    ]
