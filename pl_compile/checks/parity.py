"""A bundle and the reference on the same prompts: do they compute the same?

In: the reference, an engine under test, and prompts of known tasks. Out: per task the largest logit
difference over prefill and decode, and whether the greedy tokens agree. Rows of all tasks run in
one batch in the engine under test, so a row that is disturbed by its neighbours is found. They run
as they are served, after their folded prefixes.

The two share the rendered prompt, and nothing after that: the engine is given ids, some of which
stand for virtual tokens, and the reference makes its own embeddings. `training/compare_tokens.py`
checks the rendering itself.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pl_compile.artifact.bundle import NOTHING_LOST, Precision
from pl_compile.errors import DataError, ExportError
from pl_compile.progress import SILENT, Bar, Progress
from pl_compile.runtime.engines.engine import Engine, Prompt, prefix_length
from pl_compile.runtime.engines.padded import pad_right
from pl_compile.runtime.served_task import ServedTask
from pl_compile.runtime.stepping import Batch
from pl_compile.shapes import Float32, Int64
from pl_compile.text.render import Rendered, Renderer
from pl_compile.text.tokenizer import Tokenizer

DECODE_STEPS = 16

# Tokens that a probe needs for random words: these may take more tokens than they were drawn from.
_WORDS_AT_LEAST = 8

# A self-test keeps the logits of this many ids, spread over the vocabulary: enough to notice any
# difference, and a few kilobytes instead of megabytes.
SELFTEST_LOGITS = 64


@dataclass(frozen=True)
class Limit:
    """What still counts as the same.

    Attributes:
        difference: of the logits, as a part of the largest one.
        tokens: part of the greedy tokens that must agree.
    """

    difference: float
    tokens: float


# Against the base in float32. Float sums in another order differ by some 1e-6 of the largest logit
# per layer. Rounded weights differ by much more; what counts then is that most tokens agree.
# Rounded to the nearest of 4 bits without offsets, the default base differs by 0.63, and 71 % of
# the tokens agree.
LIMITS = {"none": Limit(1e-3, 1.0), "int8": Limit(0.1, 0.8), "int4": Limit(0.75, 0.5)}

# Where rounding changed no weight, only activations are rounded: the default base with trained
# prompts differs by 4 to 7 % of the largest logit, and nearly all tokens agree.
_LOST_NOTHING = {"int8": Limit(0.1, 0.9), "int4": Limit(0.2, 0.9)}

# Allowed in addition for prefixes of 8 bits, against torch and of a bundle against itself: see
# docs/performance.md for what the default base differs by.
_PREFIX_OF_8_BITS = Limit(0.1, 0.9)

# Allowed in addition for numbers of 16 bits.
_NARROW = {"float16": Limit(0.02, 0.9), "bfloat16": Limit(0.1, 0.8)}

# A bundle against itself: folded or not, alone or in a batch. If kernels sum a row in the same way
# whatever its neighbours are, there is no difference at all (`exporters/onnx/cpu.py`). On other
# machines a last bit can change how kernels for rounded weights round an activation.
SELF_LIMITS = {"none": Limit(1e-3, 1.0), "int8": Limit(0.05, 0.9), "int4": Limit(0.05, 0.9)}

# The same, if other kernels computed the bundle's numbers: they round activations to 8 bits in
# another way, or not at all, so the two differ as much as each differs from floats. On the default
# base it is 0.05 with the portable kernels of native-cpu, and 0.05 to 0.08 without kernels.
_OTHER_KERNELS = {"none": Limit(1e-3, 1.0), **_LOST_NOTHING}

# The same, for numbers of 16 bits: sums in another order round to a neighbouring number.
_NARROW_SELF = {"float16": Limit(0.01, 0.95), "bfloat16": Limit(0.05, 0.9)}


def limit_of(precision: Precision) -> Limit:
    """What still counts as the same, against the base in float32."""
    limits = _LOST_NOTHING if precision.method == NOTHING_LOST else LIMITS
    return _wider(
        limits[precision.quantization], _NARROW.get(precision.cache_dtype), _of_prefix(precision)
    )


def self_limit_of(
    precision: Precision, *, same_kernels: bool = True, same_device: bool = True
) -> Limit:
    """What still counts as the same, for a bundle against itself.

    Args:
        precision: of the bundle.
        same_kernels: whether kernels that give the same bits computed all of it.
        same_device: whether one kind of device computed all of it: on two kinds, sums of 16 bits
            differ from each other as much as each differs from the base.
    """
    limits = SELF_LIMITS if same_kernels else _OTHER_KERNELS
    narrow = _NARROW_SELF if same_device else _NARROW
    return _wider(
        limits[precision.quantization], narrow.get(precision.cache_dtype), _of_prefix(precision)
    )


def _of_prefix(precision: Precision) -> Limit | None:
    return _PREFIX_OF_8_BITS if precision.prefix_bits == 8 else None


def _wider(one: Limit, *others: Limit | None) -> Limit:
    for other in others:
        if other is not None:
            difference = max(one.difference, other.difference)
            one = Limit(difference, min(one.tokens, other.tokens))
    return one


@dataclass(frozen=True)
class ProbeRow:
    """A prompt that both the engine and the reference are given.

    Attributes:
        task: its task's name.
        rendered: the whole prompt, the positions of a learned prefix included.
        learned: the task's prompt as it was learned.
        served: the same as a bundle serves it: with a folded prefix, if it has one.
        fields: what it was rendered from; empty if that is not known.
    """

    task: str
    rendered: Rendered
    learned: ServedTask
    served: ServedTask
    fields: Mapping[str, str]

    @property
    def renderer(self) -> Renderer:
        """The renderer of its task."""
        return self.learned.renderer


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
        steps: compared steps of each row: the prompt, and decoded tokens, the same for both.
        max_abs_difference: of the logits; infinite if a logit is not finite (null in a report).
        largest_logit: of the reference, absolute.
        tolerance: allowed difference, relative to the largest logit.
        equal_tokens: greedy tokens that agree.
        tokens_needed: part of the greedy tokens that must agree.
        first_divergence: the first step after which the answers would differ; None if they never
            do.
        passed: both difference and tokens are within their limits.
    """

    task: str
    reference: str
    rows: int
    steps: int
    max_abs_difference: float
    largest_logit: float
    tolerance: float
    equal_tokens: int
    tokens_needed: float
    first_divergence: int | None
    passed: bool

    @property
    def is_number(self) -> bool:
        """Whether all logits were finite numbers, so that there is a difference."""
        return math.isfinite(self.max_abs_difference)

    @property
    def relative_difference(self) -> float:
        """The difference as a part of the largest logit, or as it is if all logits are 0."""
        return relative_difference(self.max_abs_difference, self.largest_logit)

    @property
    def finding(self) -> str:
        """What was compared, as the middle of a sentence about the task."""
        same = f"{self.equal_tokens} of {self.rows * self.steps} tokens agree"
        if not self.is_number:
            return (
                f"has, compared with {self.reference}, logits that are not finite numbers, and "
                f"{same}"
            )
        part = f"{self.relative_difference:.1e} of the largest logit"
        return f"differs from {self.reference} by {part}, and {same}"


