"""The Llama family, top to bottom (arXiv:2302.13971; grouped queries arXiv:2305.13245)."""

import numpy as np
import onnx_ir as ir

from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.graph.blocks import (
    Cache,
    cached_attention,
    gated_mlp,
    linear,
    rms_norm,
    row_parallel,
    split_heads,
)
from pl_compile.graph.builder import GraphBuilder


def llama_layers(
    g: GraphBuilder,
    config: DecoderConfig,
    contract: GraphContract,
    x: ir.Value,
    positions: ir.Value,
    past_lengths: ir.Value,
    caches: list[Cache],
) -> tuple[ir.Value, list[Cache]]:
    """All blocks; returns the residual stream and the caches after this step."""
    presents = []
    for i, cache in enumerate(caches):
        layer = f"layers.{i}"
        h = rms_norm(g, x, f"{layer}.attention_norm", config.norm_eps)
        y, present = _attention(g, config, contract, h, positions, past_lengths, cache, layer)
        x = g.op("Add", [x, y], f"{layer}.attention.residual")
        h = rms_norm(g, x, f"{layer}.mlp_norm", config.norm_eps)
        x = g.op(
            "Add", [x, gated_mlp(g, h, f"{layer}.mlp", contract.ranks)], f"{layer}.mlp.residual"
        )
        presents.append(present)
    return x, presents


def llama_final_norm(g: GraphBuilder, config: DecoderConfig, x: ir.Value) -> ir.Value:
    """The normalisation before the head."""
    return rms_norm(g, x, "final_norm", config.norm_eps)


def _attention(
    g: GraphBuilder,
    config: DecoderConfig,
    contract: GraphContract,
    x: ir.Value,
    positions: ir.Value,
    past_lengths: ir.Value,
    cache: Cache,
    layer: str,
) -> tuple[ir.Value, Cache]:
    name = f"{layer}.attention"
    cos, sin = _rotary_tables(g, config, contract)

    def heads(part: str, count: int) -> ir.Value:
        full = f"{name}.{part}"
        return split_heads(g, linear(g, x, full), count, config.head_dim, full)

    def rotated(value: ir.Value, part: str) -> ir.Value:
        return g.op("RotaryEmbedding", [value, cos, sin, positions], f"{name}.{part}.rotary")

    query = rotated(heads("q", config.heads), "q")
    key = rotated(heads("k", config.kv_heads), "k")
    value = heads("v", config.kv_heads)
    y, present = cached_attention(g, config, query, key, value, cache, past_lengths, name)
    return row_parallel(g, y, f"{name}.o", contract.ranks), present


def _rotary_tables(
    g: GraphBuilder, config: DecoderConfig, contract: GraphContract
) -> tuple[ir.Value, ir.Value]:
    """Cos and sin, float `[capacity, head_dim / 2]` (arXiv:2104.09864)."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    angles = np.outer(np.arange(contract.capacity), config.rope_theta**-exponents)
    return (
        g.initializer("rotary.cos", np.cos(angles).astype(np.float32)),
        g.initializer("rotary.sin", np.sin(angles).astype(np.float32)),
    )
