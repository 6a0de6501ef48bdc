"""Data files to examples, with every problem of all files reported together.

In: JSONL or JSON-array files, and the templates of the tasks they may name. Out: `Example`s that
have exactly the fields of their template. Knows no tokens.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pl_compile.errors import DataError, did_you_mean, list_problems, unknown_name
from pl_compile.text.render import is_field_value
from pl_compile.text.template import Template


@dataclass(frozen=True)
class Example:
    """One example of a task.

    Attributes:
        taskname: the task it belongs to.
        fields: its values, the answer included where the file gives it.
        where: file and line (or item of a JSON array), for messages.
    """

    taskname: str
    fields: Mapping[str, Any]
    where: str


def read_examples(
    paths: Sequence[Path], templates: Mapping[str, Template], *, answers: bool = True
) -> list[Example]:
    """The examples of all files, in order.

    Args:
        paths: JSONL files, or files that hold one JSON array.
        templates: the known tasks by name.
        answers: whether every example must give its answer field; where false, it may.

    Raises:
        DataError: a file that cannot be read, JSON that cannot be parsed, a task or fields that do
            not fit: all of them, each with file and line.
    """
    examples: list[Example] = []
    problems: list[str] = []
    for path in paths:
        for where, value in _objects(path, problems):
            found = _problem(value, templates, answers)
            if found:
                problems.append(f"{where}: {found}")
            else:
                fields = {key: item for key, item in value.items() if key != "taskname"}
                examples.append(Example(value["taskname"], fields, where))
    doing = f"reading {', '.join(str(path) for path in paths)}"
    if problems:
        raise DataError(doing, found=list_problems(problems))
    if not examples:
        raise DataError(doing, found="no examples", expected="at least one JSON object a line")
    return examples


def _objects(path: Path, problems: list[str]) -> Iterator[tuple[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or f"not UTF-8 ({error})"
        problems.append(f"{path}: {reason}, expected a UTF-8 file")
        return
    if text.lstrip().startswith("["):
        try:
            items = json.loads(text)
        except (ValueError, RecursionError) as error:
            problems.append(f"{path}: not a JSON array ({error})")
            return
        for index, item in enumerate(items):
            yield f"{path}, item {index}", item
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{path}:{number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{path}:{number}: not JSON ({error})")


def _problem(value: Any, templates: Mapping[str, Template], answers: bool) -> str:
    if not isinstance(value, dict):
        return "not a JSON object"
    taskname = value.get("taskname")
    if not isinstance(taskname, str):
        return "no 'taskname'"
    if taskname not in templates:
        return ". ".join(unknown_name(taskname, tuple(templates), what="task"))
    template = templates[taskname]
    wanted = template.fields if answers else template.input_fields
    given = [key for key in value if key != "taskname"]
    missing = [name for name in wanted if name not in given]
    foreign = [name for name in given if name not in template.fields]
    wrong = [
        name
        for name in given
        if name in template.fields
        and not is_field_value(value[name])
        and not (not answers and name == template.answer_field and _is_list_of_texts(value[name]))
    ]
    parts = []
    choices, answer = template.task.choices, value.get(template.answer_field or "")
    if answers and choices and answer is not None and str(answer) not in choices:
        parts.append(f"the answer {answer!r} is not one of the choices {list(choices)}")
    if missing:
        parts.append(f"no field {', '.join(map(repr, missing))}")
    if foreign:
        hints = filter(None, (did_you_mean(name, missing) for name in foreign))
        text = f"{', '.join(map(repr, foreign))} not in the template of '{taskname}'"
        parts.append(". ".join([text, *hints]))
    if wrong:
        parts.append(f"fields {', '.join(map(repr, wrong))} are no text or number")
    return "; ".join(parts)


def _is_list_of_texts(value: Any) -> bool:
    """Several right answers, where answers are only compared with."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
