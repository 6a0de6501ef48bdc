"""The folder of a run: its files, its records, and what must be the same in a resumed run."""

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from pl_compile.artifact.bundle import MANIFEST
from pl_compile.artifact.files import (
    append_line,
    check_writable,
    remove_left_behind_in,
    sha256_of,
    write_atomically,
)
from pl_compile.artifact.prompt_table import TABLE_NAME
from pl_compile.config.read import plain_from_config
from pl_compile.config.train import TrainConfig
from pl_compile.config.utf8 import read_utf8, split_lines
from pl_compile.errors import ArtifactError, TrainingError, list_problems, reason_of
from pl_compile.training.loop import Record
from pl_compile.training.provenance import HISTORY_NAME
from pl_compile.training.run_state import RunState

# What a resumed run may change: where files lie, where records go, how the work is shared. The code
# below adds how long it may take, and whether token ids are kept.
_FREE_TO_CHANGE = dict.fromkeys(("base", "existing_table", "logging", "parallel"))

# The name of a checkpoint among the best, with its validation loss and step (NeMo's pattern).
_AMONG_BEST = re.compile(r"val_loss=(?P<loss>\d+\.\d+)-step=(?P<step>\d+)\.safetensors")

# The largest record of `history.jsonl`, in bytes: more than a command line may have.
_MOST_OF_A_RECORD = 4 << 20


# The files and folders that a run writes, besides its table and its history.
_WRITTEN = ("config.yaml", "metrics.jsonl", "curves.png", "checkpoints", "base")

# Files that mark a base or a bundle. A run's files do not belong into such a folder.
_OF_OTHERS = {"config.json": "a base", MANIFEST: "a bundle"}


def last_checkpoint(run_folder: Path) -> Path:
    """The checkpoint that a resumed run goes on from."""
    return run_folder / "checkpoints" / "last.safetensors"


def check_free(output: Path, *, resume: bool) -> None:
    """Raises `TrainingError` unless a run can start in `output`, or resume there, and write."""
    last = last_checkpoint(output)
    if output.exists() and not output.is_dir():
        raise TrainingError(
            f"starting a run in {output}", found="a file", fix="Choose another --output."
        )
    if resume and not last.is_file():
        raise TrainingError(
            f"resuming from {last}",
            found="no such file",
            fix="Start a new run in another --output."
            if (output / TABLE_NAME).is_file()
            else "Start the run anew, without --resume.",
        )
    has_run = last.is_file() or (output / TABLE_NAME).is_file()
    if has_run and not resume:
        raise TrainingError(
            f"starting a run in {output}",
            found="a run is there already",
            fix="Add --resume to go on with it, or choose another --output.",
        )
    if not has_run and not _is_begun(output):
        _check_nothing_is_lost(output)
    try:
        check_writable(output / HISTORY_NAME)
    except ArtifactError as error:
        raise _unwritable(output, error) from error


def _unwritable(output: Path, error: Exception) -> TrainingError:
    return TrainingError(
        f"starting a run in {output}",
        found=reason_of(error),
        fix="Choose another --output, or let it be written to: chmod u+w.",
    )


def _is_begun(output: Path) -> bool:
    """Whether a run began in a folder. It may have ended before its first checkpoint."""
    try:
        with (output / HISTORY_NAME).open("rb") as file:
            record = json.loads(file.readline(_MOST_OF_A_RECORD))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "event" in record


def _check_nothing_is_lost(output: Path) -> None:
    """Raises `TrainingError` where a run would overwrite other files, or write into a base."""
    doing = f"starting a run in {output}"
    for name, what in _OF_OTHERS.items():
        if (output / name).is_file():
            found = f"{name}, as {what} has it"
            raise TrainingError(doing, found=found, fix="Choose another --output.")
    there = [name for name in (*_WRITTEN, HISTORY_NAME) if _holds_something(output / name)]
    if there:
        raise TrainingError(
            doing,
            found=f"{', '.join(there)}, not of a run, which the run would overwrite",
            fix="Choose another --output, or move them away.",
        )


