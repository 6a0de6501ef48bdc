"""From a graph to files: one exporter per target, all with the methods of `Exporter`."""

from pl_compile.config.build import AUTO
from pl_compile.config.targets import TARGETS
from pl_compile.errors import ExportError, unknown_name
from pl_compile.exporters.exporter import Exporter
from pl_compile.exporters.native.cpu import NativeCpuExporter
from pl_compile.exporters.onnx.cpu import OnnxCpuExporter
from pl_compile.exporters.onnx.cuda import OnnxCudaExporter
from pl_compile.exporters.openvino.exporter import OpenVinoExporter
from pl_compile.exporters.tensorrt.exporter import TensorRtExporter

_EXPORTERS: dict[str, Exporter] = {
    exporter.target: exporter
    for exporter in (
        OnnxCpuExporter(),
        NativeCpuExporter(),
        OpenVinoExporter(),
        OnnxCudaExporter(),
        TensorRtExporter("tensorrt-rtx"),
        TensorRtExporter("tensorrt"),
    )
}


def exporter_for(target: str) -> Exporter:
    """The exporter of a target.

    Raises:
        ExportError: there is none of that name.
    """
    if target not in TARGETS:
        found, fix = unknown_name(target, (AUTO, *TARGETS), what="target")
        raise ExportError(f"choosing the target '{target}'", found=found, fix=fix)
    return _EXPORTERS[target]
