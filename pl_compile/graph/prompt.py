"""The one place where prompts join the embeddings.

An id of the vocabulary takes a row of the base's embedding; an id `vocab + r` takes row `r` of the
prompt. Both are there at every position and a `Where` picks one, so virtual tokens may stand
anywhere, and rows of one batch may hold different tasks.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pl_compile.config.contract import PROMPT_TABLE, TASK_ID, GraphContract
from pl_compile.families.names import EMBEDDING
from pl_compile.graph.builder import GraphBuilder


@dataclass(frozen=True)
class VirtualRows:
    """The prompts' rows in a step, and where they stand.

    Attributes:
        rows: float `[batch, seq, hidden]`; anything where a token is one of the vocabulary.
        stand: bool `[batch, seq, 1]`: which tokens are virtual.
    """

    rows: ir.Value
    stand: ir.Value

    def joined(self, g: GraphBuilder, x: ir.Value) -> ir.Value:
        """`x` `[batch, seq, hidden]`, and the rows where they stand."""
        return g.op("Where", [self.stand, self.rows, x], "prompt.join")


def virtual_rows(
    g: GraphBuilder,
    input_ids: ir.Value,
    contract: GraphContract,
    baked: NDArray[np.float32] | None,
) -> VirtualRows:
    """The prompts' rows of a step.

    Args:
        g: the graph.
        input_ids: int64 `[batch, seq]`.
        contract: its `prompts` says how they enter.
        baked: float32 `[tasks, rows, hidden]`, zero-padded, where prompts are baked.
    """
    vocab = g.integers(contract.vocab)
    row = g.op("Sub", [input_ids, vocab], "prompt.offset")
    row = g.op("Max", [row, g.integers(0)], "prompt.row")
    rows = (
        _from_input(g, row, contract) if baked is None else _from_constant(g, row, contract, baked)
    )
    is_virtual = g.op("GreaterOrEqual", [input_ids, vocab], "prompt.is_virtual")
    return VirtualRows(
        rows, g.op("Unsqueeze", [is_virtual, g.integers(-1)], "prompt.is_virtual.column")
    )


def text_rows(g: GraphBuilder, input_ids: ir.Value, vocab: int) -> ir.Value:
    """The embedding's row of each token, `[batch, seq, hidden]`; the last one at virtual tokens."""
    real_id = g.op("Min", [input_ids, g.integers(vocab - 1)], "embedding.id")
    return g.op("Gather", [g.weight(EMBEDDING), real_id], "embedding")


def _from_input(g: GraphBuilder, row: ir.Value, contract: GraphContract) -> ir.Value:
    shape = contract.tensors("float32")[PROMPT_TABLE].shape
    table = g.input(PROMPT_TABLE, ir.DataType.FLOAT, shape)
    index = g.op("Unsqueeze", [row, g.integers(-1)], "prompt.row.column")
    return g.op("GatherND", [table, index], "prompt.gather", batch_dims=1)


def _from_constant(
    g: GraphBuilder, row: ir.Value, contract: GraphContract, baked: NDArray[np.float32]
) -> ir.Value:
    tasks, rows, hidden = baked.shape
    table = g.initializer("prompts.baked", baked.reshape(tasks * rows, hidden))
    shape = contract.tensors("float32")[TASK_ID].shape
    task = g.input(TASK_ID, ir.DataType.INT64, shape)
    start = g.op("Mul", [task, g.integers(rows)], "prompt.task_start")
    if len(shape) == 1:  # one for each row, and not for each token
        start = g.op("Unsqueeze", [start, g.integers(1)], "prompt.task_start.column")
    index = g.op("Add", [row, start], "prompt.index")
    return g.op("Gather", [table, index], "prompt.gather")
