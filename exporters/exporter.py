"""What the driver asks of the exporter of every target.

check       can this base be built for the target? (cheap; raises with the reason)
passes      the literal lists of passes that bring the main graph into the target's form
build       the graph in that form -> files in a folder
describe    the versions that made them
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.progress import SILENT, Progress
from pl_compile.quantize.moments import Moments


@dataclass(frozen=True)
class PassInputs:
    """What a target's passes depend on.

    Attributes:
        config: the base, or a rank's part of it.
        contract: what the graph will take and give.
        options: how it is built.
        moments: of the calibration's activations, by weight as `Stages.prepare` leaves them.
    """

    config: DecoderConfig
    contract: GraphContract
    options: BuildOptions
    moments: Moments | None = None

    @property
    def in_floats(self) -> "PassInputs":
        """The same without rounding: what `Stages.floats` is for."""
        return replace(self, options=BuildOptions("none"), moments=None)


@dataclass(frozen=True)
class Stages:
    """The passes of a target, in their order: `prepare`, then `lower`.

    Attributes:
        prepare: those that change which weights there are.
        lower: those that bring the graph into the target's form.
        floats: in place of `lower` where ONNX Runtime runs the base in float32 on CPU, whatever the
            target is: to calibrate, and to compare with.
    """

    prepare: Sequence[GraphPass]
    lower: Sequence[GraphPass]
    floats: Sequence[GraphPass]

    @property
    def all(self) -> Sequence[GraphPass]:
        """What builds the target."""
        return [*self.prepare, *self.lower]


class Exporter(Protocol):
    """A target."""

    target: str  # its name in `config.targets`

    def check(self, config: DecoderConfig, contract: GraphContract, options: BuildOptions) -> None:
        """Raises `ExportError` if the target cannot hold this base as asked."""

    def passes(self, inputs: PassInputs) -> Stages:
        """The passes, in their order."""

    def build(
        self,
        model: ir.Model,
        folder: Path,
        contract: GraphContract,
        options: BuildOptions,
        progress: Progress = SILENT,
    ) -> None:
        """Writes the target's files into `folder`.

        Args:
            model: the graph after all passes; of one rank, where there are several.
            folder: of the base, or of the rank.
            contract: of the graph.
            options: how it is built.
            progress: who is told.
        """

    def describe(self) -> dict[str, str]:
        """Package name to version, for the manifest."""
