"""Target `onnx-cuda`: ONNX Runtime on CUDA. Its graphs were run on CPU only by this project.

`plc::CachedAttention` gets this body:

    present_key   = TensorScatter(past_key, key, past_lengths, axis=2)
    present_value = TensorScatter(past_value, value, past_lengths, axis=2)
    lengths       = past_lengths + seq
    output        = Attention(query, present_key, present_value,
                              nonpad_kv_seqlen=lengths, is_causal=1)

as for `onnx-cpu`, without the slice: the kernels for CUDA read no further than a row's length.
Rounded weights stay integers with a DequantizeLinear each, which ONNX Runtime makes into kernels
of its own when it loads the file.
"""

from collections.abc import Sequence

from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.exporters.onnx.cpu import cached_attention_function
from pl_compile.exporters.onnx.files import OnnxFiles
from pl_compile.exporters.options import (
    check_blocks,
    check_options,
    precision_passes,
    quantize_passes,
    when,
)
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.link_functions import LinkFunctions
from pl_compile.passes.quantize_weights import WeightError
from pl_compile.passes.sample_in_graph import SampleInGraph
from pl_compile.quantize.moments import Moments


class OnnxCudaExporter(OnnxFiles):
    """ONNX Runtime on CUDA."""

    target = "onnx-cuda"

    def check(self, config: DecoderConfig, contract: GraphContract, options: BuildOptions) -> None:
        """See `Exporter.check`."""
        check_options(self.target, options)
        check_blocks(config, options)

    def passes(
        self,
        config: DecoderConfig,
        contract: GraphContract,
        options: BuildOptions,
        moments: Moments | None,
        errors: list[WeightError],
    ) -> Sequence[GraphPass]:
        """See `Exporter.passes`."""
        return [
            *quantize_passes(options, moments, errors, signed=True),
            *precision_passes(options),
            *when(contract.candidates > 0, SampleInGraph(contract.candidates)),
            LinkFunctions([cached_attention_function(sliced=False)]),
        ]

    def prepare_passes(self) -> Sequence[GraphPass]:
        """See `Exporter.prepare_passes`."""
        return []

    def cpu_passes(self, config: DecoderConfig, contract: GraphContract) -> Sequence[GraphPass]:
        """See `Exporter.cpu_passes`."""
        return [LinkFunctions([cached_attention_function()])]
