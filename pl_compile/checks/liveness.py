"""Is the prompt alive? Its virtual tokens must change the logits, and must be this task's.

If a prompt is lost on the way into an engine, or replaced by another task's, answers are still
fluent. So the compiled base runs three times: with the task's prompt, without it, and with another
task's prompt in its place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from pl_compile.checks.parity import ProbeRow
from pl_compile.runtime.engines.engine import Engine
from pl_compile.runtime.served_task import ServedTask
from pl_compile.runtime.stepping import Batch
from pl_compile.shapes import Float32

# A logit that moves by less than this part of the largest one has not moved.
_MOVES = 1e-4


@dataclass(frozen=True)
class Liveness:
    """How much a prompt moves the logits after it.

    Attributes:
        task: its name.
        without: largest difference to the logits without the prompt, as a part of the largest
            logit.
        other: the same for another task's prompt; None if no other task has a prompt of this kind
            that differs.
        is_live: the logits move in both cases.
    """

    task: str
    without: float
    other: float | None
    is_live: bool


def liveness(
    engine: Engine, rows: list[ProbeRow], learned: Mapping[str, ServedTask]
) -> list[Liveness]:
    """Tests each task with the first of its probe rows.

    Args:
        engine: the compiled base.
        rows: probe rows.
        learned: all tasks as they were learned.
    """
    first = {row.task: row for row in reversed(rows)}
    return [_ask(engine, first[name], learned) for name in learned]


def _ask(engine: Engine, row: ProbeRow, learned: Mapping[str, ServedTask]) -> Liveness:
    prompt = row.learned
    ids = prompt.to_feed(row.rendered).input_ids(engine.vocab)
    own = _logits(engine, ids, prompt)
    real = row.rendered.without_virtual().token_ids
    without = _logits(engine, real, prompt.without_prefix()) if len(real) else np.zeros_like(own)
    moved = _moved(own, without)
    strangers = [_in_place_of(prompt, p) for p in learned.values() if _alike(p, prompt)]
    stranger = next((p for p in strangers if not _same(p, prompt)), None)
    other = None
    if stranger is not None:
        changed = _logits(engine, ids, stranger)
        other = _moved(own, changed)
    return Liveness(row.task, moved, other, moved > _MOVES and (other is None or other > _MOVES))


def _moved(own: Float32, other: Float32) -> float:
    """The largest difference as a part of the largest logit; 0 if a logit is not finite."""
    if not (np.isfinite(own).all() and np.isfinite(other).all()):
        return 0.0
    return float(np.abs(own - other).max()) / (float(np.abs(own).max()) or 1.0)


def _alike(one: ServedTask, other: ServedTask) -> bool:
    return (one.prefix_kv is None) == (other.prefix_kv is None)


def _same(one: ServedTask, other: ServedTask) -> bool:
    if one.prefix_kv is None or other.prefix_kv is None:
        return np.array_equal(one.rows, other.rows)
    return np.array_equal(one.prefix_kv, other.prefix_kv)


def _in_place_of(prompt: ServedTask, stranger: ServedTask) -> ServedTask:
    """The stranger's prompt with as many virtual tokens as this one: repeated, or cut.

    Where prompts are baked, the graph has the stranger's own rows, and zeros after them.
    """
    if prompt.prefix_kv is None or stranger.prefix_kv is None:
        count = np.arange(len(prompt.rows)) % len(stranger.rows)
        return replace(prompt, rows=stranger.rows[count], task_id=stranger.task_id)
    count = np.arange(prompt.prefix_kv.shape[3]) % stranger.prefix_kv.shape[3]
    return replace(prompt, prefix_kv=stranger.prefix_kv[:, :, :, count])


def _logits(engine: Engine, ids: np.ndarray, prompt: ServedTask) -> Float32:
    batch = Batch(engine)
    batch.admit(0, prompt)
    after: Float32 = batch.feed({0: ids})[0].logits.copy()
    return after
