"""A run as TensorBoard event files: `tensorboard --logdir RUN_FOLDER`."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pl_compile.training.loggers.logger import PREDICTION_COLUMNS, scalars

_FLUSH_SECONDS = 10  # how much of a killed run may be missing
# TensorBoard renders Markdown, so the marks of Markdown in an answer are escaped.
_AS_TEXT = {ord(mark): f"&#{ord(mark)};" for mark in "\\`*_{}[]()#+-.!|<>&~"} | {ord("\n"): "<br>"}


class TensorBoardLogger:
    """Writes event files into a folder.

    Args:
        folder: is made if it does not exist; a resumed run adds a file to it.
        run_config: the resolved config, shown as text; its "tasks" name the task numbers.
        resumed_at: the last step that a resumed run keeps; 0 for a new run. Records of later steps
            in the folder are hidden, since those steps are made again.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, run_config: Mapping[str, Any], *, resumed_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._tasknames = [task["taskname"] for task in run_config["tasks"]]
        self._writer = SummaryWriter(
            str(folder),
            purge_step=resumed_at + 1 if resumed_at else 0,
            flush_secs=_FLUSH_SECONDS,
        )
        text = yaml.safe_dump(dict(run_config), sort_keys=False, allow_unicode=True)
        self._text("config", textwrap.indent(text, "    "), resumed_at)

    def log(self, record: dict[str, Any]) -> None:
        """Adds a point to each curve that the record has a number for."""
        for name, value in scalars(record, self._tasknames).items():
            self._writer.add_scalar(name, value, record["step"])

    def predictions(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        """Adds a table for each task to the Text page."""
        for task in dict.fromkeys(row["task"] for row in rows):
            table = _markdown_table([row for row in rows if row["task"] == task])
            self._text(f"predictions/{task}", table, step)

    def finish(self, artifacts: Sequence[Path]) -> None:
        """Closes the file; event files cannot hold artifacts."""
        self._writer.close()

    def abort(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _text(self, name: str, markdown: str, step: int) -> None:
        self._writer.add_text(name, markdown, step)


def _markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    columns = [column for column in PREDICTION_COLUMNS if column != "task"]
    cells = [columns, ["---"] * len(columns)]
    cells += [[row[column].translate(_AS_TEXT) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
