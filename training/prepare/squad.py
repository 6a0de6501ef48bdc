"""SQuAD v1.1 (or v2.0) JSON to JSON lines.

In: one file for training and one for development, as JSON or JSON lines, in the publisher's nested
form or in that of the library `datasets`: a row for each question. Out: `squad_train`, `squad_val`
(the first answer), `squad_test` (no answer) and `squad_test_ground_truth` (`answer` is the list of
all). Fields are `taskname`, `context`, `question`, `answer` and on request `topic`, as NeMo v1.12
and later writes them. Validation and test are both made from the development file, since the real
test set is not published. `answer` has no leading space. Knows nothing of templates.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pl_compile.config.strict_json import parse_json
from pl_compile.config.utf8 import split_lines
from pl_compile.errors import DataError, list_problems
from pl_compile.training.prepare.source import read_text
from pl_compile.training.prepare.splits import Row, without_field, write_jsonl

_log = logging.getLogger(__name__)

# Words in a file's name that say which part it is.
_NAMES = {"train": ("train",), "dev": ("dev", "val")}


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

    Questions without an answer (v2.0), in any of the known forms, are left out of training and
    validation, with a warning that counts them. In the test's ground truth their `answer` is an
    empty list.

    Args:
        input_path: the folder with one *train*.json and one *dev*.json or *val*.json; .jsonl is
            possible too.
        output_dir: made if it does not exist.
        train_file: the training file, absolute or inside the folder; if None, found by its name.
        dev_file: the development file, likewise.
        include_topic: adds the title of the article as `topic`.

    Returns:
        The number of rows by file name.

    Raises:
        DataError: a file is missing, ambiguous, not JSON or of another form: all problems of a
            file, with their JSON paths. Nothing is written then.
        ArtifactError: the files cannot be written.
    """
    _check_folder(input_path)
    train_path = _find(input_path, train_file, "train")
    dev_path = _find(input_path, dev_file, "dev")
    if train_path.exists() and dev_path.exists() and train_path.samefile(dev_path):
        raise DataError(
            f"looking for SQuAD in {input_path}",
            found=f"{train_path.name} both for training and for development",
            expected="two files",
            fix="Name another development file: examples that were trained on say little.",
        )
    train = _read(train_path, include_topic)
    dev = _read(dev_path, include_topic)

    truth = [_row(question, question.answers, include_topic) for question in dev]
    return write_jsonl(
        output_dir,
        {
            "squad_train.jsonl": _answerable(train, include_topic, train_path),
            "squad_val.jsonl": _answerable(dev, include_topic, dev_path),
            "squad_test.jsonl": without_field(truth, "answer"),
            "squad_test_ground_truth.jsonl": truth,
        },
        inputs=(train_path, dev_path),
    )


def _check_folder(path: Path) -> None:
    if path.is_dir():
        return
    doing = f"looking for SQuAD in {path}"
    if not path.exists():
        raise DataError(doing, found="no such folder", fix="Check the path.")
    raise DataError(
        doing,
        found="a file",
        expected="the folder that holds it",
        fix=f"Give --input {path.parent}, and both files by name with --train-file and --dev-file.",
    )


def _find(folder: Path, name: str | None, kind: str) -> Path:
    if name is not None:
        return folder / name
    found = sorted(
        path.name
        for path in folder.glob("*.json*")
        if path.suffix in (".json", ".jsonl") and any(n in path.stem for n in _NAMES[kind])
    )
    if len(found) != 1:
        raise DataError(
            f"looking for SQuAD in {folder}",
            found=", ".join(found) or f"no *{kind}*.json",
            expected=f"one *{kind}*.json",
            fix=f"Name the file with --{kind}-file.",
        )
    return folder / found[0]


def _read(path: Path, include_topic: bool) -> list[_Question]:
    problems: list[str] = []
    questions: list[_Question] = []
    for item, at in _load(path, problems):
        questions += _questions(item, at, include_topic, problems)
    if not questions and not problems:
        problems.append("no questions")
    if problems:
        raise DataError(
            f"reading {path}",
            found=list_problems(problems),
            expected="the form of SQuAD, or a row for each question as the library datasets has it",
        )
    return questions


def _load(path: Path, problems: list[str]) -> list[tuple[Any, str]]:
    """The articles or rows of a file, each with its place."""
    text = "\n".join(split_lines(read_text(path)))
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if len(lines) > 1 and _is_whole(lines[0][1]):
        items = []
        for number, line in lines:
            try:
                items.append((parse_json(line), f"line {number}"))
            except json.JSONDecodeError as error:
                problems.append(f"line {number} column {error.colno}: {error.msg}")
        return items
    try:
        document = parse_json(text)
    except json.JSONDecodeError as error:
        found = f"line {error.lineno} column {error.colno}: {error.msg}"
        raise DataError(f"reading {path}", found=found, expected="JSON") from error
    if isinstance(document, list):
        return [(item, f"[{index}]") for index, item in enumerate(document)]
    if isinstance(document, dict) and "question" in document:
        return [(document, f"line {lines[0][0]}")]
    return _items(document, "data", "", problems)


def _is_whole(line: str) -> bool:
    """Whether a line is a whole JSON object, as the first line of JSON lines is."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _questions(item: Any, at: str, include_topic: bool, problems: list[str]) -> Iterator[_Question]:
    """The questions of an article, or of a single paragraph or row."""
    keys = item if isinstance(item, dict) else {}
    topic = _text(item, "title", at, problems) if include_topic else ""
    if "paragraphs" not in keys and "question" in keys:
        context = _text(item, "context", at, problems)
        yield _question(item, at, topic, context, problems)
        return
    paragraphs = [(item, at)]
    if "qas" not in keys:
        paragraphs = _items(item, "paragraphs", at, problems)
    for paragraph, at_paragraph in paragraphs:
        context = _text(paragraph, "context", at_paragraph, problems)
        for qa, at_qa in _items(paragraph, "qas", at_paragraph, problems):
            yield _question(qa, at_qa, topic, context, problems)


def _question(node: Any, at: str, topic: str, context: str, problems: list[str]) -> _Question:
    text = _text(node, "question", at, problems)
    return _Question(topic, context, text, _answers(node, at, problems))


def _answers(node: Any, at: str, problems: list[str]) -> list[str]:
    """The answers of a question; empty where it has none.

    Known forms are a list of objects (SQuAD), an object with a list (`datasets`), a list of texts,
    or a single one of these. Null, an empty list and an empty text mean no answer.
    """
    if isinstance(node, dict) and node.get("is_impossible") is True:
        return []  # v2.0 may still list plausible answers
    if isinstance(node, dict) and "answers" in node and node["answers"] is None:
        return []
    found = _value(node, "answers", at, problems)
    answers = found if isinstance(found, list) else [found]
    texts: list[str] = []
    for index, answer in enumerate(answers if found is not None else []):
        where = f"{at}.answers[{index}]" if isinstance(found, list) else f"{at}.answers"
        inner = answer.get("text") if isinstance(answer, dict) else None
        if isinstance(answer, str):
            texts.append(answer)
        elif isinstance(inner, list) and all(isinstance(text, str) for text in inner):
            texts += inner
        else:
            texts.append(_text(answer, "text", where, problems))
    return [text for text in texts if text.strip()]


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
        # A broken object is reported once, not for each key that is asked for.
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