def parity_failures(results: Iterable[Parity]) -> list[str]:
    """The comparisons that are beyond their limits, as sentences."""
    return [
        f"task '{result.task}' {result.finding}; allowed are {result.tolerance:.0e} and "
        f"{result.tokens_needed:.0%} of the tokens"
        for result in results
        if not result.passed
    ]


def relative_difference(difference: float, largest_logit: float) -> float:
    """A difference as a part of the largest logit, or as it is if all logits are 0."""
    return difference / (largest_logit or 1.0)


def probe_rows(
    learned: Mapping[str, ServedTask],
    tokenizer: Tokenizer,
    *,
    vocab: int,
    capacity: int,
    served: Mapping[str, ServedTask] | None = None,
    window: int = 0,
    rows_per_task: int = 2,
    seed: int = 0,
) -> list[ProbeRow]:
    """Prompts with each task's own layout and random words for its fields, of mixed lengths.

    Where the base has windows, the last prompt of each task reaches beyond one, if it can:
    `windows_not_compared` says of which tasks it cannot.

    Args:
        learned: the tasks as they were learned, by name.
        tokenizer: the base's.
        vocab: ids the base knows.
        capacity: prompts leave `DECODE_STEPS` entries of it free.
        served: the tasks as a bundle serves them; if None, as they were learned.
        window: the smallest of the base (`families.registry`); 0 if it has none.
        rows_per_task: how many prompts each task gets.
        seed: of the random words.

    Raises:
        ExportError: a template that fills `capacity`, or has no token after a prefix.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for number, (name, prompt) in enumerate(learned.items()):
        names = prompt.renderer.template.input_fields
        longest = capacity - DECODE_STEPS
        room = longest - len(prompt.renderer.prompt(dict.fromkeys(names, "")))
        if room < _WORDS_AT_LEAST:
            raise ExportError(
                f"comparing task '{name}' with the reference",
                found=f"capacity {capacity}",
                expected=f"at least {capacity - room + _WORDS_AT_LEAST} for its template, a few "
                f"words and {DECODE_STEPS} steps",
                fix="Export with a larger --capacity, or without the comparison: export with "
                "--no-parity, verify without --reference.",
            )
        for index in range(rows_per_task):
            words = min(3 + 11 * index + 5 * number, room // 2)
            opens, ends = _awkward_texts(tokenizer, generator) if index % 2 else ("", "")
            rendered = None
            while rendered is None:
                fields = {
                    field: opens
                    + tokenizer.decode(generator.integers(vocab, size=words).tolist())
                    + ends
                    for field in names
                }
                rendered = _rendered_within(prompt, fields, longest, last_try=not words)
                words //= 2
                opens, ends = (opens, ends) if words else ("", "")
            if not len(prompt.to_feed(rendered)):
                raise ExportError(
                    f"comparing task '{name}' with the reference",
                    found="a template that gives no token after the prefix",
                    expected="text or a field before the answer",
                )
            as_served = prompt if served is None else served[name]
            row = ProbeRow(name, rendered, prompt, as_served, fields)
            if window and index == rows_per_task - 1:
                row = _beyond(window, row, tokenizer, generator, vocab, longest)
            rows.append(row)
    return rows


def _reach(window: int) -> int:
    """A prompt that is longer than this shows a window: some tokens of it are out of sight."""
    return window + DECODE_STEPS


def _beyond(
    window: int,
    row: ProbeRow,
    tokenizer: Tokenizer,
    generator: np.random.Generator,
    vocab: int,
    longest: int,
) -> ProbeRow:
    """The row with so long a first field that it shows a window; as it is if it cannot."""
    if not row.fields or len(row.rendered) > _reach(window) or longest <= _reach(window):
        return row
    # Some words may be written with fewer tokens than they were drawn from.
    text = tokenizer.decode(generator.integers(vocab, size=2 * _reach(window)).tolist())
    first, own = next(iter(row.fields.items()))

    def with_more(characters: int) -> ProbeRow:
        fields = {**row.fields, first: own + text[:characters]}
        return replace(row, rendered=row.renderer.prompt(fields), fields=fields)

    try:
        enough = bisect_left(
            range(len(text)), _reach(window) + 1, key=lambda n: len(with_more(n).rendered)
        )
        longer = with_more(enough)
    except DataError:  # words that the base does not know
        return row
    return longer if len(longer.rendered) <= longest else row


def windows_not_compared(rows: Iterable[ProbeRow], window: int) -> tuple[str, ...]:
    """The tasks whose rows are too short to show the base's smallest window, as sentences."""
    if not window:
        return ()
    lengths: dict[str, int] = {}
    for row in rows:
        lengths[row.task] = max(lengths.get(row.task, 0), len(row.rendered))
    return tuple(
        f"task '{task}': the base's window of {window} tokens was not compared, since no prompt of "
        f"more than {_reach(window)} could be made"
        for task, length in lengths.items()
        if length <= _reach(window)
    )


