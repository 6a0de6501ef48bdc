"""The GPT-2 family, top to bottom (Radford et al. 2019)."""

from math import sqrt

import onnx_ir as ir

from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.graph.blocks import (
    Cache,
    attention,
    gelu_mlp,
    layer_norm,
    linear,
    row_parallel,
)
from pl_compile.graph.builder import GraphBuilder
from pl_compile.graph.operators import AttentionSettings


def gpt2_layers(
    g: GraphBuilder,
    config: DecoderConfig,
    contract: GraphContract,
    x: ir.Value,
    positions: ir.Value,
    past_lengths: ir.Value,
    caches: list[Cache],
) -> tuple[ir.Value, list[Cache]]:
    """All blocks; returns the residual stream and the caches after this step."""
    learned = g.op("Gather", [g.weight("positions.weight"), positions], "position_embedding")
    x = g.op("Add", [x, learned], "position_embedding.add")
    settings = AttentionSettings(config.heads, config.kv_heads, 1 / sqrt(config.head_dim))
    presents = []
    for i, cache in enumerate(caches):
        layer = f"layers.{i}"
        name = f"{layer}.attention"
        h = layer_norm(g, x, f"{layer}.attention_norm", config.norm_eps)
        parts = [linear(g, h, f"{name}.{part}") for part in "qkv"]
        y, present = attention(g, settings, parts, cache, past_lengths, name)
        y = row_parallel(g, y, f"{name}.o", contract.ranks)
        x = g.op("Add", [x, y], f"{name}.residual")
        h = layer_norm(g, x, f"{layer}.mlp_norm", config.norm_eps)
        x = g.op(
            "Add", [x, gelu_mlp(g, h, f"{layer}.mlp", contract.ranks)], f"{layer}.mlp.residual"
        )
        presents.append(present)
    return x, presents


def gpt2_final_norm(g: GraphBuilder, config: DecoderConfig, x: ir.Value) -> ir.Value:
    """The normalisation before the head."""
    return layer_norm(g, x, "final_norm", config.norm_eps)
