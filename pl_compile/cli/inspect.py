"""`plc inspect`."""

import json
from pathlib import Path

import click

from pl_compile.cli.terminal import json_option, print_json


@click.command("inspect", epilog="Example: plc inspect bundle")
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def command(path: Path, as_json: bool) -> None:
    """Say what PATH holds: a bundle, prompt table, checkpoint, run folder, base or adapter.

    The name of a fetched base, such as smollm2-135m, is known too.
    """
    from pl_compile.driver.describe import describe

    description = describe(path)
    if as_json:
        print_json(description)
    else:
        # The same JSON, indented, so that people and programs read the same.
        click.echo(json.dumps(description, indent=2, ensure_ascii=False))