def _holds_something(path: Path) -> bool:
    """Whether there is a file or a folder with content. An empty one may be a mounted volume."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


@contextmanager
def folder_of_one_process(output: Path) -> Iterator[None]:
    """Keeps other processes from training in `output` for the time of a `with` block.

    The folder is made, and removed again if nothing was written into it.

    Raises:
        TrainingError: another process trains there, or the system refuses.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output, os.O_RDONLY)
    except OSError as error:
        raise _unwritable(output, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(
                f"starting a run in {output}",
                found="another process that trains there",
                fix="Wait for it, or choose another --output.",
            ) from None
        except OSError:
            pass  # a file system without locks: other processes cannot be seen
        yield
    finally:
        os.close(descriptor)
        with suppress(OSError):
            output.rmdir()


class RunFolder:
    """The files of a run.

    Args:
        folder: where they are.
        config: the run.
        fingerprint: of its base.
        writes: whether this process writes the records; if not, it only remembers them.
    """

    def __init__(
        self, folder: Path, config: TrainConfig, fingerprint: str, *, writes: bool = True
    ) -> None:
        self.table = folder / TABLE_NAME
        self.curves = folder / "curves.png"
        self.new_base = folder / "base"
        self.checkpoints = folder / "checkpoints"
        self.last = last_checkpoint(folder)
        self.best = self.checkpoints / "best.safetensors"
        self.records: list[Record] = []
        self._writes = writes
        self._metrics = folder / "metrics.jsonl"
        self._config = folder / "config.yaml"
        self._plain = plain_from_config(config)
        existing = config.existing_table
        # The content of the files decides a run, not their place.
        data = {**self._plain["data"], "train": None, "validation": None, "cache": None}
        trainer = {**self._plain["trainer"], "max_time": None}
        self.identity: dict[str, Any] = {
            "config": {**self._plain, **_FREE_TO_CHANGE, "data": data, "trainer": trainer},
            "base": fingerprint,
            "train": _sums(config.data.train),
            "validation": _sums(config.data.validation),
            "existing_table": existing and sha256_of(existing),
        }

    def open(self, step: int) -> None:
        """Writes the resolved config and drops records after `step`, which will be made again."""
        if step and self._metrics.is_file():
            self.records = [record for record in self._read() if record["step"] <= step]
        if not self._writes:
            return
        # Files that are written again remove what a kill left of them. A checkpoint among the best
        # may not be written again.
        remove_left_behind_in(self.checkpoints)
        text = yaml.safe_dump(self._plain, sort_keys=False, allow_unicode=True)
        write_atomically(self._config, text.encode())
        text = "".join(json.dumps(record) + "\n" for record in self.records)
        write_atomically(self._metrics, text.encode())

    def _read(self) -> list[Record]:
        """The records in `metrics.jsonl`; raises `TrainingError` with all other lines."""
        doing = f"resuming from {self._metrics}"
        fix = "Put back the file as the run wrote it, or start a new run in another --output."
        records, problems = [], []
        try:
            # A kill or a full disk may have cut the last line; whole lines end in a line feed.
            *whole, _ = split_lines(read_utf8(self._metrics))
        except (OSError, ValueError) as error:
            raise TrainingError(doing, found=reason_of(error), fix=fix) from error
        for number, line in enumerate(whole, 1):
            try:
                records.append(_record(line))
            except (ValueError, RecursionError) as error:
                problems.append(f"line {number}: {reason_of(error)}")
        if problems:
            raise TrainingError(
                doing, found=list_problems(problems), expected="records of a run", fix=fix
            )
        return records

    def log(self, record: Record) -> None:
        """Appends one record to `metrics.jsonl`."""
        record = json.loads(json.dumps(record))  # as a resumed run will read it
        self.records.append(record)
        if self._writes:
            append_line(self._metrics, json.dumps(record))

    @property
    def baseline(self) -> dict[int, float] | None:
        """The no-prompt losses by task number, if they were logged."""
        for record in self.records:
            if "baseline_by_task" in record:
                return {int(task): loss for task, loss in record["baseline_by_task"].items()}
        return None

    def losses_at(self, step: int) -> dict[int, float]:
        """The validation losses by task number that were logged after `step`."""
        for record in self.records:
            if record["step"] == step and "by_task" in record:
                return {int(task): loss for task, loss in record["by_task"].items()}
        return {}

    def metrics_at(self, step: int) -> dict[str, dict[str, float]]:
        """The scores of generated answers by taskname that were logged after `step`."""
        for record in self.records:
            if record["step"] == step and "val_metrics" in record:
                metrics: dict[str, dict[str, float]] = record["val_metrics"]
                return metrics
        return {}

    def among_best(self, state: RunState, most: int) -> Path | None:
        """The file for the checkpoint of a validation; None if it is not among the best.

        Args:
            state: after the validation.
            most: how many are kept.
        """
        loss = self.losses_at(state.step)
        if not loss:
            return None
        mean = sum(loss.values()) / len(loss)
        kept = self._kept_best()
        if len(kept) >= most and mean >= max(loss for loss, _ in kept):
            return None
        return self.checkpoints / f"val_loss={mean:.4f}-step={state.step}.safetensors"

    def drop_worse(self, most: int) -> None:
        """Removes the checkpoints that are no longer among the best."""
        for _, path in sorted(self._kept_best())[most:]:
            path.unlink(missing_ok=True)

    def _kept_best(self) -> list[tuple[float, Path]]:
        matches = ((path, _AMONG_BEST.fullmatch(path.name)) for path in self.checkpoints.glob("*"))
        return [(float(match["loss"]), path) for path, match in matches if match]


def _record(line: str) -> Record:
    """A line of `metrics.jsonl`; the keys that are read again are checked.

    Raises:
        ValueError: it is not a record.
    """
    record = json.loads(line)  # takes NaN, which a loss may be
    if not isinstance(record, dict):
        raise ValueError(f"{record!r}")
    wrong = [
        f"'{key}' of {record.get(key)!r}"
        for key, holds in _FORMS.items()
        if (key in record or key == "step") and not holds(record.get(key))
    ]
    if wrong:
        raise ValueError(", ".join(wrong))
    return record


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_by_task(value: Any) -> bool:
    return _is_numbers(value) and all(re.fullmatch("[0-9]{1,9}", task) for task in value)


def _is_scores(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_numbers, value.values()))


# Checks of the keys of a record that are read again.
_FORMS: Mapping[str, Callable[[Any], bool]] = {
    "step": lambda value: type(value) is int and value >= 0,
    "train_loss": _is_number,
    "val_loss": _is_number,
    "by_task": _is_by_task,
    "baseline_by_task": _is_by_task,
    "val_metrics": _is_scores,
}


def _sums(paths: Sequence[Path]) -> dict[str, str]:
    return {f"{index}.{path.name}": sha256_of(path) for index, path in enumerate(paths)}
