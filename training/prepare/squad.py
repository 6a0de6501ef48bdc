"""SQuAD v1.1 (or v2.0) JSON to JSON lines.

In: the publisher's nested files, one for training and one for development. Out: `squad_train`,
`squad_val` (the first answer), `squad_test` (no answer) and `squad_test_ground_truth` (`answer` is
the list of all). Fields are `taskname`, `context`, `question`, `answer` and on request `topic`, as
NeMo v1.12 and later writes them. Validation and test are both the development file: the publisher
keeps the real test set. `answer` has no leading space. Knows nothing of templates.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pl_compile.errors import DataError, list_problems
from pl_compile.training.prepare.source import read_text
from pl_compile.training.prepare.splits import Row, without_field, write_jsonl

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Question:
    topic: str
    context: str
    text: str
    answers: list[str]


def prepare_squad(
    input_path: Path,
    output_dir: Path,
    *,
    train_file: str | None = None,
    dev_file: str | None = None,
    include_topic: bool = False,
) -> dict[str, int]:
    """Writes the four files of SQuAD.

    Questions without an answer (v2.0) are left out of training and validation, with a warning that
    counts them; in the test's ground truth their `answer` is an empty list.

    Args:
        input_path: the folder with one *train*.json and one *dev*.json.
        output_dir: made if it is not there.
        train_file: the training file, absolute or inside the folder; found by its name if None.
        dev_file: the development file, likewise.
        include_topic: adds the title of the article as `topic`.

    Returns:
        The number of rows by file name.

    Raises:
        DataError: a file is missing, ambiguous, no JSON or of another form; all problems of a file
            with their JSON path. Nothing is written then.
        ArtifactError: the disk refuses.
    """
    train_path = _find(input_path, train_file, "train")
    dev_path = _find(input_path, dev_file, "dev")
    train = _read(train_path)
    dev = _read(dev_path)

    truth = [_row(question, question.answers, include_topic) for question in dev]
    return write_jsonl(
        output_dir,
        {
            "squad_train.jsonl": _answerable(train, include_topic, train_path),
            "squad_val.jsonl": _answerable(dev, include_topic, dev_path),
            "squad_test.jsonl": without_field(truth, "answer"),
            "squad_test_ground_truth.jsonl": truth,
        },
    )


def _find(folder: Path, name: str | None, kind: str) -> Path:
    if name is not None:
        return folder / name
    found = sorted(path.name for path in folder.glob("*.json") if kind in path.name)
    if len(found) != 1:
        raise DataError(
            f"looking for SQuAD in {folder}",
            found=", ".join(found) or f"no *{kind}*.json",
            expected=f"one *{kind}*.json",
            fix=f"Name the file with --{kind}-file.",
        )
    return folder / found[0]


def _read(path: Path) -> list[_Question]:
    doing = f"reading {path}"
    try:
        document = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        found = f"line {error.lineno} column {error.colno}: {error.msg}"
        raise DataError(doing, found=found, expected="JSON") from error

    problems: list[str] = []
    questions = list(_questions(document, problems))
    if not questions and not problems:
        problems.append("data: no questions")
    if problems:
        raise DataError(doing, found=list_problems(problems), expected="the form of SQuAD")
    return questions


def _questions(document: Any, problems: list[str]) -> Iterator[_Question]:
    for article, at_article in _items(document, "data", "", problems):
        topic = _text(article, "title", at_article, problems)
        for paragraph, at_paragraph in _items(article, "paragraphs", at_article, problems):
            context = _text(paragraph, "context", at_paragraph, problems)
            for qa, at_qa in _items(paragraph, "qas", at_paragraph, problems):
                question = _text(qa, "question", at_qa, problems)
                answers = [
                    _text(answer, "text", at_answer, problems)
                    for answer, at_answer in _items(qa, "answers", at_qa, problems)
                ]
                yield _Question(topic, context, question, answers)


def _items(node: Any, key: str, at: str, problems: list[str]) -> list[tuple[Any, str]]:
    """The items of the list `node[key]`, each with its JSON path."""
    path = f"{at}.{key}".lstrip(".")
    items = _value(node, key, at, problems)
    if items is None:
        return []
    if not isinstance(items, list):
        problems.append(f"{path}: {_kind(items)}, expected a list")
        return []
    return [(item, f"{path}[{index}]") for index, item in enumerate(items)]


def _text(node: Any, key: str, at: str, problems: list[str]) -> str:
    text = _value(node, key, at, problems)
    if text is None:
        return ""
    if not isinstance(text, str):
        problems.append(f"{at}.{key}: {_kind(text)}, expected a text")
        return ""
    return text


def _value(node: Any, key: str, at: str, problems: list[str]) -> Any:
    if not isinstance(node, dict):
        # One broken object is one problem, however many of its keys are asked for.
        problem = f"{at or 'the top level'}: {_kind(node)}, expected an object"
        if problem not in problems[-1:]:
            problems.append(problem)
        return None
    if node.get(key) is None:
        problems.append(f"{at or 'the top level'}: '{key}' is missing")
        return None
    return node[key]


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, list) else json.dumps(value)[:60]


def _answerable(questions: list[_Question], include_topic: bool, path: Path) -> list[Row]:
    rows = [
        _row(question, question.answers[0], include_topic)
        for question in questions
        if question.answers
    ]
    n_left_out = len(questions) - len(rows)
    if n_left_out:
        _log.warning(
            "%s: %d of %d questions have no answer and are left out of training and validation",
            path.name,
            n_left_out,
            len(questions),
        )
    return rows


def _row(question: _Question, answer: str | list[str], include_topic: bool) -> Row:
    row: dict[str, str | list[str]] = {
        "taskname": "squad",
        "context": question.context,
        "question": question.text,
        "answer": answer,
    }
    return {**row, "topic": question.topic} if include_topic else row
