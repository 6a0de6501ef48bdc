"""What the operators of the main graph compute, in standard operators: bodies of their calls.

plc::Attention (`pl_compile/graph/operators.py`):

    q, k, v       = Split(qkv, if packed); of each head RMSNormalization?, RotaryEmbedding?
    present_key   = TensorScatter(past_key, k, past_lengths, axis=2)
    present_value = TensorScatter(past_value, v, past_lengths, axis=2)
    y             = attend(q, present_key, present_value), its heads joined

Each target says for itself how it attends. For ONNX Runtime, `attend` is:

    lengths = past_lengths + seq
    span    = max(lengths), rounded up
    output  = Attention(q, present_key[:, :, :span], present_value[:, :, :span],
                        nonpad_kv_seqlen=lengths, is_causal=1)

and with a window, in place of the lengths, a mask of what each token sees. ONNX Runtime's Attention
for CPU works over the whole cache whatever the lengths say; the slice keeps it to the longest live
row. Its kernels take several entries at once, and add up in another order where the span is no
multiple of that many. So the span is rounded up to a multiple: then a row's numbers do not depend
on its neighbours' lengths, to the last bit, and no activation is rounded another way. The kernels
for CUDA read no further than a row's length: there is no slice for them.

`nonpad_kv_seqlen` with `is_causal` is right here and silently wrong in TensorRT, which therefore
attends in another way (`tensorrt/exporter.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from pl_compile.exporters.function_body import FunctionBody
from pl_compile.graph.operators import (
    ATTENTION,
    ATTENTION_INPUTS,
    GEGLU,
    SWIGLU,
    AttentionSettings,
    cache_sizes,
)
from pl_compile.passes.link_functions import Library

# The span is a multiple of so many entries. The kernels of Attention take fewer at once.
SPAN = 64


@dataclass(frozen=True)
class Operands:
    """What an `attend` works on, once heads are split and the cache is written.

    Attributes:
        body: of the call.
        settings: of the call.
        capacity: entries of the cache.
        head_dim: width of a head.
        query: `[batch, heads, seq, head_dim]`.
        key: the keys to attend to, as the target's `Store` gives them: by default the cache after
            this step, `[batch, kv_heads, capacity, head_dim]`.
        value: as `key`.
        positions: int64 `[batch, seq]`: the last entry that each token sees.
        lengths: int64 `[batch]`: entries of each row after this step.
    """

    body: FunctionBody
    settings: AttentionSettings
    capacity: int
    head_dim: int
    query: ir.Value
    key: ir.Value
    value: ir.Value
    positions: ir.Value
    lengths: ir.Value


# Gives `[batch, heads, seq, head_dim]`.
Attend = Callable[[Operands], ir.Value]


# How a step's keys (or values) are kept. Takes "key" or "value", the cache before the step, the
# step's own entries and past_lengths. Gives what is attended to, and what the graph gives out.
Store = Callable[[FunctionBody, str, ir.Value, ir.Value, ir.Value], tuple[ir.Value, ir.Value]]


def scattered(
    body: FunctionBody, name: str, past: ir.Value, new: ir.Value, past_lengths: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """The cache with the step's entries written into it: attended to, and given out."""
    present = body.op("TensorScatter", [past, new, past_lengths], f"present_{name}", axis=2)
    return present, present


def library_of(attend: Attend, store: Store = scattered) -> Library:
    """The bodies of all operators of the main graph."""
    return {
        ATTENTION: lambda call: attention_body(call, ATTENTION_INPUTS, attend, store),
        SWIGLU: gate_body,
        GEGLU: gate_body,
    }


def attention_body(
    call: ir.Node, names: tuple[str, ...], attend: Attend, store: Store = scattered
) -> ir.Function:
    """The body of an attention.

    Args:
        call: the node.
        names: of its inputs, in their order: those of `ATTENTION_INPUTS`. Where key and value are
            left out, the query holds all three, side by side; where positions are left out, they
            are counted from past_lengths.
        attend: how the target attends.
        store: how the target keeps the step's keys and values.
    """
    body = FunctionBody(call, names)
    given = body.inputs
    past_key = call.inputs[names.index("past_key")]
    assert past_key is not None
    capacity, head_dim = cache_sizes(past_key)
    settings = AttentionSettings.of(call, head_dim)
    past_lengths = given["past_lengths"]
    seq = body.op("Shape", [given["query"]], "seq", start=1, end=2)
    positions = given.get("positions") or _positions(body, seq, past_lengths)
    query, key, value = split_heads(body, settings, head_dim, positions)
    key, present_key = store(body, "key", given["past_key"], key, past_lengths)
    value, present_value = store(body, "value", given["past_value"], value, past_lengths)
    lengths = body.op("Add", [past_lengths, seq], "lengths")
    y = attend(Operands(body, settings, capacity, head_dim, query, key, value, positions, lengths))
    y = body.op("Transpose", [y], "seq_first", perm=[0, 2, 1, 3])
    width = settings.heads * head_dim
    y = body.op("Reshape", [y, body.integers(0, 0, width)], "y")
    return body.function(y, present_key, present_value)


