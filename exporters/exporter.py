"""The face of a target: what the driver asks of every exporter.

check       can this base be built for the target? (cheap; raises with the reason)
passes      the literal list of passes that bring the main graph into the target's form
build       the graph in that form -> files in a folder
describe    the versions that made them
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.quantize_weights import WeightError
from pl_compile.progress import SILENT, Progress
from pl_compile.quantize.moments import Moments


class Exporter(Protocol):
    """A target."""

    target: str  # its name in `config.targets`

    def check(self, config: DecoderConfig, contract: GraphContract, options: BuildOptions) -> None:
        """Raises `ExportError` if the target cannot hold this base as asked."""

    def passes(
        self,
        config: DecoderConfig,
        contract: GraphContract,
        options: BuildOptions,
        moments: Moments | None,
        errors: list[WeightError],
    ) -> Sequence[GraphPass]:
        """The passes, in their order.

        Args:
            config: the base.
            contract: what the graph will take and give.
            options: how it is built.
            moments: of the calibration's activations, by weight as `prepare_passes` leaves them.
            errors: gets what quantisation did to each weight.
        """

    def prepare_passes(self) -> Sequence[GraphPass]:
        """Those of `passes` that change which weights there are: what a calibration looks at."""

    def cpu_passes(self, config: DecoderConfig, contract: GraphContract) -> Sequence[GraphPass]:
        """What follows `prepare_passes` where ONNX Runtime runs floats on CPU: to calibrate."""

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
            model: the graph behind all passes; of one rank, where there are several.
            folder: of the base, or of the rank.
            contract: of the graph.
            options: how it is built.
            progress: who is told.
        """

    def describe(self) -> dict[str, str]:
        """Package name to version, for the manifest."""
