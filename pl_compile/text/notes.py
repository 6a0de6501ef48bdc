"""What a user should know about the text of a base and its tasks."""

from collections.abc import Iterable, Iterator

from pl_compile.text.template import Template, Text
from pl_compile.text.tokenizer import Tokenizer


def notes_on(tokenizer: Tokenizer, templates: Iterable[Template]) -> list[str]:
    """What a user should know about a base's tokenizer and some tasks, a line each.

    These are not errors: all texts that the tokenizer and its base can express are rendered right.
    """
    notes = []
    beyond = tokenizer.without_row()
    if beyond:
        name, count = tokenizer.token_name(beyond[0]), len(beyond)
        notes.append(
            f"the tokenizer is larger than its base: {count} token{'s' if count > 1 else ''} from "
            f"{name!r} (id {beyond[0]}) on without a row; a text that has one is refused"
        )
    common = tokenizer.unwritten_of_common()
    if common:
        notes.append(
            f"the tokenizer has no token for some characters, such as {common[:8]!r}: they are "
            "left out of a text, or taken for unknown"
        )
    for template in templates:
        fixed = "".join(_fixed_texts(template))
        lost = tokenizer.unwritten(fixed)
        if lost:
            where = f"the template and the choices of task '{template.task.taskname}'"
            notes.append(f"the tokenizer has no token for {lost!r} of {where}")
    return notes


def _fixed_texts(template: Template) -> Iterator[str]:
    """All text that the task itself has: of its template and its choices."""
    yield from (segment.text for segment in template.segments if isinstance(segment, Text))
    yield from template.task.choices
