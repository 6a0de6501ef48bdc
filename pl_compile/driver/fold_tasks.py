"""The openings of tasks as prefixes of keys and values, computed by the bundle itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pl_compile.artifact.bundle import Precision, sum_of_base, task_folder
from pl_compile.artifact.file_sums import FileRecord
from pl_compile.artifact.folded_prefix import FOLDED_NAME, FoldedPrefix, write_folded
from pl_compile.driver.export_inputs import ExportInputs
from pl_compile.report.model import TaskCost
from pl_compile.runtime.engines.engine import Engine
from pl_compile.runtime.served_task import ServedTask, identity_of


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
    served = dict(inputs.tasks)
    for entry, cost in zip(inputs.recipe.entries, costs, strict=True):
        if not cost.folded:
            continue
        assert engine is not None
        name = entry.task.taskname
        prompt = inputs.tasks[name]
        served[name] = prompt.folded(engine)
        kv = served[name].prefix_kv
        assert kv is not None
        base = inputs.table.base.fingerprint
        identity = identity_of(entry, prompt, base=base, graph=graph, precision=precision)
        write_folded(task_folder(staging, name) / FOLDED_NAME, FoldedPrefix(kv, identity))
    return served
