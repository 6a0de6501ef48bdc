"""Functions are found by their names alone: for parsers that do not look at overloads.

before:  y = plc::Attention:body_1(q, k, v, past_key, past_value, past_lengths, , , , q_norm)
after:   y = plc::Attention_body_1(q, k, v, past_key, past_value, past_lengths, q_norm)

TensorRT's parser takes the first function of a name for all of its overloads, takes a function that
is called like an operator for that operator, and refuses calls that leave inputs out
(`tests/export/test_function_calls.py`).
"""

from dataclasses import dataclass

import onnx_ir as ir

from pl_compile.graph.operators import PLC_DOMAIN
from pl_compile.passes.graph_pass import GraphPass


@dataclass(frozen=True)
class NameFunctions(GraphPass):
    """Renames every function with an overload, and the calls of it."""

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        calls = _calls(model)
        named: dict[ir.OperatorIdentifier, str] = {}
        for call in calls:
            old = call.op_identifier()
            if old not in named:
                named[old] = _rename(model, old, call)
            call.op_type, call.overload = named[old], ""
            _keep_inputs(call, [value for value in call.inputs if value is not None])
        return bool(calls)

    def ensures(self, model: ir.Model) -> None:
        """No overload is left."""
        assert not _calls(model)


def _calls(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.domain == PLC_DOMAIN and node.overload]


def _rename(model: ir.Model, old: ir.OperatorIdentifier, call: ir.Node) -> str:
    """Gives the function its new name, and only the inputs that its calls have."""
    function = model.functions.pop(old)
    pairs = zip(list(function.inputs), call.inputs, strict=True)
    function.inputs[:] = [inner for inner, outer in pairs if outer is not None]
    function.name, function.overload = f"{function.name}_{function.overload}", ""
    model.functions[function.identifier()] = function
    return function.name


def _keep_inputs(call: ir.Node, given: list[ir.Value]) -> None:
    for index, value in enumerate(given):
        call.replace_input_with(index, value)
    call.resize_inputs(len(given))
