"""A file of requests in, a file of answers out, line by line alike."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pl_compile.artifact.files import write_atomically
from pl_compile.errors import RequestError, list_problems
from pl_compile.progress import Progress
from pl_compile.runtime.requests import Request, Result
from pl_compile.runtime.session import Session
from pl_compile.training.data.examples import read_examples


def answer_file(
    session: Session,
    source: Path,
    output: Path | None,
    options: Mapping[str, Any],
    *,
    progress: Progress,
) -> int:
    """Answers every request of `source` and returns how many there were.

    A line of the output has `index`, `taskname`, `prediction`, `token_ids`, `finish_reason`,
    `prompt_tokens`, and `expected` where the input held the answer. Line n answers request n.

    Args:
        session: serves them, in mixed batches.
        source: JSONL or a JSON array; an answer field may be there and is not shown to the model.
        output: written whole or not at all; standard output if None.
        options: of every `Request`.
        progress: who is told.

    Raises:
        DataError: `source` cannot be read.
        RequestError: requests that cannot be served, all of them with their places.
    """
    templates = {name: prompt.renderer.template for name, prompt in session.prompts.items()}
    examples = read_examples([source], templates, answers=False)
    requests = []
    expected = []
    for example in examples:
        answer_field = templates[example.taskname].answer_field
        inputs = {name: value for name, value in example.fields.items() if name != answer_field}
        requests.append(Request(example.taskname, inputs, **options))
        expected.append(example.fields.get(answer_field) if answer_field else None)
    problems = []
    for example, request in zip(examples, requests, strict=True):
        try:
            session.check(request)
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
    lines = []
    for index, right in enumerate(expected):
        result = results[index]
        record = {
            "index": index,
            "taskname": result.task,
            "prediction": result.text,
            "token_ids": list(result.token_ids),
            "finish_reason": result.finish_reason,
            "prompt_tokens": result.prompt_tokens,
        }
        if right is not None:
            record["expected"] = right
        lines.append(json.dumps(record, ensure_ascii=False))
    text = "\n".join(lines) + "\n"
    if output is None:
        print(text, end="")
    else:
        write_atomically(output, text.encode())
    return len(results)
