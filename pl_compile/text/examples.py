"""Reads data files into examples and reports every problem of all files together.

In: JSONL or JSON-array files, and the templates of the tasks they may name. Out: `Example`s that
have exactly the fields of their template. What other programs would read differently (NaN, a key
that is given twice) is refused with its line. Knows no tokens.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from pl_compile.config import lfs
from pl_compile.config.strict_json import parse_json, parse_json_array
from pl_compile.config.utf8 import read_utf8, split_lines
from pl_compile.errors import DataError, did_you_mean, list_problems, reason_of, unknown_name
from pl_compile.text.field_value import is_field_value
from pl_compile.text.other_forms import SPREAD, TABLE, form_of_file, form_of_line
from pl_compile.text.template import Template

OPTIONS = "options"  # the key of a request's own options

# The places of each mistake, by its text: thousands of rows may have the same one.
_Problems: TypeAlias = defaultdict[str, list[str]]


@dataclass(frozen=True)
class Example:
    """One example of a task.

    Attributes:
        taskname: the task it belongs to.
        fields: its values, the answer included where the file gives it.
        where: file and line (or item of a JSON array), for messages.
        options: how this one wants to be answered, by name; their values are not checked yet.
    """

    taskname: str
    fields: Mapping[str, Any]
    where: str
    options: Mapping[str, Any] = field(default_factory=dict)


def read_examples(
    paths: Sequence[Path],
    templates: Mapping[str, Template],
    *,
    answers: bool = True,
    options: Collection[str] = (),
) -> list[Example]:
    """The examples of all files, in order.

    Args:
        paths: JSONL files, or files that hold one JSON array.
        templates: the known tasks by name.
        answers: whether every example must give its answer field; if False, it may be left out.
        options: names that an example may have under "options", where that is no field of its
            template.

    Raises:
        DataError: a file that cannot be read, JSON that cannot be parsed, a task or fields that do
            not fit: all of them, each with file and line.
    """
    examples: list[Example] = []
    problems: _Problems = defaultdict(list)
    for path in paths:
        for where, value in _objects(path, problems):
            own = _options_in(value, templates) if options else None
            fields = value if own is None else _without(value, OPTIONS)
            found = _problem(fields, templates, answers, options) or _wrong_options(own, options)
            if found:
                problems[found].append(where)
            else:
                taskname = value["taskname"]
                examples.append(Example(taskname, _without(fields, "taskname"), where, own or {}))
    doing = f"reading {', '.join(str(path) for path in paths)}"
    if problems:
        raise DataError(doing, found=list_problems(_with_places(problems)))
    if not examples:
        raise DataError(doing, found="no examples", expected="at least one JSON object a line")
    return examples


def _options_in(value: Any, templates: Mapping[str, Template]) -> Any:
    """What an example has under "options"; None where it has none, or a field of this name."""
    if not isinstance(value, dict) or OPTIONS not in value:
        return None
    template = templates.get(str(value.get("taskname")))
    return None if template is not None and OPTIONS in template.fields else value[OPTIONS]


def _wrong_options(given: Any, known: Collection[str]) -> str:
    """What is wrong with the options of an example, but for their values."""
    if given is None:
        return ""
    if not isinstance(given, dict):
        return f"'{OPTIONS}' is no object; expected options by name"
    unknown = next((name for name in given if name not in known), None)
    if unknown is None:
        return ""
    return ". ".join(unknown_name(unknown, tuple(known), what="option"))


def _without(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key != name}


def _with_places(problems: _Problems, *, most: int = 3) -> list[str]:
    """Each problem as a line, with the first of its places."""
    return [
        f"{', '.join(found[:most])}"
        f"{f' and {len(found) - most} more' if len(found) > most else ''}: {what}"
        for what, found in problems.items()
    ]


def choice_problem(answer: object, choices: Sequence[str]) -> str:
    """What is wrong with a right answer, or with a list of them, of a task with these choices."""
    answers = answer if isinstance(answer, list) else [answer]
    if not choices or any(str(each) in choices for each in answers):
        return ""
    return f"the answer {answer!r} is not one of the choices {list(choices)}"


def copy_problem(answer: object, value: Mapping[str, Any], template: Template) -> str:
    """What is wrong with a right answer of a task whose answers are copied from a field."""
    copied = template.task.answer
    if copied is None or str(answer).strip() in str(value.get(copied.span, "")):
        return ""
    return f"the answer {answer!r:.80} is not a part of field '{copied.span}'"


def cut_note(cuts: Mapping[str, int], total: int, limit: int, *, most: int = 3) -> str:
    """A line about examples whose truncate field was cut.

    Args:
        cuts: how many tokens each of them lost, by its place; at least one.
        total: examples in all.
        limit: tokens that they had to fit.
        most: places to show.
    """
    return (
        f"cut {len(cuts)} of {total} to fit {limit} tokens, by up to {max(cuts.values())} "
        f"({first_places(list(cuts), most)})"
    )


def first_places(places: Sequence[str], most: int) -> str:
    """The first of several places, for a message."""
    return f"{', '.join(places[:most])}{' …' if len(places) > most else ''}"


def _objects(path: Path, problems: _Problems) -> Iterator[tuple[str, Any]]:
    try:
        lines = split_lines(read_utf8(path))
    except (OSError, ValueError) as error:
        problems[f"{reason_of(error)}, expected a UTF-8 file"].append(str(path))
        return
    first = next((line for line in lines if line.strip()), "")
    if first.lstrip().startswith("["):
        yield from _items(path, "\n".join(lines), problems)
        return
    if lfs.is_pointer(first):
        problems[f"{lfs.FOUND}. {lfs.FIX}".rstrip(".")].append(str(path))
        return
    malformed = False
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            yield where, parse_json(line)
        except json.JSONDecodeError as error:
            form = form_of_line(line)
            if not form and not malformed:
                form = form_of_file(lines, number - 1)
            problems[f"not JSON ({_reason(error)}){form}"].append(where)
            if form in (SPREAD, TABLE):
                return
            malformed = True


def _items(path: Path, text: str, problems: _Problems) -> Iterator[tuple[str, Any]]:
    try:
        for index, item in enumerate(parse_json_array(text)):
            yield f"{path}, item {index}", item
    except json.JSONDecodeError as error:
        problems[f"not a JSON array ({_reason(error)})"].append(f"{path}:{error.lineno}")


def _reason(error: json.JSONDecodeError) -> str:
    return f"{error.msg}, column {error.colno}"


def _problem(
    value: Any, templates: Mapping[str, Template], answers: bool, options: Collection[str]
) -> str:
    if not isinstance(value, dict):
        return "not a JSON object"
    taskname = value.get("taskname")
    if not isinstance(taskname, str):
        return f"no 'taskname': {_without_taskname(value, templates, answers)}"
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
    parts: list[str] = []
    answer = value.get(template.answer_field or "")
    if answers and answer is not None:
        wrong_choice = choice_problem(answer, template.task.choices)
        parts += filter(None, [wrong_choice, copy_problem(answer, value, template)])
    if missing:
        parts.append(f"no field {', '.join(map(repr, missing))}")
    if foreign:
        hints = " ".join(filter(None, (did_you_mean(name, missing) for name in foreign)))
        text = f"{', '.join(map(repr, foreign))} not in the template of '{taskname}'"
        names = ",".join(template.fields)
        take_out = f"{text}: take them out ('plc prepare csv --columns {names}' does)"
        if set(foreign) <= {*options}:
            moved = ", ".join(f"{json.dumps(name)}: \u2026" for name in foreign)
            take_out = f'{text}: write "{OPTIONS}": {{{moved}}}'
        parts.append(f"{text}. {hints}".rstrip(" .") if missing else take_out)
    if wrong:
        found = ", ".join(f"{name!r} is {_kind(value[name])}" for name in wrong)
        parts.append(f"field {found}; expected text or a number")
    return "; ".join(parts)


def _without_taskname(
    value: Mapping[str, Any], templates: Mapping[str, Template], answers: bool
) -> str:
    """What to do with an object that names no task."""
    holder = next((key for key, item in value.items() if _is_list_of_rows(item, templates)), None)
    if holder is not None:
        return f"write the list '{holder}' alone, without what holds it"
    wanted = {name: t.fields if answers else t.input_fields for name, t in templates.items()}
    fitting = [name for name, fields in wanted.items() if set(fields) <= {*value}]
    if fitting:
        return f'add "taskname": {" or ".join(map(json.dumps, fitting))} to each row'
    template = next(iter(templates.values()))
    names = template.fields if answers else template.input_fields
    fields = "".join(f", {json.dumps(name, ensure_ascii=False)}: \u2026" for name in names)
    return f'expected {{"taskname": {json.dumps(template.task.taskname)}{fields}}}'


def _is_list_of_rows(value: Any, templates: Mapping[str, Template]) -> bool:
    """Whether a value holds examples. The messages of a chat are objects too, but not examples."""

    def is_row(item: Any) -> bool:
        fits = any(set(template.fields) <= {*item} for template in templates.values())
        return "taskname" in item or fits

    return (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict) and is_row(value[0])
    )


def _kind(value: object) -> str:
    """The kind of a value that no field takes, without its text: equal mistakes are counted."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return "half of a character" if isinstance(value, str) else "a number that is too large"


def _is_list_of_texts(value: Any) -> bool:
    """Whether it is a list of right answers, which is allowed where answers are only compared."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
