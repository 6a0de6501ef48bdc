"""The calls of the `plc` domain get the bodies that a target runs best.

before:  y = plc::SwiGlu(gate_up)
after:   y = plc::SwiGlu:body_1(gate_up)
         and the model holds the function plc::SwiGlu:body_1

A body is made for its call: for its attributes, the inputs that it has and their fixed sizes. Calls
whose bodies are equal share one. The overload of a call names it.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from pl_compile.graph.operators import PLC_DOMAIN
from pl_compile.passes.graph_pass import GraphPass

Library = Mapping[str, Callable[[ir.Node], ir.Function]]


@dataclass(frozen=True)
class LinkFunctions(GraphPass):
    """Adds a function for each kind of call.

    Attributes:
        library: by operator, what makes the body of a call; a body calls no other function.
    """

    library: Library

    def requires(self, model: ir.Model) -> None:
        """The library has a body for every call."""
        missing = {node.op_type for node in _calls(model)} - set(self.library)
        assert not missing, f"no body for {sorted(missing)}"

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        overloads: dict[bytes, str] = {}
        kinds: Counter[str] = Counter()
        for call in _calls(model):
            function = self.library[call.op_type](call)
            content = ir.to_proto(function).SerializeToString(deterministic=True)
            if content not in overloads:
                kinds[call.op_type] += 1
                overloads[content] = function.overload = f"body_{kinds[call.op_type]}"
                model.functions[function.identifier()] = function
            call.overload = overloads[content]
        return bool(overloads)

    def ensures(self, model: ir.Model) -> None:
        """Every call has a body."""
        calls = {call.op_identifier() for call in _calls(model)}
        assert calls <= set(model.functions), f"no body for {calls - set(model.functions)}"


def _calls(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.domain == PLC_DOMAIN]
