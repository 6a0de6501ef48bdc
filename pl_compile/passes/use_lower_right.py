"""TensorRT's attention is told each row's length, in place of a mask.

before:  y = trt::TRT_Attention(q, k, v, mask)
after:   y = trt::TRT_Attention(q, k, v, , , past_lengths + seq, causal_kind="lower_right")

The last token of a step then sees all entries of its row, and each token before it one entry less.
The nodes are in the functions of a model, which an earlier release may have written. TensorRT's
documentation does not spell out what a length means there: the form is used only where a test on
the GPU gave the right numbers (`driver/build_plans.py`). It cannot say a window: attentions with
one keep their masks.
"""

from dataclasses import dataclass

import onnx_ir as ir

from pl_compile.graph.operators import PLC_DOMAIN, TRT_DOMAIN
from pl_compile.passes.edit import drop_unused_nodes, is_op
from pl_compile.passes.graph_pass import GraphPass

TRT_ATTENTION = "TRT_Attention"

# The place of the mask among its inputs.
_MASK = 3


@dataclass(frozen=True)
class UseLowerRight(GraphPass):
    """Replaces the mask of every attention without a window."""

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        changed = False
        for name in sorted({call.op_identifier() for call in _calls_without_window(model)}):
            function = model.functions[name]
            for node in list(function):
                if is_op(node, TRT_ATTENTION, TRT_DOMAIN):
                    _replace_mask(function, node)
                    drop_unused_nodes(function)
                    changed = True
        return changed

    def ensures(self, model: ir.Model) -> None:
        """No call without a window reads a mask; one with a softcap has no TRT_Attention at all."""
        left = [call.name for call in _calls_without_window(model) if _is_masked(model, call)]
        assert not left, f"{left} keep their masks"


def masked_attentions(model: ir.Model) -> int:
    """How many calls of a model attend by a mask."""
    return sum(_is_masked(model, call) for call in _calls(model))


def _calls(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.domain == PLC_DOMAIN]


def _calls_without_window(model: ir.Model) -> list[ir.Node]:
    return [call for call in _calls(model) if not call.attributes.get_int("window", 0)]


def _is_masked(model: ir.Model, call: ir.Node) -> bool:
    nodes = model.functions[call.op_identifier()]
    return any(is_op(node, TRT_ATTENTION, TRT_DOMAIN) and _mask_of(node) for node in nodes)


def _mask_of(node: ir.Node) -> ir.Value | None:
    return node.inputs[_MASK] if len(node.inputs) > _MASK else None


def _replace_mask(function: ir.Function, node: ir.Node) -> None:
    (past_lengths,) = (value for value in function.inputs if value.name == "past_lengths")
    seq = ir.node("Shape", [node.inputs[0]], {"start": 2, "end": 3}, name="step_tokens")
    total = ir.node("Add", [past_lengths, seq.outputs[0]], name="entries_after")
    narrow = ir.node("Cast", [total.outputs[0]], {"to": ir.DataType.INT32}, name="entries_int32")
    for each in (seq, total, narrow):
        each.outputs[0].name = each.name
        function.insert_before(node, each)
    node.resize_inputs(6)
    node.replace_input_with(_MASK, None)
    node.replace_input_with(5, narrow.outputs[0])
    node.attributes["causal_kind"] = ir.AttrString("causal_kind", "lower_right")
