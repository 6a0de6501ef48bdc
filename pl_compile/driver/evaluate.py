"""Scores of tasks on labelled examples: with the prompt, and the base alone beside it.

In: a session (on a bundle, or on torch for a prompt table) and data files with answers. Out: per
task the metric with and without prompt, and, with a second session, how often both give the same
answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pl_compile.artifact.bundle import read_bundle
from pl_compile.artifact.prompt_table import BaseIdentity, check_prefix, read_prompt_table
from pl_compile.driver.answer_file import tell_cuts
from pl_compile.driver.right_answers import (
    check_answers,
    first_of_each_task,
    metric_for,
    right_answer,
)
from pl_compile.driver.verify import check_reference
from pl_compile.errors import ConfigError, RequestError, list_problems, unknown_name
from pl_compile.metrics import METRICS, Reference
from pl_compile.progress import SILENT, Progress
from pl_compile.runtime.requests import Request, Result
from pl_compile.runtime.session import Session
from pl_compile.text.examples import Example, read_examples
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.weights.checkpoint import fingerprint_base
from pl_compile.weights.open_base import open_base

# Room beyond the longest right answer: enough to see a wrong one, without writing novels.
_EXTRA_TOKENS = 8


@dataclass(frozen=True)
class EvalOptions:
    """How to score.

    Attributes:
        metric: a key of `METRICS`, or "auto".
        prompt: whether the base is asked with the tasks' prompts at all.
        baseline: whether the base is also asked without virtual tokens.
        max_tokens: longest answer; from the right answers if None.
        limit: first examples of each task only; all if None.
        tell_cuts: whether it is said which examples are cut to fit; a run has said it before.
    """

    metric: str = "auto"
    prompt: bool = True
    baseline: bool = True
    max_tokens: int | None = None
    limit: int | None = None
    tell_cuts: bool = True


@dataclass(frozen=True)
class TaskScore:
    """How a task did.

    Attributes:
        task: its name.
        metric: which one.
        examples: how many.
        with_prompt: metric's numbers, in percent.
        without_prompt: the base's own, where asked for.
        same_as_reference: percent of examples that the second session answered alike.
        predictions: the answers with prompt, in the order of the data.
        asked: the fields that were given, in the same order.
        expected: the right answers, in the same order; several of one are joined by " | ".
    """

    task: str
    metric: str
    examples: int
    with_prompt: dict[str, float]
    without_prompt: dict[str, float] | None
    same_as_reference: float | None
    predictions: tuple[str, ...]
    asked: tuple[Mapping[str, Any], ...]
    expected: tuple[str, ...]


def same_answers(one: Sequence[str], other: Sequence[str]) -> float:
    """Percent of the examples that two sessions answered alike."""
    pairs = list(zip(one, other, strict=True))
    return 100.0 * sum(first == second for first, second in pairs) / len(pairs)


def session_on_table(path: Path, base: Path) -> Session:
    """A session that runs a prompt table on torch.

    Raises:
        ArtifactError: the table cannot be read.
        FingerprintError: it was trained on another base.
    """
    from pl_compile.training.reference import TorchEngine

    table = read_prompt_table(path)
    checkpoint, config = open_base(base)
    fingerprint = fingerprint_base(checkpoint, config)
    identity = BaseIdentity(str(base), fingerprint, config.hidden, config.vocab)
    table.check_base(identity, str(base))
    for entry in table.entries.values():
        check_prefix(entry, config, f"reading the prompt table {path}")
    tokenizer = Tokenizer.from_folder(base, vocab=config.vocab)
    return Session.of_entries(tokenizer, table.entries, TorchEngine(base))


def session_on_reference(bundle: Path, base: Path) -> Session:
    """A session that runs a bundle's tasks on torch, with the bundle's capacity.

    Raises:
        FingerprintError: `base` is not what the bundle was compiled from.
    """
    from pl_compile.training.reference import TorchEngine

    checked = read_bundle(bundle)
    check_reference(checked, base)
    engine = TorchEngine(base, capacity=checked.manifest.graph.capacity)
    tokenizer = Tokenizer.from_folder(bundle, vocab=checked.manifest.graph.vocab)
    return Session.of_entries(tokenizer, checked.entries, engine)


def evaluate(
    session: Session,
    data: Sequence[Path],
    options: EvalOptions,
    *,
    reference: Session | None = None,
    progress: Progress = SILENT,
) -> list[TaskScore]:
    """The scores of every task that occurs in the data.

    Raises:
        DataError: the data cannot be read, or examples have no answer that can be scored.
        RequestError: examples that cannot be served, all with their places, before any is.
        ConfigError: an unknown metric.
    """
    if options.metric not in ("auto", *METRICS):
        found, fix = unknown_name(options.metric, ("auto", *METRICS), what="metric")
        raise ConfigError("choosing the metric", found=found, fix=fix)
    templates = {name: prompt.renderer.template for name, prompt in session.prompts.items()}
    examples = read_examples(data, templates, answers=False)
    by_task = first_of_each_task(examples, options.limit)
    check_answers(by_task, templates, options.metric)
    asked = [_asked(session, task, mine, options) for task, mine in by_task.items()]
    rows = [pair for each in asked for pair in zip(each.requests, each.examples, strict=True)]
    _check_all(session, rows)
    if options.tell_cuts:
        tell_cuts(session, rows, progress)
    return [_score(session, each, options, reference, progress) for each in asked]


@dataclass(frozen=True)
class _Asked:
    """What a task is asked, and what is right."""

    task: str
    metric: str
    examples: Sequence[Example]
    answers: Sequence[Reference]
    requests: Sequence[Request]


def _asked(
    session: Session, task: str, examples: Sequence[Example], options: EvalOptions
) -> _Asked:
    template = session.prompts[task].renderer.template
    answers = [right_answer(example, template) for example in examples]
    metric = metric_for(answers, template, options.metric)
    flat = [
        text for answer in answers for text in ([answer] if isinstance(answer, str) else answer)
    ]
    # One line is all that is asked for where no right answer has two: it spares the base, which was
    # never taught to stop, from being judged by what it says after its answer.
    stop = () if any("\n" in text for text in flat) else ("\n",)
    max_tokens = options.max_tokens
    if max_tokens is None:
        lengths = [session.tokenizer.count(text) for text in flat]
        max_tokens = max(lengths, default=0) + _EXTRA_TOKENS

    requests = [
        Request(
            task,
            _inputs(example, template.answer_field),
            max_tokens=max_tokens,
            stop=stop,
        )
        for example in examples
    ]
    return _Asked(task, metric, examples, answers, requests)


def _score(
    session: Session,
    asked: _Asked,
    options: EvalOptions,
    reference: Session | None,
    progress: Progress,
) -> TaskScore:
    task, metric, answers, requests = asked.task, asked.metric, asked.answers, asked.requests

    def answered(by: Session, label: str, *, use_prompt: bool) -> list[Result]:
        wanted = [replace(request, use_prompt=use_prompt) for request in requests]
        results: dict[int, Result] = {}
        with progress.bar(f"{task}: {label}", len(wanted)) as bar:
            for event in by.stream(wanted):
                if event.result is not None:
                    results[event.index] = event.result
                    bar.advance()
        return [results[index] for index in range(len(wanted))]

    label = "with prompt" if options.prompt else "no prompt"
    with_prompt = [r.text for r in answered(session, label, use_prompt=options.prompt)]
    without = None
    if options.baseline:
        texts = [result.text for result in answered(session, "without prompt", use_prompt=False)]
        without = METRICS[metric](texts, answers)
    same = None
    if reference is not None:
        texts = [result.text for result in answered(reference, "reference", use_prompt=True)]
        same = same_answers(texts, with_prompt)
    return TaskScore(
        task,
        metric,
        len(requests),
        METRICS[metric](with_prompt, answers),
        without,
        same,
        tuple(with_prompt),
        tuple(request.fields for request in requests),
        tuple(answer if isinstance(answer, str) else " | ".join(answer) for answer in answers),
    )


def _check_all(session: Session, rows: Sequence[tuple[Request, Example]]) -> None:
    """Raises `RequestError` with the places of all examples that cannot be served."""
    problems = []
    for request, example in rows:
        try:
            session.check(request)
        except RequestError as error:
            problems.append(f"{example.where}: {error}")
    if problems:
        raise RequestError("reading the examples to score", found=list_problems(problems))


def _inputs(example: Example, answer_field: str | None) -> dict[str, Any]:
    return {name: value for name, value in example.fields.items() if name != answer_field}
