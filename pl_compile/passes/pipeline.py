"""Runs passes one after the other: verifies, times and prints between them.

In: a model and the literal list of a target. Out: the model in its last form, and a record of each
pass for the report. Each target writes its own list (`exporters/`).
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from pl_compile.artifact.files import write_atomically
from pl_compile.errors import ArtifactError, PlcError, reason_of
from pl_compile.passes.graph_pass import GraphPass, NotedResult
from pl_compile.passes.verify import verify_model
from pl_compile.progress import SILENT, Progress

# What a dump begins with, which no other folder has, and what it ends with.
_FIRST = "00-main-graph.onnx.txt"
_RECORDS = "passes.json"


@dataclass(frozen=True)
class PassRecord:
    """What a pass did.

    Attributes:
        name: of the pass.
        options: as `GraphPass.options` has them.
        modified: whether it changed the model.
        seconds: wall time.
        nodes: of the main graph, afterwards.
        weight_bytes: of all initializers, afterwards.
    """

    name: str
    options: dict[str, Any]
    modified: bool
    seconds: float
    nodes: int
    weight_bytes: int


@dataclass(frozen=True)
class PassRun:
    """What a list of passes did.

    Attributes:
        records: of each pass.
        notes: of all passes, in their order: what rounding did to each weight.
    """

    records: tuple[PassRecord, ...]
    notes: tuple[Any, ...]


def run_passes(
    model: ir.Model,
    passes: Sequence[GraphPass],
    *,
    dump_to: Path | None = None,
    progress: Progress = SILENT,
) -> PassRun:
    """Runs the passes in their order, in place.

    Args:
        model: the main graph.
        passes: the list of a target.
        dump_to: a folder that gets the model as text before the first pass and after each; made if
            it is not there.
        progress: who is told.

    Raises:
        PlcError: what a pass refuses of its input, or a disk that refuses a dump.
        onnx_ir.passes.PassError: a pass broke the model or its promise: a mistake of ours.
    """
    verify_model(model)
    if dump_to is not None:
        _dump(model, dump_to / _FIRST)
    records: list[PassRecord] = []
    notes: list[Any] = []
    with progress.bar("passes", len(passes)) as bar:
        for number, each in enumerate(passes, 1):
            record, result = _run_pass(model, each, records)
            records.append(record)
            notes += result.notes
            if dump_to is not None:
                _dump(model, dump_to / f"{number:02}-{each.name}.onnx.txt")
            bar.advance(note=each.name)
    if dump_to is not None:
        text = json.dumps([asdict(record) for record in records], indent=2)
        write_atomically(dump_to / _RECORDS, (text + "\n").encode())
    return PassRun(tuple(records), tuple(notes))


def dumped_files(folder: Path) -> list[str]:
    """The files of an earlier dump, also of several ranks, by their paths in a folder."""
    return [
        file.relative_to(folder).as_posix()
        for first in (*folder.glob(_FIRST), *folder.glob(f"rank[0-9]*/{_FIRST}"))
        for pattern in ("[0-9][0-9]-*.onnx.txt", _RECORDS)
        for file in first.parent.glob(pattern)
    ]


def clear_dumps(folder: Path) -> None:
    """Removes the files of an earlier dump, whose passes may be others.

    Raises:
        ArtifactError: the system refuses.
    """
    try:
        for name in dumped_files(folder):
            (folder / name).unlink()
    except OSError as error:
        raise ArtifactError(f"removing the dump in {folder}", found=reason_of(error)) from error


def _run_pass(
    model: ir.Model, each: GraphPass, earlier: Sequence[PassRecord]
) -> tuple[PassRecord, NotedResult]:
    started = time.perf_counter()
    try:
        result = each(model)
        assert isinstance(result, NotedResult)
        verify_model(model)
    except ir.passes.InvariantError as error:
        if isinstance(error.__cause__, PlcError):
            raise error.__cause__ from None
        raise
    except AssertionError as error:
        before = ", ".join(record.name for record in earlier) or "none"
        raise ir.passes.PassError(
            f"{each.name} broke the model (passes before it: {before})"
        ) from error
    record = PassRecord(
        each.name,
        each.options,
        result.modified,
        round(time.perf_counter() - started, 4),
        len(model.graph),
        sum(_bytes(value) for value in model.graph.initializers.values()),
    )
    return record, result


def model_text(model: ir.Model) -> str:
    """The model in ONNX's own text form, without the numbers of its weights."""
    return ir.to_onnx_text(model, exclude_initializers=True)


def _dump(model: ir.Model, path: Path) -> None:
    write_atomically(path, model_text(model).encode())


def _bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes
