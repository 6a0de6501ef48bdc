"""Compares the tokens of rendered prompts with those of `transformers`' own tokenizer.

In: prompts, and the folder of their base. Out: for each task, what is equal and what is not. The
comparison of numbers (`checks/parity.py`) cannot see wrong tokens, since both of its sides get the
same rendered prompt.

There are three different findings:

- A prompt does not follow the rules of `docs/templates.md`. That is a difference.
- It does, but transformers cuts the text elsewhere if it is given as one whole. Then the task has
  other tokens than it had in PEFT. Such prompts are counted.
- The base's files do not agree, and transformers makes another tokenizer of them than
  `tokenizer.json`, which is the one that counts here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Protocol

from pl_compile.errors import BaseModelError, DataError
from pl_compile.text.render import Rendered, Renderer
from pl_compile.text.tokenizer import as_saved_by_transformers
from pl_compile.training.reference_tokenizer import Piece, ReferenceTokenizer

_OTHER_TOKENIZER = "transformers makes another tokenizer of the base's files than tokenizer.json"

# How many of the different tokens a message shows.
_SHOWN_IDS = 8

# Values of fields that are easily cut elsewhere: words that may join others, and white space.
_TEXTS = ("Where is it?", "fox", "two words\n", "1984", "so\n\n ", " a\t", "s", "\n", "é😀", "")


class RenderedPrompt(Protocol):
    """A rendered prompt, and what it was rendered from."""

    @property
    def renderer(self) -> Renderer:
        """The renderer of its task."""

    @property
    def fields(self) -> Mapping[str, str]:
        """A text for each input field."""

    @property
    def rendered(self) -> Rendered:
        """The tokens that the renderer made of them."""


@dataclass(frozen=True)
class TokenCheck:
    """How a task's tokens compare with those of `transformers`.

    Attributes:
        task: its name.
        tokens: of all its prompts, virtual ones included.
        compared: how many of them were compared, and are equal unless there is a difference.
        why_not: why others could not be compared; empty where there are none.
        difference: the first one, as a sentence; empty if all are equal.
        prompts: how many there are.
        otherwise: how many of them follow the rules, but have other tokens in transformers if their
            text is given as one whole. Their tokens do not count as compared.
        other_tokenizer: whether transformers makes another tokenizer of the base's files than of
            its `tokenizer.json` alone.
        note: a sentence about the last two for the user; empty where there is nothing to say.
    """

    task: str
    tokens: int
    compared: int
    why_not: str
    difference: str
    prompts: int = 0
    otherwise: int = 0
    other_tokenizer: bool = False
    note: str = ""


@dataclass(frozen=True)
class _Sample:
    renderer: Renderer
    fields: Mapping[str, str]
    rendered: Rendered


def _task_of(renderer: Renderer) -> str:
    return renderer.template.task.taskname


def _sample_prompts(renderer: Renderer) -> list[RenderedPrompt]:
    """Prompts of a task with texts in their fields that are easily cut elsewhere."""
    samples: list[RenderedPrompt] = []
    for text in _TEXTS:
        fields = dict.fromkeys(renderer.template.input_fields, text)
        try:
            samples.append(_Sample(renderer, fields, renderer.prompt(fields)))
        except DataError:  # a text that this base has no token for
            continue
    return samples


def compare_tokens(prompts: Sequence[RenderedPrompt], base: Path) -> list[TokenCheck]:
    """The comparison of rendered prompts, per task.

    Args:
        prompts: of one or more tasks; for each task a few of our own are compared too.
        base: the Hugging Face folder.
    """
    by_task: dict[str, list[RenderedPrompt]] = {}
    for prompt in prompts:
        by_task.setdefault(_task_of(prompt.renderer), []).append(prompt)
    for mine in by_task.values():
        mine += _sample_prompts(mine[0].renderer)
    return _compare_tasks(by_task, base)


def notes_on_tokens(renderers: Iterable[Renderer], base: Path) -> list[str]:
    """Notes on the tokens of tasks that will be trained or imported, a line each.

    Args:
        renderers: of the tasks.
        base: the Hugging Face folder.
    """
    checks = _compare_tasks({_task_of(each): _sample_prompts(each) for each in renderers}, base)
    told = [check for check in checks if check.difference or check.note]
    notes = [
        f"task '{each.task}': {each.difference or each.note}"
        for each in told
        if not each.other_tokenizer
    ]
    of_files = [each for each in told if each.other_tokenizer]
    if of_files:  # it is the same for all tasks: say it once
        names = ", ".join(f"'{each.task}'" for each in of_files)
        first = of_files[0]
        notes.append(
            f"task {names}: {first.difference or first.note}. {fix_for_other_tokenizer(base)}"
        )
    return notes


def _compare_tasks(by_task: Mapping[str, Sequence[RenderedPrompt]], base: Path) -> list[TokenCheck]:
    try:
        tokenizer = ReferenceTokenizer(base)
    except BaseModelError as error:  # parity of numbers can be measured without tokens
        why = f"transformers makes no tokenizer of the base ({error.found})"
        return [TokenCheck(t, _count(m), 0, why, "", len(m)) for t, m in by_task.items()]
    checks = [_compare_task(task, mine, tokenizer) for task, mine in by_task.items()]
    if not any(check.difference for check in checks):
        return checks
    try:
        alone = ReferenceTokenizer.of_file(base / "tokenizer.json")
    except BaseModelError:
        return checks
    return [
        _by_file_alone(check, by_task[check.task], alone) if check.difference else check
        for check in checks
    ]


def token_failures(checks: Sequence[TokenCheck]) -> list[str]:
    """The differences, as sentences."""
    return [f"task '{each.task}': {each.difference}" for each in checks if each.difference]


def fix_for_other_tokenizer(base: Path) -> str:
    """What to do where transformers makes another tokenizer of a base's files."""
    return (
        "If transformers' tokenizer is meant, save it with the base "
        f"({as_saved_by_transformers(base)}), then train or import again."
    )


