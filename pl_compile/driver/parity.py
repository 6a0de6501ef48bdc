"""Two engines on the same steps: do they compute the same?

In: a reference engine and an engine under test, and prompts of known tasks. Out: per task the
largest logit difference over prefill and decode, and whether the greedy tokens agree. Rows of all
tasks run in one batch in the engine under test, so a row that is disturbed by its neighbours is
found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pl_compile.artifact.prompt_table import TaskEntry
from pl_compile.errors import ExportError
from pl_compile.progress import SILENT, Bar, Progress
from pl_compile.runtime.batch import pad_right, parts_that_fit
from pl_compile.runtime.engines.engine import Engine, Float32, Int64, prefix_length
from pl_compile.runtime.task_prompt import TaskPrompt
from pl_compile.text.tokenizer import Tokenizer

# Relative to the largest logit. Float32 sums in another order differ by some 1e-6 of it per layer.
TOLERANCE = 1e-3
DECODE_STEPS = 16

# Room that a probe needs for random words: they may take more tokens than they were drawn from.
_WORDS_AT_LEAST = 8

# A self-test keeps the logits of this many ids, spread over the vocabulary: enough to notice any
# difference, and a few kilobytes instead of megabytes.
SELFTEST_LOGITS = 64


@dataclass(frozen=True)
class ProbeRow:
    """A prompt that both engines are given.

    Attributes:
        task: its task's name.
        input_ids: int64 `[seq]`; ids from `vocab` on are virtual. Those of a prefix, which is in
            the cache already, are left out.
        rows: float32 `[virtual, hidden]`; none where the task has a prefix.
        prefix_kv: float32 `[layers, 2, kv_heads, virtual, head_dim]`; None where it has rows.
        task_id: the task's number in a graph with baked prompts.
    """

    task: str
    input_ids: Int64
    rows: Float32
    prefix_kv: Float32 | None
    task_id: int


@dataclass(frozen=True)
class Trace:
    """What an engine did with probe rows.

    Attributes:
        logits: float32 `[steps, rows, vocab]`: after the prompt and after each decoded token.
        tokens: int64 `[steps, rows]`: the greedy tokens.
    """

    logits: Float32
    tokens: Int64


@dataclass(frozen=True)
class Parity:
    """How a task's numbers compare with the reference.

    Attributes:
        task: its name.
        reference: what it was compared with.
        rows: probe rows of the task.
        steps: compared steps of each: the prompt and the decoded tokens.
        max_abs_difference: of the logits.
        largest_logit: of the reference, absolute.
        tolerance: allowed difference, relative to the largest logit.
        equal_tokens: greedy tokens that agree.
        passed: all tokens agree, and no difference is beyond the tolerance.
    """

    task: str
    reference: str
    rows: int
    steps: int
    max_abs_difference: float
    largest_logit: float
    tolerance: float
    equal_tokens: int
    passed: bool

    @property
    def relative_difference(self) -> float:
        """The difference as a part of the largest logit."""
        return self.max_abs_difference / self.largest_logit


def probe_rows(
    entries: Sequence[TaskEntry],
    tokenizer: Tokenizer,
    *,
    vocab: int,
    capacity: int,
    rows_per_task: int = 2,
    seed: int = 0,
) -> list[ProbeRow]:
    """Prompts with each task's own layout and random words for its fields, of mixed lengths.

    Args:
        entries: the tasks; their order numbers them where prompts are baked.
        tokenizer: the base's.
        vocab: ids the base knows.
        capacity: prompts leave room in it for `DECODE_STEPS` more tokens.
        rows_per_task: how many prompts each task gives.
        seed: of the words.

    Raises:
        ExportError: a template that leaves no room in `capacity`, or no token after a prefix.
        ArtifactError: a learned prefix that its template does not open with.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for task_id, entry in enumerate(entries):
        prompt = TaskPrompt.of(entry, tokenizer, task_id)
        names = prompt.renderer.template.input_fields
        longest = capacity - DECODE_STEPS
        room = longest - len(prompt.renderer.prompt(dict.fromkeys(names, "")))
        if room < _WORDS_AT_LEAST:
            raise ExportError(
                f"comparing task '{entry.task.taskname}' with the reference",
                found=f"capacity {capacity}",
                expected=f"at least {capacity - room + _WORDS_AT_LEAST} for its template, a few "
                f"words and {DECODE_STEPS} steps",
                fix="Raise --capacity, or export with --no-parity.",
            )
        for index in range(rows_per_task):
            words = min(3 + 11 * index + 5 * task_id, room // 2)
            fields = {
                name: tokenizer.decode(generator.integers(vocab // 2, size=words).tolist())
                for name in names
            }
            fed = prompt.fed(prompt.renderer.prompt(fields))
            if not len(fed):
                raise ExportError(
                    f"comparing task '{entry.task.taskname}' with the reference",
                    found="a template that gives no token after the prefix",
                    expected="text or a field before the answer",
                )
            ids = fed.input_ids(vocab)[: longest - prefix_length(prompt)]
            rows.append(
                ProbeRow(entry.task.taskname, ids, prompt.rows, prompt.prefix_kv, prompt.task_id)
            )
    return rows


def trace(
    engine: Engine,
    rows: Sequence[ProbeRow],
    *,
    follow: Int64 | None = None,
    label: str = "",
    progress: Progress = SILENT,
) -> Trace:
    """Runs prompts and `DECODE_STEPS` decode steps, in one batch where the engine holds it.

    Args:
        engine: what runs them.
        rows: the prompts, at least one.
        follow: int64 `[steps, rows]`: tokens to go on with; the engine's own greedy ones if None.
        label: what to call it while it runs.
        progress: who is told.
    """
    # The engine's batch may be smaller than all tasks together; rows of one part still mix tasks.
    parts = parts_that_fit(
        [len(row.input_ids) for row in rows],
        [prefix_length(row) for row in rows],
        capacity=engine.capacity,
        max_batch=engine.max_batch,
    )
    traces = []
    with progress.bar(label, len(parts) * (DECODE_STEPS + 1)) as bar:
        for part in parts:
            forced = None if follow is None else follow[:, part]
            traces.append(_trace_batch(engine, rows[part], forced, bar))
    logits, tokens = zip(*((trace.logits, trace.tokens) for trace in traces), strict=True)
    return Trace(np.concatenate(logits, 1), np.concatenate(tokens, 1))


def _trace_batch(engine: Engine, rows: Sequence[ProbeRow], follow: Int64 | None, bar: Bar) -> Trace:
    ids, lengths = pad_right([row.input_ids for row in rows])
    past, last = engine.start(rows), lengths - 1
    all_logits: list[NDArray[np.float32]] = []
    all_tokens: list[NDArray[np.int64]] = []
    for step in range(DECODE_STEPS + 1):
        logits = engine.step(ids, past, last, rows).copy()
        tokens = logits.argmax(axis=-1)
        all_logits.append(logits)
        all_tokens.append(tokens)
        past = past + last + 1
        ids = (tokens if follow is None else follow[step])[:, None]
        last = np.zeros(len(rows), np.int64)
        bar.advance()
    return Trace(np.stack(all_logits), np.stack(all_tokens))


def compare(
    rows: Sequence[ProbeRow], expected: Trace, actual: Trace, reference: str
) -> list[Parity]:
    """The comparison of two traces, per task."""
    results = []
    for task in dict.fromkeys(row.task for row in rows):
        mine = [index for index, row in enumerate(rows) if row.task == task]
        difference = float(np.abs(actual.logits[:, mine] - expected.logits[:, mine]).max())
        largest = float(np.abs(expected.logits[:, mine]).max())
        equal = int((actual.tokens[:, mine] == expected.tokens[:, mine]).sum())
        results.append(
            Parity(
                task=task,
                reference=reference,
                rows=len(mine),
                steps=len(expected.tokens),
                max_abs_difference=difference,
                largest_logit=largest,
                tolerance=TOLERANCE,
                equal_tokens=equal,
                passed=difference <= TOLERANCE * largest and equal == expected.tokens[:, mine].size,
            )
        )
    return results


def selftest_arrays(
    rows: Sequence[ProbeRow], expected: Trace, task: str
) -> dict[str, NDArray[Any]]:
    """The vectors of a task that any runtime can check itself with.

    Returns:
        `input_ids` int64 `[rows, seq]` right-padded with 0 and without the positions of a prefix,
        `lengths` int64 `[rows]`, `tokens` int64 `[steps, rows]`, `logit_ids` int64 `[ids]`,
        `logits` float32 `[steps, rows, ids]`.
    """
    mine = [index for index, row in enumerate(rows) if row.task == task]
    input_ids, lengths = pad_right([rows[index].input_ids for index in mine])
    vocab = expected.logits.shape[-1]
    logit_ids = np.unique(np.linspace(0, vocab - 1, SELFTEST_LOGITS).astype(np.int64))
    return {
        "input_ids": input_ids,
        "lengths": lengths,
        "tokens": np.ascontiguousarray(expected.tokens[:, mine]),
        "logit_ids": logit_ids,
        "logits": np.ascontiguousarray(expected.logits[:, mine][:, :, logit_ids]),
    }


def run_selftest(
    engine: Engine, arrays: Mapping[str, NDArray[Any]], entry: TaskEntry, task_id: int
) -> Parity:
    """Runs a task's stored vectors and compares."""
    name = entry.task.taskname
    rows = [
        ProbeRow(name, ids[:length], entry.rows, entry.prefix_kv, task_id)
        for ids, length in zip(arrays["input_ids"], arrays["lengths"], strict=True)
    ]
    expected = Trace(arrays["logits"], arrays["tokens"])
    actual = trace(engine, rows, follow=expected.tokens)
    chosen = Trace(actual.logits[:, :, arrays["logit_ids"]], actual.tokens)
    return compare(rows, expected, chosen, "self-test vectors")[0]
