"""`plc tasks`."""

from pathlib import Path
from typing import Any

import click

from pl_compile.cli.terminal import OutputPath, example, json_option, print_json, print_table

_table = click.argument("table", type=click.Path(path_type=Path))


@click.group("tasks", epilog=example("plc tasks ls prompts.safetensors"))
def command() -> None:
    """Look at the tasks of a prompt table or a bundle, and change those of a table."""


@command.command(epilog=example("plc tasks ls bundle"))
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def ls(path: Path, as_json: bool) -> None:
    """The tasks of PATH: a prompt table, a run folder or a bundle."""
    from pl_compile.driver.tasks import list_tasks

    tasks = list_tasks(path)
    if as_json:
        print_json({"tasks": tasks})
        return
    rows = [
        [
            task["taskname"],
            task["method"],
            str(task["virtual_tokens"]),
            ", ".join(task["fields"]),
            ", ".join(task["choices"]) or task["answer_field"] or "-",
        ]
        for task in tasks
    ]
    print_table(f"Tasks of {path}", ["task", "method", "virtual", "fields", "answer"], rows)


@command.command(epilog=example("plc tasks add prompts.safetensors other.safetensors --task tone"))
@click.argument("table", type=OutputPath(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path))
@click.option("--task", "tasks", multiple=True, help="A task of OTHER; all if left out.")
@json_option
def add(table: Path, other: Path, tasks: tuple[str, ...], as_json: bool) -> None:
    """Add tasks of OTHER, a prompt table of the same base, to TABLE."""
    from pl_compile.driver.tasks import add_tasks

    print_written(table, add_tasks(table, other, tasks), as_json=as_json)


@command.command(epilog=example("plc tasks rm prompts.safetensors tone"))
@_table
@click.argument("tasks", nargs=-1, required=True)
@json_option
def rm(table: Path, tasks: tuple[str, ...], as_json: bool) -> None:
    """Take TASKS out of TABLE."""
    from pl_compile.driver.tasks import remove_tasks

    print_written(table, remove_tasks(table, tasks), as_json=as_json)


@command.command(epilog=example("plc tasks rename prompts.safetensors tone mood"))
@_table
@click.argument("old")
@click.argument("new")
@json_option
def rename(table: Path, old: str, new: str, as_json: bool) -> None:
    """Call the task OLD of TABLE NEW."""
    from pl_compile.driver.tasks import rename_task

    print_written(table, rename_task(table, old, new), as_json=as_json)


@command.command(
    "export-peft", epilog=example("plc tasks export-peft prompts.safetensors tone --output tone")
)
@_table
@click.argument("task")
@click.option("--base", help="What the adapter calls its base; as TABLE does if left out.")
@click.option(
    "--output",
    type=OutputPath(path_type=Path),
    required=True,
    help="The adapter's folder; one that this command wrote is replaced.",
)
@json_option
def export_peft(table: Path, task: str, base: str | None, output: Path, as_json: bool) -> None:
    """Write TASK of TABLE as an adapter that PEFT opens."""
    from pl_compile.driver.tasks import export_peft as write

    text = write(table, task, output, base=base)
    if as_json:
        print_json({"adapter": str(output), "task": task, "template": text})
    else:
        click.echo(f"wrote {output}; the text that PEFT is given: {text!r}")


def print_written(path: Path, table: Any, *, as_json: bool) -> None:
    """Prints the tasks of a table that was written."""
    tasks = list(table.entries)
    if as_json:
        print_json({"table": str(path), "tasks": tasks})
    else:
        click.echo(f"wrote {path}: {', '.join(tasks)}")