def _rendered_within(
    prompt: ServedTask, fields: Mapping[str, str], longest: int, *, last_try: bool
) -> Rendered | None:
    """A prompt; None if it is too long or has words that the base does not know: try fewer."""
    try:
        rendered = prompt.renderer.prompt(fields)
    except DataError:  # a tokenizer may know tokens for which the base has no embeddings
        if last_try:
            raise
        return None
    return rendered if len(rendered) <= longest else None  # a word may take several tokens


def _awkward_texts(tokenizer: Tokenizer, generator: np.random.Generator) -> tuple[str, str]:
    """Texts that are easily handled wrong at the start and at the end of a field.

    Blanks, the text of a token that was added to the vocabulary, and characters of several bytes.
    """
    added = tokenizer.added_texts
    marker = str(generator.choice(added)) if added else ""
    return f"  {marker}é😀", " "


class Reference(Protocol):
    """What a bundle is compared with: `training.reference.TorchEngine`."""

    def greedy(self, rendered: Rendered, prompt: Prompt, steps: int) -> tuple[Float32, Int64]:
        """Logits after a prompt and after each of its `steps` likeliest tokens, and the tokens."""


def trace_reference(
    reference: Reference, rows: Sequence[ProbeRow], *, progress: Progress = SILENT
) -> Trace:
    """Runs prompts and `DECODE_STEPS` decode steps: each row alone, as it was learned."""
    traces = []
    with progress.bar("reference (torch)", len(rows)) as bar:
        for row in rows:
            traces.append(reference.greedy(row.rendered, row.learned, DECODE_STEPS))
            bar.advance()
    logits, tokens = zip(*traces, strict=True)
    return Trace(np.stack(logits, 1), np.stack(tokens, 1))


