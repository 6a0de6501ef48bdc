"""The Llama family, top to bottom (arXiv:2302.13971; grouped queries arXiv:2305.13245)."""

from math import sqrt

import numpy as np
import onnx_ir as ir

from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.graph.blocks import (
    Cache,
    Rotary,
    attention,
    gated_mlp,
    linear,
    rms_norm,
    row_parallel,
)
from pl_compile.graph.builder import GraphBuilder
from pl_compile.graph.operators import SWIGLU, AttentionSettings


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
        y = gated_mlp(g, h, f"{layer}.mlp", contract.ranks, SWIGLU)
        x = g.op("Add", [x, y], f"{layer}.mlp.residual")
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
    settings = AttentionSettings(config.heads, config.kv_heads, 1 / sqrt(config.head_dim))
    rotary = Rotary(positions, *_rotary_tables(g, config, contract))
    parts = [linear(g, x, f"{name}.{part}") for part in "qkv"]
    y, present = attention(g, settings, parts, cache, past_lengths, name, rotary=rotary)
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
