"""A file of requests to answers, line for line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pl_compile.errors import RequestError, list_problems
from pl_compile.progress import SILENT, Progress
from pl_compile.runtime.requests import Request, Result
from pl_compile.runtime.session import Session
from pl_compile.text.examples import Example, cut_note, read_examples


@dataclass(frozen=True)
class Answered:
    """A request of a file with its answer.

    Attributes:
        index: its place in the file.
        request: what the model was given.
        result: what it wrote.
        expected: the right answer, where the file held one; it is not shown to the model.
    """

    index: int
    request: Request
    result: Result
    expected: Any

    def record(self) -> dict[str, Any]:
        """The answer as a line of the output file."""
        record = {
            "index": self.index,
            "taskname": self.result.task,
            "prediction": self.result.text,
            "token_ids": list(self.result.token_ids),
            "finish_reason": self.result.finish_reason,
            "prompt_tokens": self.result.prompt_tokens,
            "cut_tokens": self.result.cut_tokens,
        }
        return record if self.expected is None else {**record, "expected": self.expected}


def answer_file(
    session: Session, source: Path, options: Mapping[str, Any], *, progress: Progress = SILENT
) -> list[Answered]:
    """Answers every request of `source`, in its order.

    Args:
        session: serves them, in batches that mix tasks.
        source: JSONL or a JSON array with `taskname` and fields.
        options: of every `Request`.
        progress: who is told, also of requests that are cut to fit.

    Raises:
        DataError: `source` cannot be read.
        RequestError: requests that cannot be served, all of them with their places.
    """
    templates = {name: prompt.renderer.template for name, prompt in session.prompts.items()}
    requests: list[Request] = []
    expected: list[Any] = []
    problems: list[str] = []
    examples = read_examples([source], templates, answers=False)
    for example in examples:
        inputs = dict(example.fields)
        expected.append(inputs.pop(templates[example.taskname].answer_field or "", None))
        requests.append(Request(example.taskname, inputs, **options))
        try:
            session.check(requests[-1])
        except RequestError as error:
            problems.append(f"{example.where}: {error}")
    if problems:
        raise RequestError(f"answering {source}", found=list_problems(problems))
    tell_cuts(session, list(zip(requests, examples, strict=True)), progress)

    results: dict[int, Result] = {}
    with progress.bar("answering", len(requests)) as bar:
        for event in session.stream(requests):
            if event.result is not None:
                results[event.index] = event.result
                bar.advance()
    return [
        Answered(index, request, results[index], right)
        for index, (request, right) in enumerate(zip(requests, expected, strict=True))
    ]


def tell_cuts(
    session: Session, rows: Sequence[tuple[Request, Example]], progress: Progress
) -> None:
    """Says which of the requests, each with its example, the session must cut to fit its cache."""
    lost = {example.where: session.check(request) for request, example in rows}
    cuts = {where: tokens for where, tokens in lost.items() if tokens}
    if cuts:
        progress.say(cut_note(cuts, len(rows), session.engine.capacity))