def split_heads(
    body: FunctionBody, settings: AttentionSettings, head_dim: int, positions: ir.Value
) -> list[ir.Value]:
    """Query, key and value of each head, `[batch, heads, seq, head_dim]`, normed and rotated."""
    given = body.inputs
    heads = (settings.heads, settings.kv_heads, settings.kv_heads)
    parts = [given.get(name) for name in ("query", "key", "value")]
    if parts[1] is None:
        widths = body.integers(*(count * head_dim for count in heads))
        parts = list(body.ops("Split", [given["query"], widths], ["q", "k", "v"], axis=-1))
    tables = [given["cos"], given["sin"], positions] if "cos" in given else []
    result = []
    for name, part, count in zip("qkv", parts, heads, strict=True):
        shape = body.integers(0, 0, count, head_dim)
        x = body.op("Reshape", [part, shape], f"{name}.split_heads")
        if f"{name}_norm" in given:
            norm = [x, given[f"{name}_norm"]]
            epsilon = settings.epsilon
            x = body.op("RMSNormalization", norm, f"{name}.norm", axis=-1, epsilon=epsilon)
        x = body.op("Transpose", [x], f"{name}.heads_first", perm=[0, 2, 1, 3])
        if tables and name != "v":
            x = body.op("RotaryEmbedding", [x, *tables], f"{name}.rotary")
        result.append(x)
    return result


def _positions(body: FunctionBody, seq: ir.Value, past_lengths: ir.Value) -> ir.Value:
    scalar = body.op("Squeeze", [seq, body.integers(0)], "seq.scalar")
    zero = body.constant("zero", np.asarray(0, np.int64))
    one = body.constant("one", np.asarray(1, np.int64))
    steps = body.op("Range", [zero, scalar, one], "steps")
    past = body.op("Unsqueeze", [past_lengths, body.integers(1)], "past.column")
    return body.op("Add", [past, steps], "positions.counted")


def mask_of(operands: Operands, entries: ir.Value | None = None) -> ir.Value:
    """Bool `[batch, 1, seq, capacity]`: the entries of the cache that a token sees.

    Args:
        operands: of the call.
        entries: int64 `[1, 1, 1, any]`: their numbers; those of the whole cache if None.
    """
    body, window = operands.body, operands.settings.window
    last = body.op("Unsqueeze", [operands.positions, body.integers(1, 3)], "last_seen")
    if entries is None:
        numbers = np.arange(operands.capacity, dtype=np.int64).reshape(1, 1, 1, -1)
        entries = body.constant("entries", numbers)
    mask = body.op("LessOrEqual", [entries, last], "not_later")
    if window:
        before = body.op("Sub", [last, body.integers(window)], "last_before_window")
        mask = body.op("And", [mask, body.op("Greater", [entries, before], "in_window")], "mask")
    return mask


def attend_to_lengths(operands: Operands) -> ir.Value:
    """How ONNX Runtime on CUDA attends: to as many entries as each row has."""
    if operands.settings.window:
        return onnx_attention(operands, operands.key, operands.value, mask_of(operands))
    return onnx_attention(operands, operands.key, operands.value, None, operands.lengths)


def attend_to_longest(operands: Operands) -> ir.Value:
    """How ONNX Runtime on CPU attends: to the cache, cut to its longest live row."""
    body = operands.body
    longest = body.op("ReduceMax", [operands.lengths], "longest", keepdims=1)
    step = body.integers(SPAN)
    up = body.op("Add", [longest, body.integers(SPAN - 1)], "up")
    span = body.op("Mul", [body.op("Div", [up, step], "spans"), step], "span")

    def live(value: ir.Value, name: str, axis: int) -> ir.Value:
        return body.op("Slice", [value, body.integers(0), span, body.integers(axis)], name)

    key, value = live(operands.key, "live_key", 2), live(operands.value, "live_value", 2)
    if operands.settings.window:
        return onnx_attention(operands, key, value, live(mask_of(operands), "live_mask", 3))
    return onnx_attention(operands, key, value, None, operands.lengths)


def onnx_attention(
    operands: Operands,
    key: ir.Value,
    value: ir.Value,
    mask: ir.Value | None,
    lengths: ir.Value | None = None,
) -> ir.Value:
    """ONNX's Attention, with a mask or with the rows' lengths."""
    settings = operands.settings
    attributes: dict[str, Any] = {}
    if not settings.has_usual_scale(operands.head_dim):
        attributes["scale"] = settings.scale
    if settings.softcap:
        attributes["softcap"] = settings.softcap
    inputs = [operands.query, key, value, mask]
    if lengths is not None:
        inputs += [None, None, lengths]
        attributes["is_causal"] = 1
    return operands.body.op("Attention", inputs, "output", **attributes)


def gate_body(call: ir.Node) -> ir.Function:
    """The body of `plc::SwiGlu` or `plc::GeGlu`."""
    body = FunctionBody(call, ("gate", "up"))
    parts = list(body.inputs.values())
    if len(parts) == 1:
        parts = list(body.ops("Split", parts, ["gate.half", "up.half"], axis=-1, num_outputs=2))
    return body.function(gated(body, call.op_type, *parts))


def gated(body: FunctionBody, op_type: str, gate: ir.Value, up: ir.Value) -> ir.Value:
    """`silu(gate) * up` of `SWIGLU`, `gelu(gate) * up` of `GEGLU` (arXiv:2002.05202)."""
    if op_type == SWIGLU:
        shares = body.op("Sigmoid", [gate], "sigmoid")
        opened = body.op("Mul", [gate, shares], "silu")
    else:
        opened = body.op("Gelu", [gate], "gelu", approximate="tanh")
    return body.op("Mul", [opened, up], "product")
