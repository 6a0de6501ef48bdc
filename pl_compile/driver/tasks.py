"""The tasks of a prompt table: list, add, rename, remove, export to PEFT.

A table is written whole or not at all, and tasks that are not named keep their bytes. The tasks of
a bundle can be listed; to change them, export it again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pl_compile.artifact.bundle import is_bundle
from pl_compile.artifact.prompt_table import PromptTable, read_prompt_table, write_prompt_table
from pl_compile.driver.describe import describe
from pl_compile.errors import ArtifactError
from pl_compile.importers.peft import write_peft_adapter


def list_tasks(path: Path) -> list[dict[str, Any]]:
    """A description of each task of a table, a run folder or a bundle.

    Raises:
        ArtifactError: nothing is there, or it has no tasks.
    """
    description = describe(path)
    if description["kind"] == "run":
        description = description["table"]
    if "tasks" not in description:
        raise ArtifactError(
            f"listing the tasks of {path}",
            found=f"it holds: {description['kind']}",
            expected="a prompt table, a run folder or a bundle",
        )
    tasks: list[dict[str, Any]] = description["tasks"]
    return tasks


def add_tasks(path: Path, other: Path, tasknames: Sequence[str] = ()) -> PromptTable:
    """Adds tasks of another table of the same base.

    Args:
        path: the table that they are added to; it is made if it is not there.
        other: the table that has them; it stays as it is.
        tasknames: which of them; all if empty.

    Raises:
        ArtifactError: a table that cannot be read or written, no such task in `other`, or one of
            that name in `path`.
        FingerprintError: the tables belong to different bases.
    """
    source = read_prompt_table(other)
    return merge_into(path, source.with_only(tasknames or source.entries))


def merge_into(path: Path, new: PromptTable) -> PromptTable:
    """Writes the table at `path` with the tasks of `new` after its own; see `add_tasks`."""
    table = new
    if path.exists():
        table = _read_to_change(path)
        table.check_base(new.base, f"'{new.base.name}'")
        table = table.with_entries(new.entries)
    write_prompt_table(table, path)
    return table


def remove_tasks(path: Path, tasknames: Sequence[str]) -> PromptTable:
    """Removes tasks from a table.

    Raises:
        ArtifactError: a table that cannot be read or written, no such task, or no task would be
            left.
    """
    table = _read_to_change(path).without(tasknames)
    if not table.entries:
        raise ArtifactError(
            f"removing tasks of {path}",
            found="no task would stay",
            fix="Delete the file if you need no task of it.",
        )
    write_prompt_table(table, path)
    return table


def rename_task(path: Path, old: str, new: str) -> PromptTable:
    """Gives a task of a table another name.

    Raises:
        ArtifactError: a table that cannot be read or written, a table without task `old`, or one
            that has a task `new` already.
        ConfigError: `new` is not a valid taskname.
    """
    table = _read_to_change(path).renamed(old, new)
    write_prompt_table(table, path)
    return table


def export_peft(path: Path, taskname: str, folder: Path, *, base: str | None = None) -> str:
    """Writes a task of a table as an adapter of PEFT.

    Args:
        path: the table.
        taskname: which task.
        folder: the adapter's; see `write_peft_adapter`.
        base: what the adapter calls its base; the table's name for it if None.

    Returns:
        The text that a user of PEFT must put after the virtual tokens: the rest of the template.

    Raises:
        ArtifactError: see `write_peft_adapter`.
    """
    table = read_prompt_table(path)
    write_peft_adapter(table, taskname, folder, base or table.base.name)
    return table.entry(taskname).task.prompt_template.removeprefix("<|VIRTUAL_PROMPT_0|>")


def _read_to_change(path: Path) -> PromptTable:
    if is_bundle(path):
        raise ArtifactError(
            f"changing the tasks of {path}",
            found="a bundle",
            expected="a prompt table",
            fix="Change the prompt table that it was exported from, and export it again.",
        )
    return read_prompt_table(path)