def trace(
    engine: Engine,
    rows: Sequence[ProbeRow],
    *,
    follow: Int64 | None = None,
    folded: bool = True,
    alone: bool = False,
    label: str = "",
    progress: Progress = SILENT,
) -> Trace:
    """Runs prompts and decode steps, in one batch if the engine holds so many rows.

    Args:
        engine: what runs them.
        rows: the prompts, at least one.
        follow: int64 `[steps, rows]`: the tokens to continue with; if None, `DECODE_STEPS` of the
            engine's own greedy tokens.
        folded: whether rows follow their folded prefixes.
        alone: whether each row is a batch of its own.
        label: the name of this step for `progress`.
        progress: receives messages.
    """
    prompts = [row.served if folded else row.learned for row in rows]
    given = []
    for row, prompt in zip(rows, prompts, strict=True):
        fed = prompt.to_feed(row.rendered)
        given.append((fed.input_ids(engine.vocab), len(row.rendered) - len(fed)))
    # The rows may not all fit into the engine's batch; each part of them still mixes tasks.
    size = 1 if alone else engine.max_batch
    parts = [slice(start, start + size) for start in range(0, len(rows), size)]
    traces = []
    steps = DECODE_STEPS + 1 if follow is None else len(follow)
    with progress.bar(label, len(parts) * steps) as bar:
        for part in parts:
            forced = None if follow is None else follow[:, part]
            traces.append(_trace_batch(engine, prompts[part], given[part], steps, forced, bar))
    logits, tokens = zip(*((trace.logits, trace.tokens) for trace in traces), strict=True)
    return Trace(np.concatenate(logits, 1), np.concatenate(tokens, 1))


def _trace_batch(
    engine: Engine,
    prompts: Sequence[ServedTask],
    given: Sequence[tuple[Int64, int]],
    steps: int,
    follow: Int64 | None,
    bar: Bar,
) -> Trace:
    batch = Batch(engine)
    for row, (prompt, (_, held)) in enumerate(zip(prompts, given, strict=True)):
        batch.admit(row, prompt, held)
    ids: Sequence[Int64] = [each for each, _ in given]
    all_logits: list[NDArray[np.float32]] = []
    all_tokens: list[NDArray[np.int64]] = []
    for step in range(steps):
        outputs = batch.feed(dict(enumerate(ids)))
        logits = np.stack([outputs[row].logits for row in range(len(prompts))])
        tokens = logits.argmax(axis=-1)
        all_logits.append(logits)
        all_tokens.append(tokens)
        ids = np.split(tokens if follow is None else follow[step], len(prompts))
        bar.advance()
    return Trace(np.stack(all_logits), np.stack(all_tokens))


