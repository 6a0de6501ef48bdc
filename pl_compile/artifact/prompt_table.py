"""The prompt table: the result of training, one safetensors file for any number of tasks.

    tensor "<taskname>"     float32 [virtual, hidden], or of a task with a learned prefix
                            float32 [layers, 2, kv_heads, virtual, head_dim]: keys, then values
    metadata "format"       "plc.prompt-table"
    metadata "version"      "1"
    metadata "base"         JSON: {"name", "fingerprint", "hidden", "vocab"}
    metadata "tasks"        JSON: {taskname: {"task": TaskConfig, "bos_id", "eos_id", "method"}},
                            "end_ids" of a task that has some, and "rendering" where it is not 1

A table holds tasks of different methods and virtual-token counts; adding one leaves the bytes of
the others as they are. Knows nothing of how the rows were trained.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pl_compile.artifact.files import write_atomically
from pl_compile.artifact.json_files import record_of
from pl_compile.artifact.tensors import read_tensor_file, tensor_bytes
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.read import build, node_from_plain, plain_from_config
from pl_compile.config.sizes import size_checks
from pl_compile.config.strict_json import parse_json
from pl_compile.config.task import TaskConfig
from pl_compile.errors import (
    ArtifactError,
    ConfigError,
    FingerprintError,
    check_all,
    reason_of,
    unknown_name,
)
from pl_compile.text.render import SequenceRules
from pl_compile.text.template import parse_template
from pl_compile.text.tokenizer import RENDERING

FORMAT = "plc.prompt-table"
VERSION = 1

# What a training run calls its table, in its run folder.
TABLE_NAME = "prompts.safetensors"


@dataclass(frozen=True)
class BaseIdentity:
    """Which base a table was trained on.

    Attributes:
        name: what the user called it; for people only.
        fingerprint: sha256 of config and tensors (`weights.fingerprint.fingerprint_base`).
        hidden: width of a prompt row.
        vocab: rows of its embedding. In a graph, this id and larger ones are virtual tokens.
    """

    name: str
    fingerprint: str
    hidden: int
    vocab: int

    def __post_init__(self) -> None:
        """Refuses sizes that no base could have."""
        sizes = {"hidden": self.hidden, "vocab": self.vocab}
        check_all(ConfigError, "reading the base's sizes", size_checks(sizes))


@dataclass(frozen=True)
class TaskRecord:
    """What a table and a bundle store of a task besides its rows: a `TaskEntry`, flat for JSON."""

    task: TaskConfig
    bos_id: int | None
    eos_id: int | None
    method: str
    end_ids: tuple[int, ...] = ()
    rendering: int = 1


@dataclass(frozen=True)
class TaskEntry:
    """One task of a table.

    Attributes:
        task: template and numbers.
        rows: float32 `[virtual, hidden]`; `[0, hidden]` of a task with a learned prefix.
        rules: what opened and ended its sequences in training.
        method: how the prompt was made; for people only.
        prefix_kv: float32 `[layers, 2, kv_heads, virtual, head_dim]`, the keys and values of
            positions 0 to `virtual - 1` where prefix tuning learned them; else None.
    """

    task: TaskConfig
    rows: NDArray[np.float32]
    rules: SequenceRules
    method: str
    prefix_kv: NDArray[np.float32] | None = None

    @property
    def learned(self) -> NDArray[np.float32]:
        """What training made: the rows, or the prefix."""
        return self.rows if self.prefix_kv is None else self.prefix_kv

    def record(self) -> dict[str, Any]:
        """All but the rows, as plain data for JSON."""
        rules = self.rules
        record = TaskRecord(
            self.task, rules.bos_id, rules.eos_id, self.method, rules.end_ids, rules.rendering
        )
        plain: dict[str, Any] = plain_from_config(record)
        # Left out where they add nothing: earlier releases have no such keys.
        if not rules.end_ids:
            del plain["end_ids"]
        if rules.rendering == 1:
            del plain["rendering"]
        if self.task.answer is None:
            del plain["task"]["answer"]
        return plain


def entry_from_record(
    plain: Any,
    learned: NDArray[np.float32],
    taskname: str,
    *,
    base: BaseIdentity,
    doing: str,
) -> TaskEntry:
    """The entry whose `record()` is `plain` and whose rows or prefix are `learned`.

    Raises:
        ConfigError: `plain` is not a record.
        ArtifactError: it is the record of another task than `taskname`, or its template cannot be
            parsed.
    """
    record = build(TaskRecord, node_from_plain(plain, f"task '{taskname}'"), doing=doing)
    if record.task.taskname != taskname:
        raise ArtifactError(
            doing,
            found=f"the record of task '{record.task.taskname}'",
            expected=f"that of '{taskname}'",
        )
    try:
        parse_template(record.task)
    except ConfigError as error:
        found = f"the template of task '{taskname}': {error.found}"
        raise ArtifactError(doing, found=found) from error
    ids = [("bos_id", record.bos_id), ("eos_id", record.eos_id)]
    for key, token_id in [*ids, *(("end_ids", each) for each in record.end_ids)]:
        if token_id is not None and not 0 <= token_id < base.vocab:
            raise ArtifactError(
                doing,
                found=f"{key} {token_id} of task '{taskname}'",
                expected=f"a token of the base: 0 to {base.vocab - 1}",
            )
    if not 1 <= record.rendering <= RENDERING:
        raise ArtifactError(
            doing,
            found=f"rendering {record.rendering} of task '{taskname}'",
            expected=f"1 to {RENDERING}",
            fix="Use the release of plc that wrote it, or a newer one.",
        )
    ends = (record.eos_id, *record.end_ids)
    if len(set(ends)) < len(ends):
        raise ArtifactError(
            doing,
            found=f"end_ids {list(record.end_ids)} beside eos_id {record.eos_id} of '{taskname}'",
            expected="each id once",
        )
    prefix = learned if learned.ndim == 5 else None
    rows = learned if prefix is None else np.zeros((0, base.hidden), np.float32)
    rules = SequenceRules(record.bos_id, record.eos_id, record.end_ids, record.rendering)
    entry = TaskEntry(record.task, rows, rules, record.method, prefix)
    check_learned(entry, base.hidden, doing)
    return entry


@dataclass(frozen=True)
class PromptTable:
    """The prompts of several tasks on one base."""

    base: BaseIdentity
    entries: Mapping[str, TaskEntry]

    def entry(self, taskname: str) -> TaskEntry:
        """The entry of a task.

        Raises:
            ArtifactError: the table has no such task.
        """
        if taskname not in self.entries:
            found, fix = unknown_name(taskname, tuple(self.entries), what="task")
            raise ArtifactError("looking into the prompt table", found=found, fix=fix)
        return self.entries[taskname]

    def with_entries(self, new: Mapping[str, TaskEntry]) -> "PromptTable":
        """The table with more tasks.

        Raises:
            ArtifactError: a task of that name is there already.
        """
        self.check_free(new)
        return PromptTable(self.base, {**self.entries, **new})

    def with_only(self, tasknames: Iterable[str]) -> "PromptTable":
        """The table with these tasks alone, in the order they are named.

        Raises:
            ArtifactError: there is no such task.
        """
        return PromptTable(self.base, {name: self.entry(name) for name in tasknames})

    def without(self, tasknames: Iterable[str]) -> "PromptTable":
        """The table with fewer tasks.

        Raises:
            ArtifactError: there is no such task.
        """
        gone = {self.entry(name).task.taskname for name in tasknames}
        kept = {name: entry for name, entry in self.entries.items() if name not in gone}
        return PromptTable(self.base, kept)

    def renamed(self, old: str, new: str) -> "PromptTable":
        """The table with the task `old` called `new`, at the same place.

        Raises:
            ArtifactError: there is no task `old`, or there is a task `new`.
            ConfigError: `new` is not a valid taskname.
        """
        entry = self.entry(old)
        self.check_free([new])
        renamed = replace(entry, task=replace(entry.task, taskname=new))
        entries = [renamed if name == old else kept for name, kept in self.entries.items()]
        return PromptTable(self.base, {entry.task.taskname: entry for entry in entries})

    def check_free(self, tasknames: Iterable[str]) -> None:
        """Raises `ArtifactError` if a task of one of these names is in the table."""
        doubled = sorted(set(tasknames) & set(self.entries))
        if doubled:
            raise ArtifactError(
                "adding to the prompt table",
                found=f"task '{doubled[0]}' is in it already",
                fix="Name the new task otherwise, or rename or remove that one with plc tasks.",
            )

    def check_base(self, identity: BaseIdentity, base: str) -> None:
        """Raises `FingerprintError` unless the table was trained on a base.

        Args:
            identity: of the base; its name does not matter.
            base: what messages call it.
        """
        doing = f"matching the prompt table with the base {base}"
        if identity.fingerprint != self.base.fingerprint:
            raise FingerprintError(
                doing,
                found=f"the base has fingerprint {identity.fingerprint}",
                expected=f"{self.base.fingerprint} ('{self.base.name}'), which it was trained on",
                fix="Give that base with --base, or train the tasks again on this one.",
            )
        if (identity.hidden, identity.vocab) != (self.base.hidden, self.base.vocab):
            raise FingerprintError(
                doing,
                found=f"a table for hidden {self.base.hidden}, vocab {self.base.vocab}",
                expected=f"hidden {identity.hidden}, vocab {identity.vocab}, as the base has",
                fix="The table was altered: take it from where it was trained.",
            )


def write_prompt_table(table: PromptTable, path: Path) -> None:
    """Writes a table, whole or not at all.

    Raises:
        ArtifactError: what a reader would refuse (rows that are not finite or not
            `[virtual, hidden]`, a template that cannot be parsed, …), or it cannot be written.
    """
    doing = f"writing {path}"
    for entry in table.entries.values():
        check_learned(entry, table.base.hidden, doing)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "base": json.dumps(plain_from_config(table.base)),
        "tasks": json.dumps({name: entry.record() for name, entry in table.entries.items()}),
    }
    learned = {name: entry.learned for name, entry in table.entries.items()}
    table_from_records(learned, base=metadata["base"], tasks=metadata["tasks"], doing=doing)
    rows = {name: np.ascontiguousarray(each, np.float32) for name, each in learned.items()}
    write_atomically(path, tensor_bytes(rows, metadata))


def read_prompt_table(path: Path) -> PromptTable:
    """Reads and checks a table.

    Raises:
        ArtifactError: no such file, not a table of ours, of a newer version, or damaged.
    """
    doing = f"reading the prompt table {path}"
    file = read_tensor_file(path, doing=doing, floats=True)
    rows, metadata = file.tensors, file.metadata
    if metadata.get("format") != FORMAT:
        raise ArtifactError(
            doing,
            found=f"format {metadata.get('format')!r}",
            expected=f"{FORMAT!r}",
            fix="Adapters and checkpoints come into a table with plc import.",
        )
    if metadata.get("version") != str(VERSION):
        raise ArtifactError(
            doing,
            found=f"version {metadata.get('version')}",
            expected=str(VERSION),
            fix="Use the release of plc that wrote it, or a newer one.",
        )
    tasks = metadata.get("tasks")
    return table_from_records(rows, base=metadata.get("base"), tasks=tasks, doing=doing)


def table_from_records(
    learned: Mapping[str, NDArray[Any]], *, base: str | None, tasks: str | None, doing: str
) -> PromptTable:
    """The table that a file's tensors and metadata describe.

    Args:
        learned: rows or prefix by taskname.
        base: JSON of a `BaseIdentity`; None where the file says nothing of it.
        tasks: JSON of the records by taskname, in the order of the table; or None.
        doing: what an error says was being done.

    Raises:
        ArtifactError: they do not fit together, or say something else.
    """
    if base is None or tasks is None:
        missing = "base" if base is None else "tasks"
        raise ArtifactError(doing, found=f"metadata that says nothing of its {missing}")
    try:
        identity = record_of(BaseIdentity, base, name="base", doing=doing)
        records = parse_json(tasks)
        if not isinstance(records, dict):
            raise ValueError("tasks that are not named")
        if set(records) != set(learned):
            raise ArtifactError(
                doing, found=f"rows for {sorted(learned)}", expected=f"rows for {sorted(records)}"
            )
        entries = {
            name: entry_from_record(record, learned[name], name, base=identity, doing=doing)
            for name, record in records.items()
        }
    except (ValueError, RecursionError) as error:
        raise ArtifactError(doing, found=f"damaged metadata ({reason_of(error)})") from error
    except ConfigError as error:
        raise ArtifactError(doing, found=error.found) from error
    return PromptTable(identity, entries)


def check_learned(entry: TaskEntry, hidden: int, doing: str) -> None:
    """Raises `ArtifactError` unless rows or prefix fit the task and are finite numbers."""
    name, virtual = entry.task.taskname, entry.task.total_virtual_tokens
    learned = entry.learned
    if entry.prefix_kv is None:
        what, expected = "rows", f"float32 {(virtual, hidden)}"
        fits = learned.shape == (virtual, hidden)
    else:
        what, expected = "prefix", f"float32 (layers, 2, kv_heads, {virtual}, head_dim)"
        fits = learned.ndim == 5 and (learned.shape[1], learned.shape[3]) == (2, virtual)
        fits = fits and len(entry.rows) == 0
    if not fits or learned.dtype != np.float32:
        raise ArtifactError(
            doing,
            found=f"{what} of '{name}': {learned.dtype} {learned.shape}",
            expected=expected,
        )
    if not np.isfinite(learned).all():
        raise ArtifactError(
            doing,
            found=f"{what} of '{name}' that are not finite numbers",
            fix="The run that made them diverged: lower its learning rate.",
        )
    if entry.prefix_kv is not None and entry.rules.bos_id is not None:
        raise ArtifactError(
            doing,
            found=f"a prefix of '{name}' and bos_id {entry.rules.bos_id}",
            expected="no BOS: a prefix stands before everything",
        )


def check_squares(entry: TaskEntry, doing: str) -> None:
    """Raises `ArtifactError` where a task's numbers overflow to infinity in a base in float32.

    Norms and products of queries and keys sum squares of their inputs. After an overflow some
    engines go on as if nothing was wrong, and others give no answer.
    """
    squares = np.square(entry.learned, dtype=np.float64).sum(axis=-1)
    if squares.max(initial=0) > np.finfo(np.float32).max:
        raise ArtifactError(
            doing,
            found=f"virtual tokens of '{entry.task.taskname}' with numbers up to "
            f"{np.abs(entry.learned).max():.1e}",
            expected="numbers whose squares a base can sum",
            fix="The run that made them diverged: train again with a lower learning rate.",
        )


def check_prefix(entry: TaskEntry, sizes: GraphContract | DecoderConfig, doing: str) -> None:
    """Raises `ArtifactError` unless a task's prefix, if it has one, fits the layers of its base."""
    if entry.prefix_kv is None:
        return
    virtual = entry.task.total_virtual_tokens
    expected = (sizes.layers, 2, sizes.kv_heads, virtual, sizes.head_dim)
    if entry.prefix_kv.shape != expected:
        raise ArtifactError(
            doing,
            found=f"prefix of '{entry.task.taskname}': float32 {entry.prefix_kv.shape}",
            expected=f"float32 {expected}",
            fix="Train the task again on this base.",
        )
