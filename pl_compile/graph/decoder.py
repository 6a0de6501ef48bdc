"""The main graph of a base: prompts, family's layers, head. One for every target.

In: `DecoderConfig`, `GraphContract`, weights, and the prompts where they are baked. Out: an ONNX
model that calls operators of the `plc` domain (`operators.py`). A target lowers them
(`exporters/`); only then the model runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pl_compile.config.contract import INPUT_IDS, LAST_INDEX, LOGITS, PAST_LENGTHS, GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.graph.blocks import Cache, last_token, token_positions
from pl_compile.graph.builder import GraphBuilder
from pl_compile.graph.gpt2 import gpt2_final_norm, gpt2_layers
from pl_compile.graph.llama import llama_final_norm, llama_layers
from pl_compile.graph.prompt import embed

# TensorRT stores a tied table twice unless its rows are a multiple of this.
_VOCAB_MULTIPLE = 8


@dataclass(frozen=True)
class Architecture:
    """A row of the table of families."""

    layers: Callable[..., tuple[ir.Value, list[Cache]]]
    final_norm: Callable[[GraphBuilder, DecoderConfig, ir.Value], ir.Value]


ARCHITECTURES = {
    "llama": Architecture(llama_layers, llama_final_norm),
    "gpt2": Architecture(gpt2_layers, gpt2_final_norm),
}


def build_decoder(
    config: DecoderConfig,
    contract: GraphContract,
    weights: Mapping[str, NDArray[Any]],
    baked: NDArray[np.float32] | None = None,
) -> ir.Model:
    """The main graph.

    Args:
        config: the base.
        contract: names and sizes of inputs and outputs.
        weights: float32 arrays by our names (`weights.names`).
        baked: float32 `[tasks, rows, hidden]`, zero-padded; None where prompts are an input.
    """
    architecture = ARCHITECTURES[config.family]
    g = GraphBuilder(_with_padded_vocab(weights))
    input_ids = g.input(INPUT_IDS, ir.DataType.INT64, ["batch", "seq"])
    past_lengths = g.input(PAST_LENGTHS, ir.DataType.INT64, ["batch"])
    last_index = g.input(LAST_INDEX, ir.DataType.INT64, ["batch"])
    x = embed(g, input_ids, contract, baked)
    cache_shape: list[int | str] = [
        "batch",
        contract.kv_heads,
        contract.capacity,
        contract.head_dim,
    ]
    pasts = [g.input(past, ir.DataType.FLOAT, cache_shape) for past, _ in contract.cache_names]
    caches = list(zip(pasts[0::2], pasts[1::2], strict=True))

    positions = token_positions(g, input_ids, past_lengths)
    x, presents = architecture.layers(g, config, contract, x, positions, past_lengths, caches)
    x = architecture.final_norm(g, config, last_token(g, x, last_index))
    logits = _head(g, config, x)

    g.output(logits, LOGITS, ir.DataType.FLOAT, ["batch", config.vocab])
    flat = [value for pair in presents for value in pair]
    for value, (_, present) in zip(flat, contract.cache_names, strict=True):
        g.output(value, present, ir.DataType.FLOAT, cache_shape)
    return g.model(f"{config.family}-decoder")


def _head(g: GraphBuilder, config: DecoderConfig, x: ir.Value) -> ir.Value:
    """`[batch, hidden]` to `[batch, vocab]`; the table is used as it lies, never transposed."""
    table = g.weight("embedding.weight" if config.tied else "head.weight")
    logits = g.op("Gemm", [x, table], "head", transB=1)
    if config.vocab % _VOCAB_MULTIPLE:
        bounds = [g.integers(0), g.integers(config.vocab), g.integers(1)]
        logits = g.op("Slice", [logits, *bounds], "head.unpadded")
    return logits


def _with_padded_vocab(weights: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    padded = dict(weights)
    for name in ("embedding.weight", "head.weight"):
        if name in padded:
            missing = -len(padded[name]) % _VOCAB_MULTIPLE
            padded[name] = np.pad(padded[name], ((0, missing), (0, 0)))
    return padded
