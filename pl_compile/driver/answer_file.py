"""A file of requests to answers, line for line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pl_compile.driver.ask import answer_of, answers_to, checked_requests
from pl_compile.errors import AnswerError
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
        result: what it wrote; None where what was computed is no number.
        expected: the right answer, where the file held one; it is not shown to the model.
    """

    index: int
    request: Request
    result: Result | None
    expected: Any

    def record(self) -> dict[str, Any]:
        """The answer as a line of the output file."""
        record: dict[str, Any] = {"index": self.index, "taskname": self.request.task}
        if self.result is None:
            record |= {"prediction": None, "finish_reason": "error"}
        else:
            record |= {
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
        AnswerError: the logits of some are no finite numbers. Its `results` are what would have
            been returned, and these have no `result`.
    """
    doing = f"answering {source}"
    templates = {name: prompt.renderer.template for name, prompt in session.prompts.items()}
    examples = read_examples([source], templates, answers=False)
    rows = [(example, options) for example in examples]
    requests = checked_requests(session, rows, doing=doing, progress=progress)

    def answered(results: Sequence[Result | None]) -> list[Answered]:
        return [
            Answered(index, request, result, answer_of(session, example))
            for index, (request, result, example) in enumerate(
                zip(requests, results, examples, strict=True)
            )
        ]

    try:
        return answered(
            answers_to(
                session, requests, examples, doing=doing, label="answering", progress=progress
            )
        )
    except AnswerError as error:
        error.results = tuple(answered(error.results))
        raise
