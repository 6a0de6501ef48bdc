"""Answers compared whole: labels of a closed list, and free text.

In: predicted texts and the right ones. Out: percentages, or counts of which label was taken for
which. Blanks around a text never count; case and punctuation do. Knows no files and no list of
labels: an answer that is no label is a wrong answer.
"""

from collections import Counter
from collections.abc import Sequence

from pl_compile.metrics.pairs import (
    Reference,
    answers_of,
    check_pairs,
    percent,
    single_references,
)


def accuracy_scores(
    predictions: Sequence[str], references: Sequence[Reference]
) -> dict[str, float]:
    """The share of rows whose label is the right one.

    Returns:
        `accuracy`, from 0 to 100, and `total`, the number of rows.

    Raises:
        DataError: the lengths differ, there are no rows, or a row has not exactly one right label.
    """
    check_pairs("accuracy", predictions, references)
    labels = single_references("accuracy", references)
    n_right = sum(
        prediction.strip() == label.strip()
        for prediction, label in zip(predictions, labels, strict=True)
    )
    return {"accuracy": percent(n_right, len(labels)), "total": len(labels)}


def confusion(
    predictions: Sequence[str], references: Sequence[Reference]
) -> dict[str, dict[str, int]]:
    """How often each right label was answered with what: `counts[right][predicted]`.

    A row sum is how often a label occurs. Labels come in alphabetical order, answers from the most
    to the least frequent; pairs that never occurred are left out.

    Raises:
        DataError: as for `accuracy_scores`.
    """
    check_pairs("accuracy", predictions, references)
    counts: dict[str, Counter[str]] = {}
    labels = single_references("accuracy", references)
    for prediction, label in zip(predictions, labels, strict=True):
        counts.setdefault(label.strip(), Counter())[prediction.strip()] += 1
    return {label: dict(counts[label].most_common()) for label in sorted(counts)}


def exact_match_scores(
    predictions: Sequence[str], references: Sequence[Reference]
) -> dict[str, float]:
    """The share of rows whose text is one of the right ones, letter by letter.

    Returns:
        `exact_match`, from 0 to 100, and `total`, the number of rows.

    Raises:
        DataError: the lengths differ, or there are no rows.
    """
    check_pairs("exact_match", predictions, references)
    n_right = sum(
        prediction.strip() in {answer.strip() for answer in answers_of(reference)}
        for prediction, reference in zip(predictions, references, strict=True)
    )
    return {"exact_match": percent(n_right, len(references)), "total": len(references)}
