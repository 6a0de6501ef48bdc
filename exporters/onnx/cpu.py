"""Target `onnx-cpu`: ONNX Runtime on CPU.

Attention becomes ONNX Runtime's kernel `GroupQueryAttention`, which computes each row over the
entries it has. Where that kernel does not take a base's heads, or the heads have norms, attention
gets a body of standard operators (`exporters/bodies.py`).
"""

from collections.abc import Sequence

from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.exporters.bodies import attend_to_longest, library_of
from pl_compile.exporters.exporter import PassInputs, Stages
from pl_compile.exporters.onnx.files import OnnxFiles
from pl_compile.exporters.options import check_options, when
from pl_compile.exporters.rounding import check_blocks, check_mat_mul_nbits, quantize_passes
from pl_compile.passes.fuse_residual_norms import FuseResidualNorms
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.link_functions import LinkFunctions
from pl_compile.passes.merge_products import MergeProducts
from pl_compile.passes.sample_in_graph import SampleInGraph
from pl_compile.passes.use_grouped_attention import UseGroupedAttention
from pl_compile.passes.use_mat_mul_nbits import UseMatMulNBits

# GroupQueryAttention takes heads of multiples of these widths, with rotary positions and without.
_ROTARY_HEADS, _PLAIN_HEADS = 16, 8


class OnnxCpuExporter(OnnxFiles):
    """ONNX Runtime on CPU."""

    target = "onnx-cpu"

    def check(self, config: DecoderConfig, contract: GraphContract, options: BuildOptions) -> None:
        """See `Exporter.check`."""
        check_options(self.target, options)
        check_mat_mul_nbits(options)
        check_blocks(config, options)

    def passes(self, inputs: PassInputs) -> Stages:
        """See `Exporter.passes`."""
        return Stages([MergeProducts()], _lower(inputs), _lower(inputs.in_floats))


def _lower(inputs: PassInputs) -> Sequence[GraphPass]:
    options, candidates = inputs.options, inputs.contract.candidates
    return [
        *when(_is_grouped(inputs.config), UseGroupedAttention()),
        FuseResidualNorms(),
        *quantize_passes(options, inputs.moments, negative_scales=True),
        *when(options.quantization != "none", UseMatMulNBits()),
        *when(candidates > 0, SampleInGraph(candidates)),
        LinkFunctions(library_of(attend_to_longest)),
    ]


def _is_grouped(config: DecoderConfig) -> bool:
    """Whether ONNX Runtime's `GroupQueryAttention` takes the base's heads."""
    return config.head_dim % (_ROTARY_HEADS if config.rope_theta else _PLAIN_HEADS) == 0
