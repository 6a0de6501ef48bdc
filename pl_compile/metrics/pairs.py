"""What every metric is given: predictions and references that belong together row by row.

In: two sequences. Out: a check that their lengths are equal, references as single texts, and
percentages. Knows no metric.
"""

from collections.abc import Sequence
from typing import TypeAlias

from pl_compile.errors import DataError, list_problems

Reference: TypeAlias = str | Sequence[str]
"""The right answer, or all answers that count as right."""


def check_pairs(metric: str, predictions: Sequence[str], references: Sequence[Reference]) -> None:
    """Refuses what cannot be scored: no rows, or a row without a partner.

    Raises:
        DataError: the lengths differ, or both are 0.
    """
    doing = f"scoring {metric}"
    if len(predictions) != len(references):
        raise DataError(
            doing,
            found=f"{len(predictions)} predictions, {len(references)} references",
            expected="one prediction for each reference",
            fix="Row i of one belongs to row i of the other: take both from the same test file.",
        )
    if not references:
        raise DataError(doing, found="no rows", expected="at least one prediction and reference")


def answers_of(reference: Reference) -> list[str]:
    """All right answers of a row, also where there is only one."""
    return [reference] if isinstance(reference, str) else list(reference)


def single_problem(reference: Reference) -> str:
    """Why a metric for one right answer a row cannot take this row; empty where it can."""
    count = len(answers_of(reference))
    return "" if count == 1 else f"{count} right answers"


def single_references(metric: str, references: Sequence[Reference]) -> list[str]:
    """References for a metric that takes one right answer a row, as texts.

    Raises:
        DataError: rows with no or several right answers.
    """
    problems = [
        f"row {row}: {problem}"
        for row, reference in enumerate(references, start=1)
        if (problem := single_problem(reference))
    ]
    if problems:
        raise DataError(
            f"scoring {metric}",
            found=list_problems(problems),
            expected="one right answer a row",
            fix="The metrics 'squad' and 'exact_match' take several.",
        )
    return [answers_of(reference)[0] for reference in references]


def percent(part: float, whole: int) -> float:
    """`part` of `whole` (above 0), from 0 to 100."""
    return 100.0 * part / whole
