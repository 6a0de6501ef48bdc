"""The operators that passes write in place of those of the main graph (`operators.py`).

w = plc::DequantizeBlocks(codes, scales, lows; axis=, block_size=)

    What DequantizeLinear is to weights without offsets. `QuantizeWeights` writes it, and
    `UseOwnProducts` reads it: no finished graph holds one.

y = plc::BlockProduct(x, codes, steps, lows?, tiles?; bits=, block=, columns=, gated=)
rows = plc::BlockLookup(codes, steps, ids, lows?; bits=, block=, columns=)
y, present_key, present_value = plc::PackedAttention(
    query, past_key, past_value, past_lengths, cos?, sin?, q_norm?, k_norm?; as of Attention)
y, present_key, present_value = plc::PagedAttention(
    query, past_key, past_value, positions, token_rows, block_tables, prefixes, parents,
    cos?, sin?, q_norm?, k_norm?; as of Attention, and layer=)
plc::PagedAttention16, the same with caches of float16

    What the kernels in `runtime/kernels/` compute: `kernels.h` has the layouts of codes, steps
    (scales) and lows (offsets), `ops.cc` the types. `query` holds queries, keys and values side
    by side, as in the packed form of `plc::Attention`. `tiles` are the tiles of y that are
    computed, int64 in ascending order; no element: all. The body computes all.
"""

from pl_compile.graph.operators import GEGLU, SWIGLU

DEQUANTIZE_BLOCKS = "DequantizeBlocks"

BLOCK_PRODUCT = "BlockProduct"
BLOCK_PRODUCT_INPUTS = ("x", "codes", "steps", "lows", "tiles")

BLOCK_LOOKUP = "BlockLookup"
BLOCK_LOOKUP_INPUTS = ("codes", "steps", "ids", "lows")

PACKED_ATTENTION = "PackedAttention"
PACKED_ATTENTION_INPUTS = (
    *("query", "past_key", "past_value", "past_lengths"),
    *("cos", "sin", "q_norm", "k_norm"),
)

PAGED_ATTENTION = "PagedAttention"
PAGED_ATTENTION_16 = "PagedAttention16"
PAGED_ATTENTION_INPUTS = (
    *("query", "past_key", "past_value", "positions"),
    *("token_rows", "block_tables", "prefixes", "parents"),
    *("cos", "sin", "q_norm", "k_norm"),
)

# What `gated` is where a product's columns are gate and up, which the kernel joins: `Gate` there.
GATES = {1: SWIGLU, 2: GEGLU}
