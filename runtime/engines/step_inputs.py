"""What a step's graph is given, as arrays by name: everything but the caches."""

from collections.abc import Sequence
from typing import Any

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
from pl_compile.runtime.engines.engine import Int64, Prompt
from pl_compile.runtime.sampling import Draw


def step_inputs(
    contract: GraphContract,
    input_ids: Int64,
    past_lengths: Int64,
    last_index: Int64,
    prompts: Sequence[Prompt],
    draws: Sequence[Draw],
) -> dict[str, NDArray[Any]]:
    """The arrays, contiguous.

    Args:
        contract: of the graph.
        input_ids: as in `Engine.step`.
        past_lengths: as in `Engine.step`.
        last_index: as in `Engine.step`.
        prompts: as in `Engine.step`.
        draws: as in `DrawingEngine.step_and_draw`; not looked at where the graph does not sample.
    """
    inputs: dict[str, NDArray[Any]] = {
        INPUT_IDS: input_ids,
        PAST_LENGTHS: past_lengths,
        LAST_INDEX: last_index,
    }
    inputs |= _prompt_inputs(contract, prompts, bool((input_ids >= contract.vocab).any()))
    if contract.candidates:
        noise = np.zeros((len(draws), contract.candidates), np.float32)
        for row, draw in zip(noise, draws, strict=True):
            row[: len(draw.noise)] = draw.noise
        inputs[NOISE] = noise
        for name in contract.sampling_inputs:
            numbers = [getattr(draw.sampling, name) for draw in draws]
            inputs[name] = np.asarray(numbers, IN_GRAPH[name])
    return {name: np.ascontiguousarray(array) for name, array in inputs.items()}


def _prompt_inputs(
    contract: GraphContract, prompts: Sequence[Prompt], asked_for: bool
) -> dict[str, NDArray[Any]]:
    if contract.prompts == "baked":
        return {TASK_ID: np.asarray([prompt.task_id for prompt in prompts], np.int64)}
    # At least one row: a gather from nothing is an error even where no id asks for it.
    longest = max([1, *(len(prompt.rows) for prompt in prompts)]) if asked_for else 1
    table = np.zeros((len(prompts), longest, contract.hidden), np.float32)
    if asked_for:
        for index, prompt in enumerate(prompts):
            table[index, : len(prompt.rows)] = prompt.rows
    return {PROMPT_TABLE: table}
