"""`plc tasks`."""

from pathlib import Path
from typing import Any

import click

from pl_compile.cli.terminal import OutputPath, example, json_option, print_json, print_table

_table = click.argument("table", type=click.Path(path_type=Path))


@click.group("tasks", epilog=example("plc tasks ls prompts.safetensors"))
def command() -> None:
    """Look at tasks of a prompt table, a bundle or a server; change those of a table or server."""


_server = click.option(
    "--server", metavar="URL", help="A running plc serve instead, at http://HOST:PORT."
)
_admin_key = click.option(
    "--admin-key", envvar="PLC_ADMIN_KEY", default="", help="Of the server. [PLC_ADMIN_KEY]"
)


@command.command(epilog=example("plc tasks ls bundle"))
@click.argument("path", type=click.Path(path_type=Path), required=False)
@_server
@click.option("--api-key", envvar="PLC_API_KEY", default="", help="Of the server. [PLC_API_KEY]")
@json_option
def ls(path: Path | None, server: str | None, api_key: str, as_json: bool) -> None:
    """The tasks of PATH: a prompt table, a run folder or a bundle; or of a server."""
    if (path is None) == (server is None):
        raise click.UsageError("Give either PATH or --server.")
    if path is None:
        _list_served(str(server), api_key, as_json=as_json)
        return
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
@click.argument("table", type=OutputPath(path_type=Path), required=False)
@click.argument("other", type=click.Path(path_type=Path), required=False)
@click.option("--task", "tasks", multiple=True, help="A task of OTHER; all if left out.")
@_server
@_admin_key
@json_option
def add(
    table: Path | None,
    other: Path | None,
    tasks: tuple[str, ...],
    server: str | None,
    admin_key: str,
    as_json: bool,
) -> None:
    """Add tasks of OTHER, a prompt table of the same base, to TABLE.

    With --server and --task: have a server serve tasks of the bundles that it was started with.
    """
    if server is not None:
        if table is not None or not tasks:
            raise click.UsageError("--server goes with --task alone.")
        from pl_compile.driver.server_tasks import add_served

        add_served(_admin(server, admin_key), tasks)
        _print_done("added", tasks, as_json=as_json)
        return
    if table is None or other is None:
        raise click.UsageError("Give TABLE and OTHER, or --server and --task.")
    from pl_compile.driver.tasks import add_tasks

    print_written(table, add_tasks(table, other, tasks), as_json=as_json)


@command.command(epilog=example("plc tasks rm prompts.safetensors tone"))
@click.argument("given", metavar="[TABLE] TASK...", nargs=-1, required=True)
@_server
@_admin_key
@json_option
def rm(given: tuple[str, ...], server: str | None, admin_key: str, as_json: bool) -> None:
    """Take tasks out of TABLE. With --server, without TABLE: have a server serve them no more."""
    if server is not None:
        from pl_compile.driver.server_tasks import remove_served

        remove_served(_admin(server, admin_key), given)
        _print_done("removed", given, as_json=as_json)
        return
    if len(given) == 1:
        raise click.UsageError("Missing argument 'TASK...'.")
    from pl_compile.driver.tasks import remove_tasks

    table, tasks = Path(given[0]), given[1:]
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


def _list_served(server: str, api_key: str, *, as_json: bool) -> None:
    from pl_compile.driver.bench.client import Address
    from pl_compile.driver.server_tasks import list_served

    tasks = list_served(Address.of(server, api_key=api_key))
    if as_json:
        print_json({"tasks": tasks})
        return
    rows = [
        [
            task["id"],
            str(task["virtual_tokens"]),
            ", ".join(task["fields"]),
            ", ".join(task["labels"]) or "-",
        ]
        for task in tasks
    ]
    print_table(f"Tasks of {server}", ["task", "virtual", "fields", "labels"], rows)


def _admin(server: str, key: str) -> Any:
    """The address of a server whose tasks are changed."""
    from pl_compile.driver.bench.client import Address

    return Address.of(server, api_key=key, key_option="--admin-key")


def _print_done(what: str, tasks: tuple[str, ...], *, as_json: bool) -> None:
    if as_json:
        print_json({what: tasks})
    else:
        click.echo(f"{what}: {', '.join(tasks)}")


def print_written(path: Path, table: Any, *, as_json: bool) -> None:
    """Prints the tasks of a table that was written."""
    tasks = list(table.entries)
    if as_json:
        print_json({"table": str(path), "tasks": tasks})
    else:
        click.echo(f"wrote {path}: {', '.join(tasks)}")
