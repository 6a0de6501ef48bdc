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

from pl_compile.config.contract import (
    BLOCK_TABLES,
    INPUT_IDS,
    LAST_INDEX,
    LOGIT_TOKENS,
    LOGITS,
    PARENTS,
    PAST_LENGTHS,
    POSITIONS,
    PREFIXES,
    TOKEN_ROWS,
    GraphContract,
)
from pl_compile.config.decoder import DecoderConfig
from pl_compile.families.blocks import Blocks
from pl_compile.families.names import TABLES
from pl_compile.families.registry import FAMILIES
from pl_compile.graph.blocks import (
    VOCAB_MULTIPLE,
    OnnxBlocks,
    Padded,
    Ragged,
    StepValues,
    token_positions,
)
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
    tensors = contract.tensors("float32")

    def given(name: str) -> ir.Value:
        return g.input(name, ir.DataType.INT64, tensors[name].shape)

    input_ids = given(INPUT_IDS)
    rows: Padded | Ragged
    if contract.rows == "ragged":
        positions = given(POSITIONS)
        rows = Ragged(*map(given, (TOKEN_ROWS, BLOCK_TABLES, PREFIXES, PARENTS, LOGIT_TOKENS)))
    else:
        rows = Padded(given(PAST_LENGTHS), given(LAST_INDEX))
        positions = token_positions(g, input_ids, rows.past_lengths)
    virtual = virtual_rows(g, input_ids, contract, baked)
    cache_shape = contract.cache_shape
    pasts = [g.input(past, ir.DataType.FLOAT, cache_shape) for past, _ in contract.cache_names]
    step = StepValues(
        input_ids,
        rows,
        positions,
        virtual,
        list(zip(pasts[0::2], pasts[1::2], strict=True)),
    )
    blocks: Blocks[ir.Value] = OnnxBlocks(g, config, contract, step)
    logits = FAMILIES[config.family].definition(blocks)

    g.output(logits, LOGITS, ir.DataType.FLOAT, tensors[LOGITS].shape)
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
