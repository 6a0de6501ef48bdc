"""The files of targets that are ONNX: `model.onnx`, and `model.onnx.data` beside it."""

from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from pl_compile.artifact.model_files import DATA_NAME, MODEL_NAME
from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.graph.builder import OPSET
from pl_compile.progress import SILENT, Progress

# Small tensors stay in the graph, where a reader sees them; large ones go to the side file.
_EXTERNAL_FROM_BYTES = 1024


class OnnxFiles:
    """The two methods of `Exporter` that all targets with these files share: they inherit them."""

    def build(
        self,
        model: ir.Model,
        folder: Path,
        contract: GraphContract,
        options: BuildOptions,
        progress: Progress = SILENT,
    ) -> None:
        """Writes `model.onnx` and `model.onnx.data`."""
        progress.say("writing the graph and the weights")
        save(model, folder)

    def describe(self) -> dict[str, str]:
        """The ONNX packages."""
        return onnx_versions()


def save(model: ir.Model, folder: Path) -> None:
    """Writes both files into `folder`."""
    ir.save(
        model,
        folder / MODEL_NAME,
        external_data=DATA_NAME,
        size_threshold_bytes=_EXTERNAL_FROM_BYTES,
    )


def onnx_versions() -> dict[str, str]:
    """The packages that wrote them, by name."""
    return {name: version(name) for name in ("onnx", "onnx-ir")} | {"opset": str(OPSET)}
