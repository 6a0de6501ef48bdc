"""The face of a target: what the driver asks of every exporter.

check       can this base be built for the target? (cheap; raises with the reason)
build       main graph -> files in a folder
describe    the versions that made them
"""

from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig


class Exporter(Protocol):
    """A target."""

    target: str

    def check(self, config: DecoderConfig, contract: GraphContract) -> None:
        """Raises `ExportError` if the target cannot hold this base."""

    def build(self, model: ir.Model, folder: Path) -> None:
        """Writes the target's files into `folder`."""

    def describe(self) -> dict[str, str]:
        """Package name to version, for the manifest."""
