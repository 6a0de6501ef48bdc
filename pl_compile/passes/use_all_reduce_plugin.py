"""Sums over ranks for a TensorRT that has no layer for them: before 10.16.

before:  y = plc.dist::DistCollective(x, collective_operation="all_reduce", …, nb_rank=2)
after:   y = plc.dist::plc_all_reduce(x, plugin_version="1", plugin_namespace="", nb_rank=2)

The plugin is `runtime/plugins/all_reduce.cc`; whoever parses the file must have loaded it.
"""

from dataclasses import dataclass

import onnx_ir as ir

from pl_compile.graph.builder import DIST_DOMAIN
from pl_compile.passes.edit import Edit, is_op
from pl_compile.passes.graph_pass import GraphPass

ALL_REDUCE_PLUGIN = "plc_all_reduce"
RANKS_ATTRIBUTE = "nb_rank"


@dataclass(frozen=True)
class UseAllReducePlugin(GraphPass):
    """Replaces the collectives by calls of the plugin."""

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        edit = Edit(model)
        found = [node for node in model.graph if is_op(node, "DistCollective", DIST_DOMAIN)]
        for node in found:
            values = edit.insert(
                node,
                ALL_REDUCE_PLUGIN,
                list(node.inputs),
                f"{node.name}.plugin",
                domain=DIST_DOMAIN,
                plugin_version="1",
                plugin_namespace="",
                nb_rank=node.attributes[RANKS_ATTRIBUTE].as_int(),
            )
            edit.replace(node, values)
        return bool(found)

    def ensures(self, model: ir.Model) -> None:
        """No collective is left."""
        assert not any(is_op(node, "DistCollective", DIST_DOMAIN) for node in model.graph)
