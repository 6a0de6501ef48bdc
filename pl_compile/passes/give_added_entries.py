"""The graph gives the entries that a step adds to the caches, in place of whole caches.

before:  past_key.0    [batch, kv_heads, capacity, head_dim] in
         present_key.0 [batch, kv_heads, capacity, head_dim] out
after:   past_key.0    [batch, kv_heads, entries, head_dim] in
         new_key.0     [batch, kv_heads, seq, head_dim] out

The bodies of attention must give them already: this pass changes names and shapes only.
"""

from dataclasses import dataclass

import onnx_ir as ir

from pl_compile.config.contract import GraphContract
from pl_compile.passes.graph_pass import GraphPass


@dataclass(frozen=True)
class GiveAddedEntries(GraphPass):
    """Names and shapes the caches' inputs and outputs as the bodies of attention have them.

    Attributes:
        contract: of the graph.
    """

    contract: GraphContract

    def requires(self, model: ir.Model) -> None:
        """All calls are inlined: bodies of functions would keep the old names and shapes."""
        assert not model.functions

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        values = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
        tensors = self.contract.tensors_of_added("float32")
        pairs = zip(self.contract.cache_names, self.contract.added_names, strict=True)
        for (past, present), (_, added) in pairs:
            values[past].shape = ir.Shape(tensors[past].shape)
            values[present].shape = ir.Shape(tensors[added].shape)
            values[present].name = added
        return True
