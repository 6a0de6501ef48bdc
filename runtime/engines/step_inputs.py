"""The inputs of a padded step's graph as arrays by name: all but the caches."""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from pl_compile.config.contract import (
    INPUT_IDS,
    LAST_INDEX,
    NOISE,
    PAST_LENGTHS,
    PROMPT_TABLE,
    TASK_ID,
    GraphContract,
)
from pl_compile.config.sampling import IN_GRAPH
from pl_compile.runtime.engines.engine import Prompt
from pl_compile.runtime.engines.padded import Step
from pl_compile.runtime.sampling import GREEDY, Draw
from pl_compile.shapes import Shape


def step_inputs(
    contract: GraphContract, step: Step
) -> dict[str, Annotated[NDArray[Any], Shape("batch ...")]]:
    """The arrays, contiguous."""
    inputs: dict[str, NDArray[Any]] = {
        INPUT_IDS: step.input_ids,
        PAST_LENGTHS: step.past_lengths,
        LAST_INDEX: step.last_index,
    }
    asked_for = bool((step.input_ids >= contract.vocab).any())
    inputs |= _prompt_inputs(contract, step.prompts, asked_for)
    if contract.candidates:
        # A graph that can choose does so for every row. For rows that did not ask, the choice is
        # unused.
        inputs |= draw_inputs(contract, [draw or GREEDY for draw in step.draws])
    return {name: np.ascontiguousarray(array) for name, array in inputs.items()}


def _prompt_inputs(
    contract: GraphContract, prompts: Sequence[Prompt], asked_for: bool
) -> dict[str, NDArray[Any]]:
    if contract.prompts == "baked":
        return {TASK_ID: np.asarray([prompt.task_id for prompt in prompts], np.int64)}
    # At least one row: a Gather from an empty table is an error, even where no id reads it.
    longest = max([1, *(len(prompt.rows) for prompt in prompts)]) if asked_for else 1
    table = np.zeros((len(prompts), longest, contract.hidden), np.float32)
    if asked_for:
        for index, prompt in enumerate(prompts):
            table[index, : len(prompt.rows)] = prompt.rows
    return {PROMPT_TABLE: table}


def draw_inputs(
    contract: GraphContract, draws: Sequence[Draw]
) -> dict[str, Annotated[NDArray[Any], Shape("draws ...")]]:
    """What a graph needs to choose a token by each of some draws."""
    noise = np.zeros((len(draws), contract.candidates), np.float32)
    for row, draw in zip(noise, draws, strict=True):
        row[: len(draw.noise)] = draw.noise
    numbers = {
        name: np.asarray([getattr(draw.sampling, name) for draw in draws], IN_GRAPH[name])
        for name in contract.sampling_inputs
    }
    return {NOISE: noise, **numbers}
