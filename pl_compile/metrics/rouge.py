"""ROUGE of long free answers such as summaries, with Google's `rouge-score` (extra `eval`).

In: predicted texts, and for each the text or texts that are right. Out: percentages. Words are the
runs of a-z and 0-9 in lower case, not stemmed, as in the library and in most published scores of
GPTs. Text in other alphabets has no such words and scores 0. Knows no files.
"""

from collections.abc import Sequence
from typing import Any

from pl_compile.errors import MissingExtraError
from pl_compile.metrics.pairs import Reference, answers_of, check_pairs, percent

_KINDS = ("rouge1", "rouge2", "rougeL")


def rouge_scores(predictions: Sequence[str], references: Sequence[Reference]) -> dict[str, float]:
    """F-measures of shared words, pairs of words and longest common subsequences.

    Args:
        predictions: one text a row.
        references: the right text or texts of each row; for each score the best one counts. In a
            row without any, only an empty answer is right.

    Returns:
        `rouge1`, `rouge2` and `rougeL`, the mean over rows from 0 to 100, and `total`, the number
        of rows. `rouge2` of an answer of one word is 0, even if it is right.

    Raises:
        DataError: the lengths differ, or there are no rows.
        MissingExtraError: `rouge-score` is not installed.
    """
    check_pairs("rouge", predictions, references)
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise MissingExtraError("scoring rouge", package="rouge_score", extra="eval") from None
    scorer = RougeScorer(_KINDS)
    rows = [
        _row(scorer, prediction, answers_of(reference))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    scores = {kind: percent(sum(row[kind] for row in rows), len(rows)) for kind in _KINDS}
    return {**scores, "total": len(rows)}


def _row(scorer: Any, prediction: str, answers: list[str]) -> dict[str, float]:
    if not answers:
        return dict.fromkeys(_KINDS, float(not prediction.strip()))
    scores = scorer.score_multi(answers, prediction)
    return {kind: scores[kind].fmeasure for kind in _KINDS}
