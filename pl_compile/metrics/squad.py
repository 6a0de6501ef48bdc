"""Exact match and F1 of free answers, as in the evaluation of SQuAD v1.1.

In: predicted texts, and for each the text or texts that are right. Out: percentages. The rules are
those of the official `evaluate-v1.1.py` (Rajpurkar et al. 2016, section 6.1). Knows no files.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

from pl_compile.metrics.pairs import Reference, answers_of, check_pairs, percent

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """The text in lower case, without ASCII punctuation and articles, single-spaced.

    The order matters: punctuation is removed before articles, so "t.h.e" counts as an article.
    """
    bare = text.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", bare).split())


def exact_match(prediction: str, answer: str) -> bool:
    """Whether both are the same once normalized."""
    return normalize_answer(prediction) == normalize_answer(answer)


def f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall over the bags of normalized words, from 0 to 1.

    0 where no word is shared, even if both are empty (SQuAD v2.0 gives 1 there).
    """
    predicted = normalize_answer(prediction).split()
    right = normalize_answer(answer).split()
    n_shared = (Counter(predicted) & Counter(right)).total()
    return 2 * n_shared / (len(predicted) + len(right)) if n_shared else 0.0


def squad_scores(predictions: Sequence[str], answers: Sequence[Reference]) -> dict[str, float]:
    """Exact match and F1 in percent, each with the best of a row's answers.

    Args:
        predictions: one text a row.
        answers: the right text or texts of each row. A row with none is a question that cannot be
            answered: only an empty prediction is right, for both scores (the rule of v2.0).

    Returns:
        `exact_match` and `f1`, from 0 to 100, and `total`, the number of rows.

    Raises:
        DataError: the lengths differ, or there are no rows.
    """
    check_pairs("squad", predictions, answers)
    rows = [
        (prediction, answers_of(reference))
        for prediction, reference in zip(predictions, answers, strict=True)
    ]
    total = len(rows)
    return {
        "exact_match": percent(sum(_best_exact_match(*row) for row in rows), total),
        "f1": percent(sum(_best_f1(*row) for row in rows), total),
        "total": total,
    }


def _best_exact_match(prediction: str, answers: list[str]) -> bool:
    return any(exact_match(prediction, answer) for answer in answers or [""])


def _best_f1(prediction: str, answers: list[str]) -> float:
    if not answers:
        return float(exact_match(prediction, ""))
    return max(f1(prediction, answer) for answer in answers)
