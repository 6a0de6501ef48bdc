"""Renders examples into training sequences with loss masks, and reports those that are left out.

In: `Example`s and a `Renderer` per task. Out: `TrainingSequence`s. No example is left out silently:
each one that is not used is in the `SkipReport` with its reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pl_compile.errors import DataError, list_problems
from pl_compile.progress import SILENT, Progress
from pl_compile.text.examples import Example, cut_note, first_places
from pl_compile.text.render import Rendered, Renderer, TooLongError
from pl_compile.text.template import Template


@dataclass(frozen=True)
class TrainingSequence:
    """A rendered example.

    Attributes:
        task: index of its task in the run.
        rendered: real and virtual tokens.
        in_loss: bool `[seq]`; whether the loss covers the prediction of this token.
        where: file and line of the example.
    """

    task: int
    rendered: Rendered
    in_loss: NDArray[np.bool_]
    where: str = ""

    def __len__(self) -> int:
        return len(self.rendered)

    def without_virtual(self) -> "TrainingSequence":
        """The same example without virtual tokens, for the base alone."""
        real = self.rendered.virtual_rows < 0
        rendered = self.rendered.without_virtual()
        return TrainingSequence(self.task, rendered, self.in_loss[real], self.where)


@dataclass
class SkipReport:
    """Which examples were left out, and why; and which are used without some of their text.

    Places are files and lines.

    Attributes:
        total: how many examples there are.
        places: the places of examples that were left out, by reason.
        unwritten: the places of examples with characters that the tokenizer cannot write.
        characters: these characters, each once.
        cut: how many tokens were cut from an example to fit, by its place.
        max_length: the longest allowed length, in tokens.
        without_answer: the places of used examples whose answer is empty.
        without_input: the places of used examples whose input fields are all empty.
    """

    total: int = 0
    places: dict[str, list[str]] = field(default_factory=dict)
    unwritten: list[str] = field(default_factory=list)
    characters: str = ""
    cut: dict[str, int] = field(default_factory=dict)
    max_length: int = 0
    without_answer: list[str] = field(default_factory=list)
    without_input: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many were left out."""
        return sum(map(len, self.places.values()))

    def add(self, reason: str, where: str) -> None:
        """Notes an example that is left out."""
        self.places.setdefault(reason, []).append(where)

    def note_unwritten(self, characters: str, where: str) -> None:
        """Notes the characters of an example that cannot be written, if there are any."""
        if characters:
            self.unwritten.append(where)
            self.characters = "".join(dict.fromkeys(self.characters + characters))

    def note_empty(self, template: Template, fields: Mapping[str, object], where: str) -> None:
        """Notes an example without an answer, or without an input."""
        empty = {name for name in template.fields if not str(fields[name]).strip()}
        if template.answer_field in empty:
            self.without_answer.append(where)
        if template.input_fields and empty.issuperset(template.input_fields):
            self.without_input.append(where)

    def lines(self, *, most: int = 3) -> list[str]:
        """One line a reason, with the first places."""
        lines = [
            f"left out {len(places)} of {self.total}: {reason} ({first_places(places, most)})"
            for reason, places in self.places.items()
        ]
        if self.unwritten:
            lines.append(
                f"{len(self.unwritten)} of {self.total} hold characters that the base's tokenizer "
                f"cannot write and leaves out or takes for unknown: {self.characters[:20]!r} "
                f"({first_places(self.unwritten, most)})"
            )
        for what, places in (
            ("an empty answer, which the task learns to give", self.without_answer),
            ("no text in any input field", self.without_input),
        ):
            if places:
                lines.append(
                    f"{len(places)} of {self.total} have {what} ({first_places(places, most)})"
                )
        if self.cut:
            lines.append(cut_note(self.cut, self.total, self.max_length, most=most))
        return lines


def render_examples(
    examples: Sequence[Example],
    renderers: Mapping[str, Renderer],
    *,
    max_length: int,
    min_length: int = 1,
    progress: Progress = SILENT,
) -> tuple[list[TrainingSequence], SkipReport]:
    """The training sequences of all examples that fit.

    Args:
        examples: as read.
        renderers: by taskname; their order numbers the tasks.
        max_length: longest sequence in tokens, all included.
        min_length: shortest.
        progress: gets messages.

    Raises:
        DataError: no example fits, or some cannot be rendered: all of these, each with its place.
    """
    numbers = {name: index for index, name in enumerate(renderers)}
    sequences: list[TrainingSequence] = []
    report = SkipReport(total=len(examples), max_length=max_length)
    problems: list[str] = []
    with progress.bar("tokenising", len(examples)) as bar:
        for example in examples:
            bar.advance()
            renderer = renderers[example.taskname]
            try:
                whole = rendered = renderer.example(example.fields)
                if len(whole) > max_length:
                    rendered = renderer.example(example.fields, max_length=max_length)
            except TooLongError:
                report.add(_too_long(renderer.template, max_length), example.where)
                continue
            except DataError as error:
                problems.append(f"{example.where}: {error}")
                continue
            in_loss = _in_loss(renderer, rendered)
            if len(rendered) < min_length:
                report.add(f"shorter than {min_length} tokens", example.where)
            elif not in_loss[1:].any():
                report.add("no token to learn from", example.where)
            else:
                task = numbers[example.taskname]
                sequences.append(TrainingSequence(task, rendered, in_loss, example.where))
                report.note_empty(renderer.template, example.fields, example.where)
                report.note_unwritten(renderer.unwritten(example.fields), example.where)
                if len(rendered) < len(whole):
                    report.cut[example.where] = len(whole) - len(rendered)
    if problems:
        raise DataError("rendering the examples", found=list_problems(problems))
    if not sequences:
        raise DataError(
            "rendering the examples", found="none is usable: " + "; ".join(report.lines())
        )
    return sequences, report


def _too_long(template: Template, max_length: int) -> str:
    task = template.task
    if task.truncate_field is not None:
        return f"longer than {max_length} tokens even after truncation"
    return (
        f"longer than {max_length} tokens, and task '{task.taskname}' has no truncate_field: name "
        "one, or raise data.max_seq_length where the base has more positions"
    )


def _in_loss(renderer: Renderer, rendered: Rendered) -> NDArray[np.bool_]:
    if renderer.template.task.answer_only_loss:
        mask: NDArray[np.bool_] = np.arange(len(rendered)) >= rendered.answer_start
        return mask
    return rendered.virtual_rows < 0
