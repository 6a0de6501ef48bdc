"""The calls of the `plc` domain get the bodies that a target runs best.

before:  y, pk, pv = plc::CachedAttention(q, k, v, past_k, past_v, past_lengths)
after:   the same, and the model holds a function of that name
"""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from pl_compile.graph.builder import PLC_DOMAIN
from pl_compile.passes.graph_pass import GraphPass


@dataclass(frozen=True)
class LinkFunctions(GraphPass):
    """Adds the functions of a target's library.

    Attributes:
        library: functions of the `plc` domain.
    """

    library: Sequence[ir.Function]

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        for function in self.library:
            model.functions[function.identifier()] = function
        return bool(self.library)

    def ensures(self, model: ir.Model) -> None:
        """Every call has a body."""
        calls = {node.op_identifier() for node in model.graph if node.domain == PLC_DOMAIN}
        assert calls <= set(model.functions), f"no body for {calls - set(model.functions)}"
