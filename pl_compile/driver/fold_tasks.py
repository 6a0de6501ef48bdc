"""The openings of tasks as prefixes of keys and values, computed by the bundle itself."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pl_compile.artifact.bundle import Precision, sum_of_base, task_folder
from pl_compile.artifact.file_sums import FileRecord
from pl_compile.artifact.folded_prefix import (
    FOLDED_NAME,
    FoldedPrefix,
    read_folded,
    write_folded,
)
from pl_compile.driver.export_inputs import ExportInputs
from pl_compile.report.model import TaskCost
from pl_compile.runtime.engines.engine import Engine
from pl_compile.runtime.served_task import ServedTask, fold, identity_of


def fold_tasks(
    staging: Path,
    files: Mapping[str, FileRecord],
    inputs: ExportInputs,
    costs: Sequence[TaskCost],
    engine: Engine | None,
    precision: Precision,
) -> dict[str, ServedTask]:
    """Writes the prefixes; returns the tasks as they are served.

    Args:
        staging: the bundle that is being written.
        files: what is in it so far, by path.
        inputs: of the export.
        costs: costs of the tasks, in the recipe's order; they say which are folded.
        engine: the compiled base: the files that compute an opening are those that will serve it.
            None if nothing is folded.
        precision: how its numbers are stored.
    """
    graph = sum_of_base({name: record.sha256 for name, record in files.items()})
    base = inputs.table.base.fingerprint
    served = dict(inputs.tasks)
    entries = [
        entry for entry, cost in zip(inputs.recipe.entries, costs, strict=True) if cost.folded
    ]
    if not entries:
        return served
    assert engine is not None
    # Ragged rows have the same bits whatever is beside them. Of padded ones not every engine's do.
    rows = engine.max_batch if inputs.recipe.contract.rows == "ragged" else 1
    learned = (inputs.tasks[entry.task.taskname] for entry in entries)
    for entry, prompt in zip(entries, fold(learned, engine, rows), strict=True):
        name = entry.task.taskname
        assert prompt.prefix_kv is not None
        identity = identity_of(entry, prompt, base=base, graph=graph, precision=precision)
        path = task_folder(staging, name) / FOLDED_NAME
        write_folded(path, FoldedPrefix(prompt.prefix_kv, identity))
        # From here on the file holds the numbers, so many tasks take no more memory than one.
        served[name] = replace(prompt, prefix_kv=read_folded(path).kv)
    return served
