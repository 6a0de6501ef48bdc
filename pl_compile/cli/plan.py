"""The options of TensorRT plans, and the table of those that were built."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pl_compile.cli.terminal import print_table

F = TypeVar("F", bound=Callable[..., Any])


def plan_options(command: F) -> F:
    """Adds `--max-batch`, `--compute-capability` and `--ep-context` to a command."""
    options = [
        click.option(
            "--max-batch",
            type=int,
            help="Rows of a step that a plan takes at most. [default: 16; of plc build, as before]",
        ),
        click.option(
            "--compute-capability",
            "compute_capabilities",
            multiple=True,
            metavar="X.Y",
            callback=lambda _context, _option, given: tuple(dict.fromkeys(given)),
            help="A GPU that plans are built for; TensorRT's choice if left out.",
        ),
        click.option(
            "--ep-context",
            is_flag=True,
            help="Put an ONNX file around each plan, for ONNX Runtime's nv-tensorrt-rtx. Untested.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def print_plans(records: Any) -> None:
    """A row per TensorRT plan."""
    if records:
        print_table(
            "Plans",
            ["rank", "built by", "for", "seconds", "MB", "layers", "attention"],
            [
                [
                    str(rank),
                    f"{record.flavour} {record.version}",
                    ", ".join(record.compute_capabilities) or "TensorRT's choice",
                    f"{record.seconds:.1f}",
                    f"{record.plan_bytes / 1e6:.1f}",
                    str(sum(record.layers.values())),
                    record.attention,
                ]
                for rank, record in enumerate(records)
            ],
        )
