"""An attention becomes one kernel of ONNX Runtime's.

before:  y, pk, pv = plc::Attention(qkv, , , past_key, past_value, past_lengths,
                                    positions, cos, sin, window=64, ...)
after:   y, pk, pv = com.microsoft::GroupQueryAttention(qkv, , , past_key, past_value,
                                                        last entries, longest row, cos, sin,
                                                        local_window_size=64, ...)

Without rotary positions cos and sin are left out; where queries, keys and values are several
products, they are given each. The kernel counts positions from the entries itself. Every row is
computed over its own entries, so its numbers do not depend on its neighbours. ONNX Runtime's kernel
takes several tokens after a filled cache for one row at a time only.
"""

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from pl_compile.config.contract import INPUT_IDS, PAST_LENGTHS
from pl_compile.graph.builder import int64_vector
from pl_compile.graph.operators import (
    ATTENTION,
    ORT_DOMAIN,
    PLC_DOMAIN,
    AttentionSettings,
    attention_inputs,
    cache_sizes,
)
from pl_compile.passes.edit import Edit, is_op
from pl_compile.passes.graph_pass import GraphPass

_BEFORE = ("query", "key", "value", "past_key", "past_value")


@dataclass(frozen=True)
class UseGroupedAttention(GraphPass):
    """Replaces every attention but those with norms of heads, which the kernel does not have."""

    def rewrite(self, model: ir.Model) -> bool:
        """See the module."""
        edit = Edit(model)
        calls = _calls(model)
        if not calls:
            return False
        lengths = _lengths(edit, model)
        for call in calls:
            edit.replace(call, _insert(edit, call, lengths))
        edit.drop_unused()
        model.graph.opset_imports[ORT_DOMAIN] = 1
        return True

    def ensures(self, model: ir.Model) -> None:
        """None is left that the kernel takes."""
        assert not _calls(model)


def _calls(model: ir.Model) -> list[ir.Node]:
    calls = [node for node in model.graph if is_op(node, ATTENTION, PLC_DOMAIN)]
    return [
        call for call in calls if attention_inputs(call).keys().isdisjoint({"q_norm", "k_norm"})
    ]


def _insert(edit: Edit, call: ir.Node, lengths: tuple[ir.Value, ir.Value]) -> tuple[ir.Value, ...]:
    given = attention_inputs(call)
    _, head_dim = cache_sizes(given["past_key"])
    rotary = [given[name] for name in ("cos", "sin") if name in given]
    return edit.insert(
        call,
        "GroupQueryAttention",
        [*(given.get(name) for name in _BEFORE), *lengths, *rotary],
        f"{call.name}.grouped",
        domain=ORT_DOMAIN,
        outputs=3,
        do_rotary=int(bool(rotary)),
        **_attributes(AttentionSettings.of(call, head_dim), head_dim),
    )


def _attributes(settings: AttentionSettings, head_dim: int) -> dict[str, Any]:
    """As the kernel names them, without what it takes by default."""
    attributes: dict[str, Any] = {
        "num_heads": settings.heads,
        "kv_num_heads": settings.kv_heads,
    }
    if not settings.has_usual_scale(head_dim):
        attributes["scale"] = settings.scale
    if settings.window:
        attributes["local_window_size"] = settings.window
    if settings.softcap:
        attributes["softcap"] = settings.softcap
    return attributes


def _lengths(edit: Edit, model: ir.Model) -> tuple[ir.Value, ir.Value]:
    """int32 `[batch]`, each row's last entry after the step; int32 `[1]`, the longest's entries."""
    inputs = {value.name: value for value in model.graph.inputs}
    first = next(iter(model.graph))
    one = edit.initializer(*int64_vector(1))
    (seq,) = edit.insert(first, "Shape", [inputs[INPUT_IDS]], "grouped.seq", start=1, end=2)
    (total,) = edit.insert(first, "Add", [inputs[PAST_LENGTHS], seq], "grouped.entries")
    (last,) = edit.insert(first, "Sub", [total, one], "grouped.last_entry")
    (longest,) = edit.insert(first, "ReduceMax", [total], "grouped.longest", keepdims=1)
    kind = ir.DataType.INT32
    (last,) = edit.insert(first, "Cast", [last], "grouped.last_entry.int32", to=kind)
    (longest,) = edit.insert(first, "Cast", [longest], "grouped.longest.int32", to=kind)
    return last, longest
