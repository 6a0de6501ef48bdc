"""Answers a file of requests, one line for each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pl_compile.artifact.files import check_writable, is_open_descriptor, write_atomically
from pl_compile.config.strict_json import with_null
from pl_compile.driver.ask import answer_of, answers_to, checked_requests
from pl_compile.errors import AnswerError, ArtifactError, reason_of
from pl_compile.progress import SILENT, Progress
from pl_compile.runtime.requests import OPTIONS, Request, Result
from pl_compile.runtime.session import Session
from pl_compile.text.examples import read_examples

_START_BYTES = 1 << 16


@dataclass(frozen=True)
class Answered:
    """A request of a file with its answer.

    Attributes:
        index: its place in the file.
        request: what the model was given.
        result: what the model wrote; None if the computed logits are not numbers.
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
            record |= {"prediction": self.result.text, **record_of(self.result)}
        return record if self.expected is None else {**record, "expected": self.expected}


def record_of(result: Result) -> dict[str, Any]:
    """An answer without its text as plain data, for JSON."""
    record: dict[str, Any] = {
        "token_ids": list(result.token_ids),
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "prefix_tokens": result.prefix_tokens,
        "cut_tokens": result.cut_tokens,
    }
    if result.log_probs is not None:
        record["log_probs"] = [each.record() for each in result.log_probs]
    return record


def check_output(path: Path) -> None:
    """Raises `ArtifactError` unless answers may be written to a file. Call it before they are made.

    A file of lines of text is replaced. Tensors, graphs and JSON documents, as a base has them, are
    never replaced: such a file holds no earlier answers.

    Args:
        path: the file; or a pipe, a device or an open descriptor such as /dev/stdout, to which
            answers are added.
    """
    check_writable(path)
    if is_open_descriptor(path) or not path.is_file():
        return
    doing = f"writing answers to {path}"
    try:
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
    except OSError as error:
        raise ArtifactError(doing, found=reason_of(error)) from error
    if found := _other_than_lines(start):
        raise ArtifactError(
            doing,
            found=found,
            expected="no file there, or one with lines of text, such as earlier answers",
            fix="Choose another --output.",
        )


def write_answers(answers: Sequence[Answered], path: Path) -> None:
    """Writes answers as JSON lines.

    Raises:
        ArtifactError: the disk refuses the file.
    """
    records = [with_null(answer.record()) for answer in answers]
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_atomically(path, "".join(lines).encode())


def answer_file(
    session: Session, source: Path, options: Mapping[str, Any], *, progress: Progress = SILENT
) -> list[Answered]:
    """Answers every request of `source`, in its order.

    Args:
        session: serves them, in batches that mix tasks.
        source: JSONL or a JSON array with `taskname`, fields, and under `options` what this request
            wants otherwise.
        options: further arguments of every `Request`.
        progress: receives messages, also about requests that are cut to fit.

    Raises:
        DataError: `source` cannot be read.
        RequestError: requests that cannot be served, all of them with their places.
        AnswerError: the logits of some requests are not finite numbers. Its `results` are what
            would have been returned; these requests have no `result`.
    """
    doing = f"answering {source}"
    templates = {name: prompt.renderer.template for name, prompt in session.tasks.items()}
    examples = read_examples([source], templates, answers=False, options=OPTIONS)
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


def _other_than_lines(start: bytes) -> str:
    """What a file that begins so holds, if not lines of text; else empty."""
    if b"\0" in start:  # a safetensors file begins with its length in 8 bytes
        return "a file of numbers, not of lines of text"
    first, line_end, _ = start.strip().partition(b"\n")
    if line_end and first.startswith((b"{", b"[")) and not _is_json(first):
        return "a JSON document over several lines"
    return ""


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
