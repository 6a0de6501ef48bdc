"""What `plc::PagedAttention` computes, in standard operators.

    block, place   = block_tables[token_rows][positions / 16], positions % 16
    present_key    = ScatterND(past_key, (block, head, place), k)
    keys           = Gather(present_key, block_tables[token_rows]), in a row: as many for each token
    y              = Attention(q, keys, values), each token by itself, up to its own entry

`plc::PagedAttention16` casts what it writes to float16, and what it reads to float32.

Each token of a step is a row of its own here, which reads its keys anew. That is slow, and no
number of it depends on what stands beside. Prefixes that kernels hold, and branches, are for the
kernels: a runtime without them gives no prefix and no parents (`runtime/engines/ragged.py`).
"""

import numpy as np
import onnx_ir as ir

from pl_compile.config.kernel_layout import ENTRIES_OF_BLOCK
from pl_compile.exporters.bodies import SPAN, Operands, mask_of, onnx_attention, split_heads
from pl_compile.exporters.function_body import FunctionBody
from pl_compile.graph.kernel_operators import PAGED_ATTENTION_16, PAGED_ATTENTION_INPUTS
from pl_compile.graph.operators import AttentionSettings, cache_sizes


def paged_attention_body(call: ir.Node) -> ir.Function:
    """The body of a call."""
    body = FunctionBody(call, PAGED_ATTENTION_INPUTS)
    given, op, integers = body.inputs, body.op, body.integers
    past_key = call.inputs[PAGED_ATTENTION_INPUTS.index("past_key")]
    assert past_key is not None
    _, head_dim = cache_sizes(past_key)
    # What a call has beside the settings is for the kernel: the number of its layer.
    settings = AttentionSettings.of(call, head_dim)
    query, *own = split_heads(body, settings, head_dim, given["positions"])
    positions = op("Reshape", [given["positions"], integers(-1)], "token_positions")
    size = integers(ENTRIES_OF_BLOCK)
    tables = op("Gather", [given["block_tables"], given["token_rows"]], "tables", axis=0)
    number = op("Unsqueeze", [op("Div", [positions, size], "number"), integers(1)], "number.column")
    block = op("GatherElements", [tables, number], "block", axis=1)
    place = op("Unsqueeze", [op("Mod", [positions, size], "place"), integers(1)], "place.column")
    where = _places(body, settings.kv_heads, block, place)

    # All rows attend to as many entries: the longest row's, rounded up so that sums do not depend
    # on how long it is (`bodies.py`).
    lengths = op("Add", [positions, integers(1)], "lengths")
    longest = op("ReduceMax", [lengths], "longest", keepdims=1)
    up = op("Add", [longest, integers(SPAN - 1)], "up")
    spans = op("Div", [up, integers(SPAN)], "spans")
    live = op("Mul", [spans, integers(SPAN // ENTRIES_OF_BLOCK)], "live_blocks")
    tables = op("Slice", [tables, integers(0), live, integers(1)], "live_tables")

    in_halves = call.op_type == PAGED_ATTENTION_16
    presents, lives = [], []
    for name, new in zip(("key", "value"), own, strict=True):
        by_token = op("Transpose", [new], f"{name}.by_token", perm=[0, 2, 1, 3])
        flat = op("Squeeze", [by_token, integers(0)], f"{name}.flat")
        if in_halves:
            flat = op("Cast", [flat], f"{name}.halves", to=ir.DataType.FLOAT16)
        present = op("ScatterND", [given[f"past_{name}"], where, flat], f"present_{name}")
        blocks = op("Gather", [present, tables], f"{name}.blocks", axis=0)
        in_order = op("Transpose", [blocks], f"{name}.in_order", perm=[0, 2, 1, 3, 4])
        shape = integers(0, 0, -1, head_dim)
        if in_halves:
            in_order = op("Cast", [in_order], f"{name}.floats", to=ir.DataType.FLOAT)
        joined = op("Reshape", [in_order, integers(0, 0, -1)], f"{name}.joined")
        lives.append(op("Reshape", [joined, shape], f"live_{name}"))
        presents.append(present)
    each = op("Transpose", [query], "query.by_token", perm=[2, 1, 0, 3])
    column = op("Unsqueeze", [positions, integers(1)], "positions.column")
    keys, values = lives
    operands = Operands(body, settings, 0, head_dim, each, keys, values, column, lengths)
    if settings.window:
        y = onnx_attention(operands, keys, values, mask_of(operands, _numbers(body, keys)))
    else:
        y = onnx_attention(operands, keys, values, None, lengths)
    y = op("Transpose", [y], "seq_first", perm=[2, 0, 1, 3])
    y = op("Reshape", [y, integers(0, 0, settings.heads * head_dim)], "y")
    return body.function(y, *presents)


def _numbers(body: FunctionBody, keys: ir.Value) -> ir.Value:
    """int64 `[1, 1, 1, entries]`: the numbers of the entries of `[tokens, heads, entries, any]`."""
    op, integers = body.op, body.integers
    count = op("Shape", [keys], "live_entries", start=2, end=3)
    scalar = op("Squeeze", [count, integers(0)], "live_entries.scalar")
    zero = body.constant("zero", np.asarray(0, np.int64))
    one = body.constant("one", np.asarray(1, np.int64))
    numbers = op("Range", [zero, scalar, one], "numbers")
    return op("Unsqueeze", [numbers, integers(0, 1, 2)], "entries")


def _places(body: FunctionBody, kv_heads: int, block: ir.Value, place: ir.Value) -> ir.Value:
    """int64 `[tokens, kv_heads, 3]`: where ScatterND writes each token's heads."""
    op, integers = body.op, body.integers
    tokens = op("Shape", [block], "tokens", start=0, end=1)
    shape = op("Concat", [tokens, integers(kv_heads), integers(1)], "places.shape", axis=0)
    heads = op("Unsqueeze", [integers(*range(kv_heads)), integers(0, 2)], "heads")
    columns = [
        op("Unsqueeze", [block, integers(2)], "block.wide"),
        heads,
        op("Unsqueeze", [place, integers(2)], "place.wide"),
    ]
    expanded = [
        op("Expand", [column, shape], f"places.{index}") for index, column in enumerate(columns)
    ]
    return op("Concat", expanded, "places", axis=2)
