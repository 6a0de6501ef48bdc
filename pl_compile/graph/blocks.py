"""The parts of a decoder as pure functions: values in, values out.

Shapes use the words `batch seq hidden heads head_dim ffn`. Activations are float
`[batch, seq, hidden]` unless said otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from pl_compile.graph.builder import DIST_DOMAIN, GraphBuilder
from pl_compile.graph.operators import ATTENTION, PLC_DOMAIN, AttentionSettings

# A cache pair of one layer: float [batch, kv_heads, capacity, head_dim] each.
Cache = tuple[ir.Value, ir.Value]


def linear(g: GraphBuilder, x: ir.Value, name: str) -> ir.Value:
    """`x @ weight + bias`, the bias where the base has one."""
    y = g.op("MatMul", [x, g.weight(f"{name}.weight")], name)
    if g.has_weight(f"{name}.bias"):
        y = g.op("Add", [y, g.weight(f"{name}.bias")], f"{name}.add_bias")
    return y


def row_parallel(g: GraphBuilder, x: ir.Value, name: str, ranks: int) -> ir.Value:
    """`linear` of a weight whose rows are divided among ranks: a sum over all of them.

    Each rank has its part of `x` and of the weight; the bias is added once, to the sum.
    """
    y = g.op("MatMul", [x, g.weight(f"{name}.weight")], name)
    if ranks > 1:
        # TensorRT takes a collective of one rank for one that is misspelt, and refuses it.
        y = g.op(
            "DistCollective",
            [y],
            f"{name}.all_reduce",
            domain=DIST_DOMAIN,
            collective_operation="all_reduce",
            reduce_op="sum",
            root=-1,
            nb_rank=ranks,
        )
    if g.has_weight(f"{name}.bias"):
        y = g.op("Add", [y, g.weight(f"{name}.bias")], f"{name}.add_bias")
    return y


def rms_norm(g: GraphBuilder, x: ir.Value, name: str, eps: float) -> ir.Value:
    """Root mean square normalisation (arXiv:1910.07467)."""
    return g.op("RMSNormalization", [x, g.weight(f"{name}.weight")], name, axis=-1, epsilon=eps)


def layer_norm(g: GraphBuilder, x: ir.Value, name: str, eps: float) -> ir.Value:
    """Layer normalisation (arXiv:1607.06450)."""
    inputs = [x, g.weight(f"{name}.weight"), g.weight(f"{name}.bias")]
    return g.op("LayerNormalization", inputs, name, axis=-1, epsilon=eps)


@dataclass(frozen=True)
class Rotary:
    """Rotary positions (arXiv:2104.09864).

    Attributes:
        positions: int64 `[batch, seq]`, as `token_positions` gives them.
        cos: float `[capacity, head_dim / 2]`.
        sin: as `cos`.
    """

    positions: ir.Value
    cos: ir.Value
    sin: ir.Value


def attention(
    g: GraphBuilder,
    settings: AttentionSettings,
    parts: Sequence[ir.Value],
    cache: Cache,
    past_lengths: ir.Value,
    name: str,
    *,
    rotary: Rotary | None = None,
    norms: tuple[ir.Value, ir.Value] | None = None,
) -> tuple[ir.Value, Cache]:
    """Writes keys and values into the cache and attends causally over what it holds.

    Args:
        g: the graph.
        settings: heads, scale and what else the layer computes.
        parts: query `[batch, seq, heads * head_dim]`, key and value
            `[batch, seq, kv_heads * head_dim]`.
        cache: the layer's cache before this step.
        past_lengths: int64 `[batch]`; row `b` is written from entry `past_lengths[b]` on.
        name: of the attention.
        rotary: how queries and keys are rotated; None where positions are learned.
        norms: weights `[head_dim]` of the norms of queries and of keys, if they have some.

    Returns:
        `[batch, seq, heads * head_dim]`, and the cache after this step.
    """
    turned = (None,) * 3 if rotary is None else (rotary.positions, rotary.cos, rotary.sin)
    optional = _without_end([*turned, *(norms or ())])
    y, present_key, present_value = g.ops(
        ATTENTION,
        [*parts, *cache, past_lengths, *optional],
        f"{name}.attend",
        domain=PLC_DOMAIN,
        outputs=3,
        **settings.attributes,
    )
    return y, (present_key, present_value)


def _without_end(inputs: list[ir.Value | None]) -> list[ir.Value | None]:
    """The inputs up to the last that is given."""
    given = [index for index, value in enumerate(inputs) if value is not None]
    return inputs[: given[-1] + 1] if given else []


def gated_mlp(g: GraphBuilder, x: ir.Value, name: str, ranks: int, gate: str) -> ir.Value:
    """`down(gate(x) * up(x))`, where `gate` is `SWIGLU` or `GEGLU` (arXiv:2002.05202)."""
    halves = [linear(g, x, f"{name}.{part}") for part in ("gate", "up")]
    product = g.op(gate, halves, f"{name}.product", domain=PLC_DOMAIN)
    return row_parallel(g, product, f"{name}.down", ranks)


def gelu_mlp(g: GraphBuilder, x: ir.Value, name: str, ranks: int) -> ir.Value:
    """`down(gelu(up(x)))` with the tanh form of GELU (arXiv:1606.08415)."""
    inner = g.op("Gelu", [linear(g, x, f"{name}.up")], f"{name}.gelu", approximate="tanh")
    return row_parallel(g, inner, f"{name}.down", ranks)


def token_positions(g: GraphBuilder, input_ids: ir.Value, past_lengths: ir.Value) -> ir.Value:
    """int64 `[batch, seq]`: how many tokens stand before each one, virtual ones counted."""
    seq = g.op("Shape", [input_ids], "seq", start=1, end=2)
    scalar = g.op("Squeeze", [seq, g.integers(0)], "seq.scalar")
    zero = g.op("Squeeze", [g.integers(0), g.integers(0)], "zero")
    one = g.op("Squeeze", [g.integers(1), g.integers(0)], "one")
    steps = g.op("Range", [zero, scalar, one], "steps")
    past = g.op("Unsqueeze", [past_lengths, g.integers(1)], "past.column")
    return g.op("Add", [past, steps], "positions")


def last_token(g: GraphBuilder, x: ir.Value, last_index: ir.Value) -> ir.Value:
    """`[batch, seq, hidden]` to `[batch, hidden]`: the row's last real token."""
    index = g.op("Unsqueeze", [last_index, g.integers(1)], "last_index.column")
    return g.op("GatherND", [x, index], "last_token", batch_dims=1)
