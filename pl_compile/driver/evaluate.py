"""Scores of tasks on labelled examples: with the prompt, and of the base alone.

In: a session (on a bundle, or on torch for a prompt table) and data files with answers. Out: for
each task the metric with and without prompt, and, if a second session is given, how often both give
the same answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pl_compile.artifact.bundle import read_bundle
from pl_compile.artifact.prompt_table import check_prefix, read_prompt_table
from pl_compile.checks.right_answers import (
    check_answers,
    first_of_each_task,
    metric_for,
    right_answer,
)
from pl_compile.driver.ask import answers_to, checked_requests
from pl_compile.driver.verify import check_reference
from pl_compile.errors import AnswerError, ConfigError, unknown_name
from pl_compile.metrics import METRICS, Reference
from pl_compile.progress import SILENT, Progress
from pl_compile.runtime.requests import Request
from pl_compile.runtime.session import Session
from pl_compile.text.examples import Example, read_examples
from pl_compile.text.template import Template
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.weights.fingerprint import identify_base
from pl_compile.weights.open_base import open_base

# Tokens beyond the longest right answer: enough to see a wrong answer, but not a long text.
_EXTRA_TOKENS = 8

_DOING = "scoring examples"


@dataclass(frozen=True)
class EvalOptions:
    """How to score.

    Attributes:
        metric: a key of `METRICS`, or "auto".
        prompt: whether the base is asked with the tasks' prompts.
        baseline: whether the base is also asked without virtual tokens.
        max_tokens: longest answer; if None, it follows from the right answers.
        limit: how many first examples of each task are used; all if None.
        tell_cuts: whether to report which examples are cut to fit; a training run has reported it
            before.
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
        with_prompt: the metric's numbers, in percent.
        without_prompt: those of the base alone, if asked for.
        same_as_reference: percent of examples that the second session answered alike.
        predictions: the answers with prompt, in the order of the data.
        asked: the fields of each example, in the same order.
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
    table.check_base(identify_base(str(base), checkpoint, config), str(base))
    for entry in table.entries.values():
        check_prefix(entry, config, f"reading the prompt table {path}")
    tokenizer = Tokenizer.from_folder(base, vocab=config.vocab)
    return Session.of_entries(tokenizer, table.entries, TorchEngine(base, config=config))


def session_on_reference(bundle: Path, base: Path) -> Session:
    """A session that runs a bundle's tasks on torch, with the bundle's capacity.

    Raises:
        FingerprintError: `base` is not the base that the bundle was compiled from.
    """
    from pl_compile.training.reference import TorchEngine

    checked = read_bundle(bundle)
    config = check_reference(checked, base)
    engine = TorchEngine(base, config=config, capacity=checked.manifest.graph.capacity)
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
        AnswerError: as for `score_examples`.
    """
    templates = {name: prompt.renderer.template for name, prompt in session.tasks.items()}
    examples = read_to_score(data, templates, options)
    return score_examples(session, examples, options, reference=reference, progress=progress)


def read_to_score(
    data: Sequence[Path], templates: Mapping[str, Template], options: EvalOptions
) -> dict[str, list[Example]]:
    """The examples of each task in the data. They are checked: all of them can be scored.

    Raises:
        DataError: the data cannot be read, or examples have no answer that can be scored.
        ConfigError: an unknown metric.
    """
    if options.metric not in ("auto", *METRICS):
        found, fix = unknown_name(options.metric, ("auto", *METRICS), what="metric")
        raise ConfigError("choosing the metric", found=found, fix=fix)
    examples = read_examples(data, templates, answers=False)
    by_task = first_of_each_task(examples, options.limit)
    check_answers(by_task, templates, options.metric)
    return by_task


def score_examples(
    session: Session,
    examples: Mapping[str, Sequence[Example]],
    options: EvalOptions,
    *,
    reference: Session | None = None,
    progress: Progress = SILENT,
) -> list[TaskScore]:
    """The scores of the tasks.

    Args:
        session: it answers the examples.
        examples: of each task, as `read_to_score` gives them.
        options: how to score.
        reference: a second session; its answers are compared with the first one's.
        progress: receives messages.

    Raises:
        RequestError: examples that cannot be served, all with their places, before any is.
        AnswerError: the logits of some examples are not finite numbers: a score without them would
            not be that of the data. Its `results` are the scores of the other tasks.
    """
    asked = [_asked(session, task, mine, options) for task, mine in examples.items()]
    requests = iter(
        checked_requests(
            session,
            [(example, each.options) for each in asked for example in each.examples],
            doing=_DOING,
            progress=progress if options.tell_cuts else SILENT,
        )
    )
    scores: list[TaskScore] = []
    failed: list[str] = []
    for each in asked:
        mine = [next(requests) for _ in each.examples]
        try:
            scores.append(_score(session, each, mine, options, reference, progress))
        except AnswerError as error:
            failed += error.places.values()
    if failed:
        raise AnswerError(_DOING, dict(enumerate(failed)), results=scores)
    return scores


@dataclass(frozen=True)
class _Asked:
    """What a task is asked, and the right answers."""

    task: str
    metric: str
    examples: Sequence[Example]
    answers: Sequence[Reference]
    options: Mapping[str, Any]  # of every request


def _asked(
    session: Session, task: str, examples: Sequence[Example], options: EvalOptions
) -> _Asked:
    template = session.tasks[task].renderer.template
    answers = [right_answer(example, template) for example in examples]
    metric = metric_for(answers, template, options.metric)
    flat = [
        text for answer in answers for text in ([answer] if isinstance(answer, str) else answer)
    ]
    # If every right answer is one line, an answer ends at the end of its line. The base alone was
    # never taught to stop: so it is not judged by what it writes after its answer.
    stop = () if any("\n" in text for text in flat) else ("\n",)
    max_tokens = options.max_tokens
    if max_tokens is None:
        lengths = [session.tokenizer.count(text) for text in flat]
        max_tokens = max(lengths, default=0) + _EXTRA_TOKENS

    return _Asked(task, metric, examples, answers, {"max_tokens": max_tokens, "stop": stop})


def _score(
    session: Session,
    asked: _Asked,
    requests: Sequence[Request],
    options: EvalOptions,
    reference: Session | None,
    progress: Progress,
) -> TaskScore:
    task, metric, answers = asked.task, asked.metric, asked.answers

    def answered(by: Session, label: str, *, use_prompt: bool) -> list[str]:
        wanted = [replace(request, use_prompt=use_prompt) for request in requests]
        label = f"{task}: {label}"
        results = answers_to(
            by, wanted, asked.examples, doing=_DOING, label=label, progress=progress
        )
        return [result.text for result in results]

    label = "with prompt" if options.prompt else "no prompt"
    with_prompt = answered(session, label, use_prompt=options.prompt)
    without = None
    if options.baseline:
        without = METRICS[metric](answered(session, "without prompt", use_prompt=False), answers)
    same = None
    if reference is not None:
        same = same_answers(answered(reference, "reference", use_prompt=True), with_prompt)
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
