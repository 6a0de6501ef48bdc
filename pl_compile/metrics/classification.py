"""Answers compared whole: labels of a closed list, and free text.

In: predicted texts and the right ones. Out: percentages. Blanks around a text never count; case and
punctuation do. Knows no files and no list of labels: an answer that is not a label is just wrong.
"""

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
