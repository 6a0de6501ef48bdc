"""Target `onnx-cuda`: ONNX Runtime on CUDA. Its graphs were run on CPU only by this project.

Operators of the main graph get bodies (`exporters/bodies.py`), attention without the slice of
`onnx-cpu`: the kernels for CUDA read no further than a row's length.
Rounded weights stay integers with a DequantizeLinear each, which ONNX Runtime makes into kernels
of its own when it loads the file.
"""

from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.exporters.bodies import attend_to_lengths, attend_to_longest, library_of
from pl_compile.exporters.exporter import PassInputs, Stages
from pl_compile.exporters.onnx.files import OnnxFiles
from pl_compile.exporters.options import check_options, precision_passes, when
from pl_compile.exporters.rounding import check_blocks, quantize_passes
from pl_compile.passes.link_functions import LinkFunctions
from pl_compile.passes.sample_in_graph import SampleInGraph


class OnnxCudaExporter(OnnxFiles):
    """ONNX Runtime on CUDA."""

    target = "onnx-cuda"

    def check(self, config: DecoderConfig, contract: GraphContract, options: BuildOptions) -> None:
        """See `Exporter.check`."""
        check_options(self.target, options)
        check_blocks(config, options)

    def passes(self, inputs: PassInputs) -> Stages:
        """See `Exporter.passes`."""
        options, candidates = inputs.options, inputs.contract.candidates
        lower = [
            *quantize_passes(options, inputs.moments, negative_scales=True),
            *precision_passes(options),
            *when(candidates > 0, SampleInGraph(candidates)),
            LinkFunctions(library_of(attend_to_lengths)),
        ]
        return Stages([], lower, [LinkFunctions(library_of(attend_to_longest))])
