"""Is a model well formed? What holds between any two passes.

Cheap: the structure only, no weight is looked at. A failure is a mistake of a pass, so it is an
`AssertionError` with what was met.
"""

import onnx
import onnx_ir as ir

from pl_compile.graph.builder import DIST_DOMAIN, OPSET
from pl_compile.graph.operators import ORT_DOMAIN, PLC_DOMAIN

# Domains whose operators ONNX itself does not know: functions of a target, ONNX Runtime's own.
_OTHER_DOMAINS = {PLC_DOMAIN, DIST_DOMAIN, ORT_DOMAIN}


def verify_model(model: ir.Model) -> None:
    """Raises `AssertionError` unless the model is well formed.

    Names are unique, values are made before they are used, and every operator and output exists.
    """
    graph = model.graph
    known: set[ir.Value] = set()
    names: set[str] = set()

    def define(value: ir.Value, where: str) -> None:
        assert value.name, f"{where} has no name"
        assert value.name not in names, f"two values are called '{value.name}'"
        names.add(value.name)
        known.add(value)

    for value in graph.inputs:
        define(value, "a graph input")
    for name, value in graph.initializers.items():
        define(value, "an initializer")
        assert name == value.name, f"the initializer '{value.name}' is kept as '{name}'"
        assert value.const_value is not None, f"the initializer '{name}' has no numbers"
        assert value.uses() or value.is_graph_output(), f"the initializer '{name}' is not used"
    nodes: set[str] = set()
    for node in graph:
        assert node.name, f"a {node.op_type} has no name"
        assert node.name not in nodes, f"two nodes are called '{node.name}'"
        nodes.add(node.name)
        assert _is_known(node, model), f"'{node.name}': no operator {node.domain}::{node.op_type}"
        assert node.domain in model.opset_imports, f"'{node.name}': domain '{node.domain}'"
        for taken in node.inputs:
            assert taken is None or taken in known, (
                f"'{node.name}' takes '{taken.name}' before it is made"
            )
        for value in node.outputs:
            define(value, f"an output of '{node.name}'")
    for value in graph.outputs:
        assert value in known, f"the graph output '{value.name}' is not made"


def _is_known(node: ir.Node, model: ir.Model) -> bool:
    if node.domain in _OTHER_DOMAINS:
        return True
    return node.domain == "" and onnx.defs.has(node.op_type, OPSET, "")
