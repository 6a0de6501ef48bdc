r"""A prompt template, parsed once into segments.

In: a `TaskConfig`. Out: a `Template`: virtual tokens, fixed text and fields in order, checked
against the task's numbers. Field values never pass through here, so nothing in them can be taken
for a marker or a field. Syntax: `<|VIRTUAL_PROMPT_n|>` (n from 0, each once, in order), `{field}`,
`{{` and `}}` for literal braces.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pl_compile.config.sizes import MOST
from pl_compile.config.task import TaskConfig
from pl_compile.errors import ConfigError, list_problems, unknown_name

# A line end, a tab or a carriage return that single quotes in a shell or YAML left as two letters.
_ESCAPE = re.compile(r"\\[ntr]")

# What Python's `str.format` takes for a conversion or a format. Of formats, only those that a name
# is unlikely to end in.
_FORMATTED = re.compile(
    r"(?P<name>[^!:]+)(?:![rsa](?::.*)?"
    r"|:(?=.*[<>=^.,\d])(?:.?[<>=^])?[-+ ]?#?0?\d*[_,]?(?:\.\d+)?[bcdeEfFgGnosxX%]?)"
)
# Digits of a marker's number that are read: no task has as many markers.
_MOST_DIGITS = 9

_TOKEN = re.compile(r"<\|VIRTUAL_PROMPT_(?P<marker>[0-9]+)\|>|\{\{|\}\}|\{(?P<field>[^{}]*)\}|[{}]")


@dataclass(frozen=True)
class Virtual:
    """A run of virtual tokens: rows `start` to `start + count - 1` of the task's prompt."""

    start: int
    count: int


@dataclass(frozen=True)
class Text:
    """Fixed text of the template's author; special tokens in it are special tokens."""

    text: str


@dataclass(frozen=True)
class Field:
    """A slot; what fills it is data."""

    name: str


Segment = Virtual | Text | Field


@dataclass(frozen=True)
class Template:
    """The parsed template of one task.

    Attributes:
        task: the task it was parsed from.
        segments: in order; no two `Text` are neighbours.
        answer_field: the field that the model writes, or None. Where the loss is on the answer
            only, it is the last segment: blanks after it are left out.
    """

    task: TaskConfig
    segments: tuple[Segment, ...]
    answer_field: str | None

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of all fields, in order of first use."""
        return tuple(dict.fromkeys(s.name for s in self.segments if isinstance(s, Field)))

    @property
    def input_fields(self) -> tuple[str, ...]:
        """Names of the fields that a request must give."""
        return tuple(name for name in self.fields if name != self.answer_field)

    @property
    def opens_with_all_virtual_tokens(self) -> bool:
        """Whether a learned prefix, which stands before everything, can replace them."""
        return self.segments[0] == Virtual(0, self.task.total_virtual_tokens)


def parse_template(task: TaskConfig) -> Template:
    """The segments of a task's template.

    Raises:
        ConfigError: all that is wrong with the template and the numbers beside it, in one message.
    """
    problems: list[str] = []
    pieces, markers = _split(task.prompt_template, problems)
    if task.answer_only_loss:
        pieces = _without_blanks_at_end(pieces)
    splits = task.virtual_token_splits or (task.total_virtual_tokens,)
    _check_markers(task, markers, splits, problems)
    fields = [piece.name for piece in pieces if isinstance(piece, Field)]
    ends_in_field = bool(pieces) and isinstance(pieces[-1], Field)
    answer = task.answer_field or (fields[-1] if ends_in_field else None)
    _check_fields(task, fields, answer, ends_in_field, problems)
    _check_copied(task, fields, answer, problems)
    if problems:
        raise ConfigError(
            f"parsing the template of task '{task.taskname}'", found=list_problems(problems)
        )
    return Template(task, _place_virtual(pieces, splits), answer)


def literal_escapes(texts: Mapping[str, str]) -> list[str]:
    r"""A line for each text, given by name, that holds "\n" as two characters: a likely mistake.

    Such texts are kept as they are: one may be about backslashes.
    """
    return [
        f"{name} holds {found[0]} as a backslash and the letter {found[0][1]}; if a line end or a "
        "tab is meant, use double quotes in YAML, and $'…' in the shell"
        for name, text in texts.items()
        if (found := _ESCAPE.search(text))
    ]


def without_input(template: Template) -> str:
    """A warning about a task whose requests give no field; empty for any other."""
    if template.input_fields or template.answer_field is None:
        return ""
    name = template.answer_field
    return (
        f"task '{template.task.taskname}' takes no input: its only field, '{name}', is what the "
        f"model writes. If '{name}' is given to it, put a field for the answer at the end"
    )


def texts_of(task: TaskConfig) -> dict[str, str]:
    """The texts that a task's author wrote, by the names to show."""
    texts = {"prompt_template": task.prompt_template, "init_text": task.init_text or ""}
    texts |= {f"choices.{index}": choice for index, choice in enumerate(task.choices)}
    return {f"{key} of task '{task.taskname}'": text for key, text in texts.items()}