def compare(
    rows: Sequence[ProbeRow], expected: Trace, actual: Trace, reference: str, limit: Limit
) -> list[Parity]:
    """The comparison of two traces, per task."""
    results = []
    for task in dict.fromkeys(row.task for row in rows):
        mine = [index for index, row in enumerate(rows) if row.task == task]
        ours, theirs = actual.logits[:, mine], expected.logits[:, mine]
        known = (np.isfinite(ours) & np.isfinite(theirs)).all(-1)
        difference = float(np.abs(ours - theirs).max()) if known.all() else math.inf
        largest = float(np.abs(theirs[known]).max(initial=0))
        # If a logit is not finite, the greedy token means nothing, even if it is equal.
        same = (actual.tokens[:, mine] == expected.tokens[:, mine]) & known
        apart = np.flatnonzero(~same.all(1))
        equal = int(same.sum())
        results.append(
            Parity(
                task=task,
                reference=reference,
                rows=len(mine),
                steps=len(expected.tokens),
                max_abs_difference=difference,
                largest_logit=largest,
                tolerance=limit.difference,
                equal_tokens=equal,
                tokens_needed=limit.tokens,
                first_divergence=int(apart[0]) if len(apart) else None,
                passed=difference <= limit.difference * largest
                and equal >= limit.tokens * same.size,
            )
        )
    return results


def selftest_arrays(
    rows: Sequence[ProbeRow], expected: Trace, task: str
) -> dict[str, NDArray[Any]]:
    """The vectors of a task with which any runtime can check itself.

    Returns:
        `input_ids` int64 `[rows, seq]` right-padded with 0 and without the positions of a learned
        prefix, `lengths` int64 `[rows]`, `tokens` int64 `[steps, rows]`, `logit_ids` int64 `[ids]`,
        `logits` float32 `[steps, rows, ids]`.
    """
    mine = [index for index, row in enumerate(rows) if row.task == task]
    vocab = expected.logits.shape[-1]
    given = [rows[index].learned.to_feed(rows[index].rendered) for index in mine]
    input_ids, lengths = pad_right([each.input_ids(vocab) for each in given])
    logit_ids = np.unique(np.linspace(0, vocab - 1, SELFTEST_LOGITS).astype(np.int64))
    return {
        "input_ids": input_ids,
        "lengths": lengths,
        "tokens": np.ascontiguousarray(expected.tokens[:, mine]),
        "logit_ids": logit_ids,
        "logits": np.ascontiguousarray(expected.logits[:, mine][:, :, logit_ids]),
    }


def run_selftest(
    engine: Engine,
    arrays: Mapping[str, NDArray[Any]],
    task: str,
    learned: ServedTask,
    served: ServedTask,
    limit: Limit,
) -> Parity:
    """Runs a task's stored vectors as they are served, and compares."""
    rows = [
        ProbeRow(task, _read_back(ids[:length], engine.vocab, learned), learned, served, {})
        for ids, length in zip(arrays["input_ids"], arrays["lengths"], strict=True)
    ]
    expected = Trace(arrays["logits"], arrays["tokens"])
    actual = trace(engine, rows, follow=expected.tokens)
    chosen = Trace(actual.logits[:, :, arrays["logit_ids"]], actual.tokens)
    return compare(rows, expected, chosen, "self-test vectors", limit)[0]


def _read_back(ids: Int64, vocab: int, learned: ServedTask) -> Rendered:
    """The prompt that a self-test's ids stand for; the ids begin after a learned prefix."""
    prefix = np.arange(prefix_length(learned))
    virtual = ids >= vocab
    token_ids = np.concatenate([prefix * 0, np.where(virtual, 0, ids)])
    rows = np.concatenate([prefix, np.where(virtual, ids - vocab, -1)])
    return Rendered(token_ids, rows, len(token_ids))
