"""The examples of a data file as requests, and what a session answers to them."""

from collections.abc import Mapping, Sequence
from typing import Any

from pl_compile.errors import AnswerError, RequestError, list_problems
from pl_compile.progress import SILENT, Progress
from pl_compile.runtime.requests import Request, Result, with_options
from pl_compile.runtime.session import Session
from pl_compile.text.examples import Example, cut_note


def answer_of(session: Session, example: Example) -> Any:
    """The right answer, if the example holds one; else None."""
    return example.fields.get(_answer_field(session, example))


def checked_requests(
    session: Session,
    rows: Sequence[tuple[Example, Mapping[str, Any]]],
    *,
    doing: str,
    progress: Progress = SILENT,
) -> list[Request]:
    """A request for each example, without its answer.

    Args:
        session: it will serve them.
        rows: examples of its tasks, each with the options of its `Request`. An example's own
            options come before these.
        doing: what they are for, as errors say it.
        progress: is told which of them are cut to fit the session's cache.

    Raises:
        RequestError: options that no request may have; or requests that cannot be served, or whose
            own options no request may have: all of them, with their places.
    """
    requests: list[Request] = []
    problems: list[str] = []
    cuts: dict[str, int] = {}
    for example, options in rows:
        hidden = _answer_field(session, example)
        fields = {name: value for name, value in example.fields.items() if name != hidden}
        request = Request(example.taskname, fields, **options)
        try:
            if example.options:
                request = with_options(request, example.options)
            lost = session.check(request)
        except RequestError as error:
            problems.append(f"{example.where}: {error}")
            continue
        requests.append(request)
        if lost:
            cuts[example.where] = lost
    if problems:
        raise RequestError(doing, found=list_problems(problems))
    if cuts:
        progress.say(cut_note(cuts, len(rows), session.engine.capacity))
    return requests


def answers_to(
    session: Session,
    requests: Sequence[Request],
    examples: Sequence[Example],
    *,
    doing: str,
    label: str,
    progress: Progress = SILENT,
) -> list[Result]:
    """The answers to requests, in their order.

    Args:
        session: serves them, in batches that mix tasks.
        requests: those of `checked_requests`.
        examples: what the requests were made of.
        doing: what they are for, as errors say it.
        label: the name of this step for `progress`.
        progress: receives messages.

    Raises:
        AnswerError: as for `Session.generate`, with the places of the examples.
    """
    results: dict[int, Result] = {}
    with progress.bar(label, len(requests)) as bar:
        try:
            for event in session.stream(requests):
                if event.result is not None:
                    results[event.index] = event.result
                    bar.advance()
        except AnswerError as error:
            places = {
                index: f"{examples[index].where} (task '{examples[index].taskname}')"
                for index in error.places
            }
            known = [results.get(index) for index in range(len(requests))]
            raise AnswerError(doing, places, results=known) from error
    return [results[index] for index in range(len(requests))]


def _answer_field(session: Session, example: Example) -> str:
    return session.tasks[example.taskname].renderer.template.answer_field or ""