def parse_templates(tasks: Sequence[TaskConfig]) -> dict[str, Template]:
    """The template of each task, by taskname.

    Raises:
        ConfigError: the problems of all templates together.
    """
    templates: dict[str, Template] = {}
    problems: list[str] = []
    for task in tasks:
        try:
            templates[task.taskname] = parse_template(task)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("reading the tasks", found=list_problems(problems))
    return templates


def _split(template: str, problems: list[str]) -> tuple[list[Segment], list[int]]:
    """The pieces (a marker as `Virtual(number, 0)` until it is given its rows) and the numbers."""
    pieces: list[Segment] = []
    markers: list[int] = []
    text = ""
    end = 0
    for match in _TOKEN.finditer(template):
        text += template[end : match.start()]
        end = match.end()
        token = match.group()
        if token in ("{{", "}}"):
            text += token[0]
            continue
        if token in ("{", "}"):
            problems.append(
                f"a single '{token}' at character {match.start() + 1}: "
                f"write '{token * 2}' for a brace"
            )
            continue
        if text:
            pieces.append(Text(text))
            text = ""
        if match["marker"] is not None:
            # Python refuses to read very long numbers; what is left of one is refused below.
            number = int(match["marker"].lstrip("0")[:_MOST_DIGITS] or "0")
            markers.append(number)
            pieces.append(Virtual(number, 0))
        elif not match["field"].strip():
            problems.append(f"an empty field at character {match.start() + 1}: name it")
        elif formatted := _FORMATTED.fullmatch(match["field"]):
            problems.append(
                f"{token} at character {match.start() + 1}: a field is a name alone, without a "
                f"format; write {{{formatted['name']}}}"
            )
            pieces.append(Field(formatted["name"]))
        else:
            pieces.append(Field(match["field"]))
    text += template[end:]
    if text:
        pieces.append(Text(text))
    return pieces, markers


def _without_blanks_at_end(pieces: list[Segment]) -> list[Segment]:
    """The pieces without blanks after a last field: no text follows that they could move to."""
    *before, last = pieces or [Text("")]
    ends = isinstance(last, Text) and not last.text.strip(" ") and before
    return before if ends and isinstance(before[-1], Field) else pieces


def _check_markers(
    task: TaskConfig, markers: list[int], splits: tuple[int, ...], problems: list[str]
) -> None:
    total, most = task.total_virtual_tokens, MOST["virtual tokens"]
    if not 1 <= total <= most:
        problems.append(f"total_virtual_tokens is {total}, expected 1 to {most}")
    if len(markers) != len(splits):
        given = (
            f"virtual_token_splits has {len(splits)} numbers"
            if task.virtual_token_splits
            else "no virtual_token_splits say how many tokens stand at each"
        )
        problems.append(
            f"the template has {len(markers)} <|VIRTUAL_PROMPT_n|> markers, but {given}"
        )
    elif markers != list(range(len(markers))):
        problems.append(f"markers are numbered {markers}, expected 0, 1, 2 … in this order")
    if sum(splits) != total:
        problems.append(
            f"virtual_token_splits {list(splits)} sum to {sum(splits)}, but "
            f"total_virtual_tokens is {total}"
        )
    if min(splits) < 1:
        problems.append(f"virtual_token_splits {list(splits)}: each must be at least 1")


def _check_fields(
    task: TaskConfig,
    fields: list[str],
    answer: str | None,
    ends_in_field: bool,
    problems: list[str],
) -> None:
    if "taskname" in fields:
        problems.append("a field may not be called 'taskname': that key names the task")
    for key, name in (("truncate_field", task.truncate_field), ("answer_field", task.answer_field)):
        if name is not None and name not in fields:
            found, fix = unknown_name(name, tuple(dict.fromkeys(fields)), what="field")
            problems.append(f"{key}: {found}. {fix}")
    if answer is not None and fields.count(answer) > 1:
        problems.append(f"the answer field '{answer}' is used {fields.count(answer)} times")
    if answer is not None and answer == task.truncate_field:
        problems.append(f"truncate_field and answer_field are both '{answer}'")
    if task.answer_only_loss and not (ends_in_field and answer == fields[-1]):
        problems.append(
            f"answer_only_loss needs the answer at the end of the template, but it ends in "
            f"{task.prompt_template[-12:]!r}; move the answer or set answer_only_loss: false"
        )


def _check_copied(
    task: TaskConfig, fields: list[str], answer: str | None, problems: list[str]
) -> None:
    if task.answer is None:
        return
    name = task.answer.span
    before = fields[: fields.index(answer)] if answer in fields else fields
    if name not in fields:
        found, fix = unknown_name(name, tuple(dict.fromkeys(before)), what="field")
        problems.append(f"answer.span: {found}. {fix}")
    elif answer is None:
        problems.append(f"answer.span is '{name}', but no field is the answer")
    elif name not in before:
        problems.append(
            f"answer.span: '{name}' does not stand before the answer, '{answer}': it cannot be "
            "copied from there"
        )


def _place_virtual(pieces: list[Segment], splits: tuple[int, ...]) -> tuple[Segment, ...]:
    """Gives marker k the next `splits[k]` rows of the prompt."""
    starts = [sum(splits[:k]) for k in range(len(splits))]
    return tuple(
        Virtual(starts[piece.start], splits[piece.start]) if isinstance(piece, Virtual) else piece
        for piece in pieces
    )
