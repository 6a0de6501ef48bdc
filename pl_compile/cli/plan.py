"""The options of TensorRT plans, and the table of those that were built."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pl_compile.cli.options import Command, option_of
from pl_compile.cli.terminal import print_table
from pl_compile.config.build import BuildOptions

if TYPE_CHECKING:
    from pl_compile.artifact.plan_record import PlanRecord


def plan_options(command: Command) -> Command:
    """Adds `--max-batch`, `--compute-capability` and `--ep-context` to a command."""
    options = [
        option_of(BuildOptions, "max_batch"),
        option_of(
            BuildOptions,
            "compute_capabilities",
            "--compute-capability",
            metavar="X.Y",
            callback=lambda _context, _option, given: tuple(dict.fromkeys(given)),
        ),
        option_of(BuildOptions, "ep_context"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def print_plans(records: "Sequence[PlanRecord]") -> None:
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
