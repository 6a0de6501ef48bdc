r"""Intents and slots, read from answers such as "Intent: alarm_set\nSlots: time(six), date(today)".

In: answers and right answers in that form ("Slots: None" for no slots). Out: percentages.
Case never counts, nor does the order of slots (the rule of NeMo's dialogue metrics). Knows no list
of intents or slots: whatever is written is compared.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pl_compile.errors import DataError, list_problems
from pl_compile.metrics.pairs import (
    Reference,
    answers_of,
    check_pairs,
    percent,
    single_problem,
    single_references,
)

FORM = r"references such as 'Intent: NAME\nSlots: a(b), c(d)' or '... Slots: None'"

_NAME_OR_END = re.compile(r"[^(),]*(\(|$)")


@dataclass(frozen=True)
class IntentAndSlots:
    """One answer: `intent` is empty where none was found; a slot is written "name(value)"."""

    intent: str
    slots: frozenset[str]


def parse_intent_and_slots(text: str) -> IntentAndSlots:
    """The intent and slots of an answer, in lower case. In another form: what can be read of it."""
    head, _, tail = text.lower().partition("slots:")
    intent = head.partition("intent:")[2].strip()
    slots = frozenset(_tidy(item) for item in _split_items(tail))
    return IntentAndSlots(intent, slots - {"none"})


def intent_slot_scores(
    predictions: Sequence[str], references: Sequence[Reference]
) -> dict[str, float]:
    """How often intents and slots are right.

    Slot precision, recall and F1 count over all rows at once (micro); each different slot of a row
    counts once. Where neither side of a ratio has a slot, nothing could be wrong: 100.

    Returns:
        `intent_accuracy`, `slot_precision`, `slot_recall`, `slot_f1`, `joint_accuracy` (intent and
        all slots of a row), from 0 to 100, and `total`, the number of rows.

    Raises:
        DataError: the lengths differ, there are no rows, or a reference has not exactly one text
            with an intent and "Slots:" in it.
    """
    check_pairs("intent_slot", predictions, references)
    answers = _parse_references(single_references("intent_slot", references))
    predicted = [parse_intent_and_slots(prediction) for prediction in predictions]
    rows = list(zip(predicted, answers, strict=True))

    n_hits = sum(len(given.slots & right.slots) for given, right in rows)
    n_given = sum(len(given.slots) for given in predicted)
    n_right = sum(len(right.slots) for right in answers)
    return {
        "intent_accuracy": percent(sum(g.intent == r.intent for g, r in rows), len(rows)),
        "slot_precision": _ratio(n_hits, n_given, nothing=n_right == 0),
        "slot_recall": _ratio(n_hits, n_right, nothing=n_given == 0),
        "slot_f1": _ratio(2 * n_hits, n_given + n_right, nothing=True),
        "joint_accuracy": percent(sum(given == right for given, right in rows), len(rows)),
        "total": len(rows),
    }


def form_problem(reference: Reference) -> str:
    """Why a right answer cannot be read as intent and slots; empty where it can."""
    problem = single_problem(reference)
    if problem:
        return problem
    (text,) = answers_of(reference)
    is_read = parse_intent_and_slots(text).intent and "slots:" in text.lower()
    return "" if is_read else repr(text)


def _parse_references(references: Sequence[str]) -> list[IntentAndSlots]:
    problems = [
        f"row {row}: {problem}"
        for row, reference in enumerate(references, start=1)
        if (problem := form_problem(reference))
    ]
    if problems:
        raise DataError("scoring intent_slot", found=list_problems(problems), expected=FORM)
    return [parse_intent_and_slots(reference) for reference in references]


def _split_items(text: str) -> list[str]:
    # Values hold commas and parentheses. A comma separates only outside parentheses, and only
    # before another name: "note(eggs, milk (fresh)), date(today)" has two items, and so has
    # "post(bye :), all), date(today)". If a parenthesis is never closed, the rest is one item.
    items, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character == "(":
            depth += 1
        elif character == ")":
            depth = max(depth - 1, 0)
        elif character == "," and depth == 0 and _NAME_OR_END.match(text, position + 1):
            items.append(text[start:position])
            start = position + 1
    items.append(text[start:])
    return [item.strip() for item in items if item.strip()]


def _tidy(item: str) -> str:
    name, opening, rest = item.partition("(")
    if not opening or not rest.endswith(")"):
        return item
    return f"{name.strip()}({rest[:-1].strip()})"


def _ratio(part: int, whole: int, *, nothing: bool) -> float:
    if whole == 0:
        return 100.0 if nothing else 0.0
    return percent(part, whole)
