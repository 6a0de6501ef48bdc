"""Vectors that any runtime can check itself with: `selftest.safetensors` of a task.

    input_ids   int64 [rows, seq]           right-padded with 0; virtual tokens are `vocab + row`
    lengths     int64 [rows]                1 to seq
    tokens      int64 [steps, rows]         the first follows the prompts, each later one the last
    logit_ids   int64 [ids]                 tokens whose logits are kept
    logits      float32 [steps, rows, ids]

Where the task has a learned prefix, `input_ids` start after it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pl_compile.artifact.prompt_table import TaskEntry
from pl_compile.config.contract import GraphContract
from pl_compile.errors import ArtifactError, list_problems

SELFTEST_NAME = "selftest.safetensors"

# Rows times steps. A runtime computes all logits of each: more would take long.
MOST_RESULTS = 1 << 10

_FORM = {
    "input_ids": ("int64", ("rows", "seq")),
    "lengths": ("int64", ("rows",)),
    "tokens": ("int64", ("steps", "rows")),
    "logit_ids": ("int64", ("ids",)),
    "logits": ("float32", ("steps", "rows", "ids")),
}


def check_selftest(
    arrays: Mapping[str, NDArray[Any]], entry: TaskEntry, graph: GraphContract, doing: str
) -> None:
    """Raises `ArtifactError` unless these are vectors that a runtime of this graph can run.

    Args:
        arrays: all tensors of the file.
        entry: the task.
        graph: of the bundle.
        doing: what an error says was being done.
    """
    problems = _problems_of_form(arrays) or _problems_of_values(arrays, entry, graph)
    if problems:
        raise ArtifactError(doing, found=list_problems(problems), fix="Export the bundle again.")


def _problems_of_form(arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    if set(arrays) != set(_FORM):
        return [f"tensors {', '.join(sorted(arrays)) or 'none'}, expected {', '.join(_FORM)}"]
    sizes: dict[str, int] = {}
    problems = []
    for name, (dtype, axes) in _FORM.items():
        array = arrays[name]
        for axis, size in zip(axes, array.shape, strict=False):
            sizes.setdefault(axis, size)
        expected = tuple(sizes.get(axis, 1) for axis in axes)
        if str(array.dtype) != dtype or array.shape != expected or 0 in expected:
            problems.append(
                f"{name} {array.dtype} {list(array.shape)}, expected {dtype} "
                f"[{', '.join(axes)}], each at least 1 and the same in all tensors"
            )
    if not problems and sizes["rows"] * sizes["steps"] > MOST_RESULTS:
        problems.append(
            f"{sizes['rows']} rows of {sizes['steps']} steps, expected at most {MOST_RESULTS} "
            "results"
        )
    return problems


def _problems_of_values(
    arrays: Mapping[str, NDArray[Any]], entry: TaskEntry, graph: GraphContract
) -> list[str]:
    seq, steps = arrays["input_ids"].shape[1], len(arrays["tokens"])
    before = 0 if entry.prefix_kv is None else entry.prefix_kv.shape[3]
    room = graph.capacity - before - (steps - 1)
    if room < 1:
        return [f"{steps} steps, expected at most {graph.capacity - before}, which the cache holds"]
    ranges = {
        "input_ids": (0, graph.vocab + len(entry.rows) - 1),
        "lengths": (1, min(seq, room)),
        "tokens": (0, graph.vocab - 1),
        "logit_ids": (0, graph.vocab - 1),
    }
    problems = []
    for name, (low, high) in ranges.items():
        smallest, largest = int(arrays[name].min()), int(arrays[name].max())
        if not low <= smallest <= largest <= high:
            problems.append(f"{name} of {smallest} to {largest}, expected {low} to {high}")
    if not np.isfinite(arrays["logits"]).all():
        problems.append("logits that are not finite numbers")
    return problems
