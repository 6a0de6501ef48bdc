"""A sum and the normalisation after it become one kernel of ONNX Runtime's.

before:  s = Add(x, y)
         n = RMSNormalization(s, weight)
after:   n, , , s = com.microsoft::SkipSimplifiedLayerNormalization(x, y, weight)

before:  n = LayerNormalization(Add(x, y), weight, bias)
after:   n, , , s = com.microsoft::SkipLayerNormalization(x, y, weight, bias)
"""

from dataclasses import dataclass

import onnx_ir as ir

from pl_compile.graph.operators import ORT_DOMAIN
from pl_compile.passes.edit import Edit, is_op
from pl_compile.passes.graph_pass import GraphPass

_FUSED = {
    "RMSNormalization": "SkipSimplifiedLayerNormalization",
    "LayerNormalization": "SkipLayerNormalization",
}


@dataclass(frozen=True)
class FuseResidualNorms(GraphPass):
    """Fuses every sum that one normalisation follows."""

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        edit = Edit(model)
        changed = False
        for node in list(model.graph):
            if node.op_type not in _FUSED or node.domain or node.inputs[0] is None:
                continue
            total = node.inputs[0].producer()
            if total is None or not is_op(total, "Add") or _is_bias(total):
                continue
            x, y = total.inputs
            outputs = edit.insert(
                total,
                _FUSED[node.op_type],
                [x, y, *node.inputs[1:]],
                f"{node.name}.skip",
                domain=ORT_DOMAIN,
                outputs=4,
                epsilon=node.attributes["epsilon"].as_float(),
            )
            edit.replace(node, [outputs[0]])
            edit.replace(total, [outputs[3]])
            changed = True
        if changed:
            model.graph.opset_imports[ORT_DOMAIN] = 1
        return changed


def _is_bias(total: ir.Node) -> bool:
    return any(value is not None and value.is_initializer() for value in total.inputs)
