"""The main graph of a base: its family's definition in ONNX. One for every target.

In: `DecoderConfig`, `GraphContract`, weights, and the prompts where they are baked. Out: an ONNX
model that calls operators of the `plc` domain (`operators.py`). A target lowers them
(`exporters/`); only then the model runs.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pl_compile.config.contract import INPUT_IDS, LAST_INDEX, LOGITS, PAST_LENGTHS, GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.families.blocks import Blocks
from pl_compile.families.names import TABLES
from pl_compile.families.registry import FAMILIES
from pl_compile.graph.blocks import VOCAB_MULTIPLE, OnnxBlocks, StepValues, token_positions
from pl_compile.graph.builder import GraphBuilder
from pl_compile.graph.prompt import virtual_rows


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
        weights: float32 arrays by our names (`families.names`).
        baked: float32 `[tasks, rows, hidden]`, zero-padded; None where prompts are an input.
    """
    g = GraphBuilder(_with_padded_vocab(weights))
    input_ids = g.input(INPUT_IDS, ir.DataType.INT64, ["batch", "seq"])
    past_lengths = g.input(PAST_LENGTHS, ir.DataType.INT64, ["batch"])
    last_index = g.input(LAST_INDEX, ir.DataType.INT64, ["batch"])
    virtual = virtual_rows(g, input_ids, contract, baked)
    cache_shape: list[int | str] = [
        "batch",
        contract.kv_heads,
        contract.capacity,
        contract.head_dim,
    ]
    pasts = [g.input(past, ir.DataType.FLOAT, cache_shape) for past, _ in contract.cache_names]
    step = StepValues(
        input_ids,
        past_lengths,
        last_index,
        token_positions(g, input_ids, past_lengths),
        virtual,
        list(zip(pasts[0::2], pasts[1::2], strict=True)),
    )
    blocks: Blocks[ir.Value] = OnnxBlocks(g, config, contract, step)
    logits = FAMILIES[config.family].definition(blocks)

    g.output(logits, LOGITS, ir.DataType.FLOAT, ["batch", config.vocab])
    flat = [value for i in range(config.layers) for value in step.presents[i]]
    for value, (_, present) in zip(flat, contract.cache_names, strict=True):
        g.output(value, present, ir.DataType.FLOAT, cache_shape)
    return g.model(f"{config.family}-decoder")


def _with_padded_vocab(weights: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    padded = dict(weights)
    for name in TABLES:
        if name in padded:
            missing = -len(padded[name]) % VOCAB_MULTIPLE
            padded[name] = np.pad(padded[name], ((0, missing), (0, 0)))
    return padded
