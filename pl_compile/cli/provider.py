"""The options that choose the execution provider that runs a bundle."""

from pathlib import Path
from typing import Any

import click

from pl_compile.cli.options import Command
from pl_compile.config.targets import PROVIDERS


def provider_options(command: Command, *, default: str = "that of the bundle's target") -> Command:
    """Adds `--provider`, `--provider-option` and `--provider-library` to a command.

    Args:
        command: gets them.
        default: for the help: what runs the bundle by default.
    """
    options = [
        click.option(
            "--provider",
            help=f"Execution provider of ONNX Runtime: {', '.join(PROVIDERS)}, or its full name. "
            f"[default: {default}]",
        ),
        click.option(
            "--provider-option",
            "provider_pairs",
            multiple=True,
            metavar="NAME=VALUE",
            help="Its own.",
        ),
        click.option(
            "--provider-library",
            type=click.Path(path_type=Path),
            help="Of a plug-in provider.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def chosen_provider(name: str | None, pairs: tuple[str, ...], library: Path | None) -> Any:
    """The `Provider` of these options; None where none was chosen.

    Raises:
        UsageError: options of a provider without a provider.
    """
    if name is None:
        if pairs or library is not None:
            raise click.UsageError("--provider-option and --provider-library go with --provider.")
        return None
    from pl_compile.runtime.engines.onnxruntime.providers import provider_of

    return provider_of(name, pairs, library)
