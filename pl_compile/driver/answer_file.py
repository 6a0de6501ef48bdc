"""A file of requests to answers, line for line."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pl_compile.errors import RequestError, list_problems
from pl_compile.progress import SILENT, Progress
from pl_compile.runtime.requests import Request, Result
from pl_compile.runtime.session import Session
from pl_compile.text.examples import read_examples


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
        progress: who is told.

    Raises:
        DataError: `source` cannot be read.
        RequestError: requests that cannot be served, all of them with their places.
    """
    templates = {name: prompt.renderer.template for name, prompt in session.prompts.items()}
    requests: list[Request] = []
    expected: list[Any] = []
    problems: list[str] = []
    for example in read_examples([source], templates, answers=False):
        inputs = dict(example.fields)
        expected.append(inputs.pop(templates[example.taskname].answer_field or "", None))
        requests.append(Request(example.taskname, inputs, **options))
        try:
            session.check(requests[-1])
        except RequestError as error:
            problems.append(f"{example.where}: {error}")
    if problems:
        raise RequestError(f"answering {source}", found=list_problems(problems))

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