def _by_file_alone(
    check: TokenCheck, prompts: Sequence[RenderedPrompt], alone: ReferenceTokenizer
) -> TokenCheck:
    """The same check, but without a difference where `tokenizer.json` alone gives these tokens.

    A task that was trained here has the tokens of that file, and is served with them. Only a task
    with `whitespace: transformers` needs those of the whole folder.
    """
    by_file = _compare_task(check.task, prompts, alone)
    if by_file.difference:
        return check
    if prompts[0].renderer.template.task.whitespace == "transformers":
        difference = f"{check.difference}: {_OTHER_TOKENIZER}"
        return replace(check, difference=difference, other_tokenizer=True)
    note = f"{_OTHER_TOKENIZER}, which it is trained and served with: {check.difference}"
    return replace(by_file, other_tokenizer=True, note=note)


def _count(prompts: Sequence[RenderedPrompt]) -> int:
    return sum(len(prompt.rendered) for prompt in prompts)


def _compare_task(
    task: str, prompts: Sequence[RenderedPrompt], tokenizer: ReferenceTokenizer
) -> TokenCheck:
    check = TokenCheck(task, _count(prompts), 0, "", "", len(prompts))
    compared = otherwise = 0
    why_not = example = ""
    for prompt in prompts:
        asked = prompt.renderer.template, prompt.fields, prompt.renderer.rules.bos_id
        try:
            pieces, whole = tokenizer.pieces(*asked), tokenizer.whole(*asked)
        except BaseModelError as error:
            why_not = why_not or f"{tokenizer.name} fails at a prompt ({error.found})"
            continue
        of_whole = ""
        if whole is not None:
            count, of_whole = _compare(whole.pieces, prompt.rendered, tokenizer.name)
            if not of_whole:
                compared += count
                continue
            if whole.ends_where_parts_do:
                return replace(check, compared=compared, difference=of_whole)
        count, difference = _compare(pieces, prompt.rendered, tokenizer.name)
        if difference:
            return replace(check, compared=compared + count, difference=difference)
        if of_whole:
            otherwise += 1
            example = example or of_whole
            continue
        compared += count
        unknown = next((piece.name for piece in pieces if piece.tokens is None), "")
        if unknown and not why_not:
            why_not = (
                f"{tokenizer.name} cannot say what {unknown} is where other text stands before it"
            )
    note = otherwise and (
        f"{otherwise} of {len(prompts)} prompts have other tokens in transformers, which cuts a "
        f"whole text elsewhere than where fields begin and end: {example}"
    )
    return replace(check, compared=compared, why_not=why_not, otherwise=otherwise, note=note or "")


def _compare(pieces: Sequence[Piece], rendered: Rendered, name: str) -> tuple[int, str]:
    """How many tokens were compared, and the first difference.

    Pieces whose tokens the reference does not know have an unknown length. So the pieces before the
    first of them are compared from the start, and those after the last of them from the end.
    """
    own = list(zip(rendered.token_ids.tolist(), rendered.virtual_rows.tolist(), strict=True))
    start = 0
    before = list(takewhile(lambda piece: piece.tokens is not None, pieces))
    for piece in before:
        there = piece.tokens or ()
        here = tuple(own[start : start + len(there)])
        if here != there:
            return start, _difference(piece, own[start:], there, name)
        start += len(there)
    if len(before) == len(pieces):
        extra = own[start:]
        return start, f"{_ids(extra)} at the end, where {name} has nothing" if extra else ""
    end = len(own)
    for piece in takewhile(lambda piece: piece.tokens is not None, reversed(pieces)):
        there = piece.tokens or ()
        begin = max(start, end - len(there))
        if tuple(own[begin:end]) != there:
            return start + len(own) - end, _difference(piece, own[begin:end], there, name)
        end = begin
    return start + len(own) - end, ""


def _difference(
    piece: Piece, own: Sequence[tuple[int, int]], there: Sequence[tuple[int, int]], name: str
) -> str:
    """Both sides from the first token that differs."""
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(own, there, strict=False)))
    return (
        f"{piece.name} is rendered to tokens {_ids(own[same:])} after {same} equal ones, where "
        f"{name} has {_ids(there[same:])}"
    )


def _ids(tokens: Sequence[tuple[int, int]]) -> str:
    words = [str(token) if row < 0 else f"virtual {row}" for token, row in tokens[:_SHOWN_IDS]]
    return f"[{', '.join(words)}{', …' if len(tokens) > _SHOWN_IDS else ''}]"
