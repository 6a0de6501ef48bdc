"""The tokens of a bundle's prompts against those of `transformers`' own tokenizer.

`driver/parity.py` gives one rendered prompt to both sides of its comparison. Here is what it cannot
see: a prompt that is rendered to other tokens than the base was made for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from pl_compile.driver.parity import ProbeRow
from pl_compile.errors import BaseModelError
from pl_compile.text.render import Rendered

if TYPE_CHECKING:
    from pl_compile.training.reference_tokenizer import Piece, ReferenceTokenizer

# How many of the tokens that differ a message shows.
_SHOWN_IDS = 8


@dataclass(frozen=True)
class TokenCheck:
    """How a task's tokens compare with those of `transformers`.

    Attributes:
        task: its name.
        tokens: of all its probe rows, virtual ones included.
        compared: how many of them could be compared.
        why_not: why the others could not; empty where there are none.
        difference: the first one, as a sentence; empty where there is none.
    """

    task: str
    tokens: int
    compared: int
    why_not: str
    difference: str


def compare_tokens(rows: Sequence[ProbeRow], base: Path) -> list[TokenCheck]:
    """The comparison of rendered prompts, per task.

    Args:
        rows: probe rows with their fields.
        base: the Hugging Face folder.
    """
    from pl_compile.training.reference_tokenizer import ReferenceTokenizer

    tasks = {task: [row for row in rows if row.task == task] for task in (r.task for r in rows)}
    try:
        tokenizer = ReferenceTokenizer(base)
    except BaseModelError as error:  # what the base computes can be compared all the same
        why = f"transformers makes no tokenizer of the base ({error.found})"
        return [TokenCheck(task, _count(mine), 0, why, "") for task, mine in tasks.items()]
    return [_compare_task(task, mine, tokenizer) for task, mine in tasks.items()]


def token_failures(checks: Sequence[TokenCheck]) -> list[str]:
    """The differences, as sentences."""
    return [f"task '{each.task}': {each.difference}" for each in checks if each.difference]


def _count(rows: Sequence[ProbeRow]) -> int:
    return sum(len(row.rendered) for row in rows)


def _compare_task(
    task: str, rows: Sequence[ProbeRow], tokenizer: "ReferenceTokenizer"
) -> TokenCheck:
    tokens, compared = _count(rows), 0
    why_not = ""
    for row in rows:
        renderer = row.learned.renderer
        try:
            pieces = tokenizer.pieces(renderer.template, row.fields, renderer.rules.bos_id)
        except BaseModelError as error:
            why_not = why_not or f"{tokenizer.name} fails at a prompt ({error.found})"
            continue
        count, difference = _compare(pieces, row.rendered, tokenizer.name)
        compared += count
        if difference:
            return TokenCheck(task, tokens, compared, "", difference)
        unknown = next((piece.name for piece in pieces if piece.tokens is None), "")
        if unknown and not why_not:
            why_not = f"{tokenizer.name} cannot say what {unknown} is behind what stands before it"
    return TokenCheck(task, tokens, compared, why_not, "")


def _compare(pieces: Sequence["Piece"], rendered: Rendered, name: str) -> tuple[int, str]:
    """How many tokens were compared, and the first difference.

    How long a piece is that the reference does not know, nobody knows: so what stands before the
    first such piece is compared from the start, and what stands behind the last one from the end.
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
    behind = takewhile(lambda piece: piece.tokens is not None, reversed(pieces))
    for piece in behind:
        there = piece.tokens or ()
        begin = max(start, end - len(there))
        if tuple(own[begin:end]) != there:
            return start + len(own) - end, _difference(piece, own[begin:end], there, name)
        end = begin
    return start + len(own) - end, ""


def _difference(
    piece: "Piece", own: Sequence[tuple[int, int]], there: Sequence[tuple[int, int]], name: str
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
