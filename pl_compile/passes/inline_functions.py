"""Calls of functions become their bodies, for readers of ONNX that know no functions.

before:  y, pk, pv = plc::Attention:body_1(qkv, , , past_key, past_value, past_lengths, ...)
after:   the nodes of that function in its place, and the model holds no function
"""

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from pl_compile.passes.graph_pass import GraphPass


@dataclass(frozen=True)
class InlineFunctions(GraphPass):
    """Inlines every call."""

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        return InlinePass()(model).modified

    def ensures(self, model: ir.Model) -> None:
        """No function is left."""
        assert not model.functions
