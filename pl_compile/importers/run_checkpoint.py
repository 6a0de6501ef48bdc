"""The prompts in a training checkpoint, as a prompt table. Needs no torch.

    tensor "table/<taskname>"   the rows or the prefix that the run had learned, as in a table
    metadata "format"           "plc.training-checkpoint"
    metadata "entries"          JSON: {taskname: `TaskEntry.record()`}
    metadata "base"             JSON: `BaseIdentity`

The rest of the file (parameters, moments of the optimiser) is not read.
"""

from pathlib import Path

from pl_compile.artifact.prompt_table import TABLE_NAME, PromptTable, table_from_records
from pl_compile.artifact.tensors import read_tensor_file
from pl_compile.errors import ArtifactError

FORMAT = "plc.training-checkpoint"

_PREFIX = "table/"


def read_checkpoint_table(path: Path) -> PromptTable:
    """The table that the run would have written at this checkpoint.

    Raises:
        ArtifactError: the file is missing, damaged, not a checkpoint of ours or without prompts,
            or the path is the folder of a run.
    """
    doing = f"reading the prompts of the checkpoint {path}"
    best = path / "checkpoints" / "best.safetensors"
    if best.is_file():
        raise ArtifactError(
            doing,
            found="the folder of a run",
            expected="one of its checkpoints",
            fix=f"The best is {best}; its prompts are also those of {path / TABLE_NAME}.",
        )
    file = read_tensor_file(path, doing=doing, prefix=_PREFIX, floats=True)
    if file.metadata.get("format") != FORMAT:
        raise ArtifactError(
            doing, found=f"format {file.metadata.get('format')!r}", expected=f"{FORMAT!r}"
        )
    if not file.tensors:
        raise ArtifactError(
            doing,
            found="no prompts in it",
            expected=f"tensors {_PREFIX}<taskname>",
            fix="It was written by an older release: go on with its run, with plc train --resume.",
        )
    learned = {name.removeprefix(_PREFIX): tensor for name, tensor in file.tensors.items()}
    return table_from_records(
        learned, base=file.metadata.get("base"), tasks=file.metadata.get("entries"), doing=doing
    )
