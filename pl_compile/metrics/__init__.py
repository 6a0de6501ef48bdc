"""Scores of predicted texts against right ones: texts in, percentages out.

Every metric is a function of `(predictions, references)` that gives `{score: percent}`, with the
number of rows under "total". A reference is a text, or a list of texts that are all right. Knows no
files, models or tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from pl_compile.metrics.classification import accuracy_scores, exact_match_scores
from pl_compile.metrics.intent_slot import FORM, form_problem, intent_slot_scores
from pl_compile.metrics.pairs import Reference, single_problem
from pl_compile.metrics.rouge import rouge_scores
from pl_compile.metrics.squad import squad_scores

__all__ = ["METRICS", "Metric", "Reference", "choose_metric", "reference_problem"]

Metric: TypeAlias = Callable[[Sequence[str], Sequence[Reference]], dict[str, float]]

METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy_scores,
    "squad": squad_scores,
    "intent_slot": intent_slot_scores,
    "exact_match": exact_match_scores,
    "rouge": rouge_scores,
}


def choose_metric(answers: Sequence[Reference], choices: Sequence[str] | None) -> str:
    """The name of the metric that fits the right answers, for `--metric auto`.

    Args:
        answers: the right answers of all rows.
        choices: the closed list of labels of the task, where it has one.

    Returns:
        "accuracy" for a closed list; "squad" where some rows have a list of answers; "intent_slot"
        where all answers hold "Intent:" and "Slots:"; otherwise "squad", as for free text.
        "rouge" is never chosen: whether its package is installed must not change a score's meaning.
    """
    if choices:
        return "accuracy"
    texts = [answer for answer in answers if isinstance(answer, str)]
    if len(texts) < len(answers) or not texts:
        return "squad"
    if all("Intent:" in text and "Slots:" in text for text in texts):
        return "intent_slot"
    return "squad"


def reference_problem(metric: str, reference: Reference) -> str:
    """Why a metric cannot score a row's right answers; empty where it can.

    The metric would refuse the same, but only once there are predictions.
    """
    if metric == "accuracy" and (problem := single_problem(reference)):
        return f"{problem}, expected one: the metrics 'squad' and 'exact_match' take several"
    if metric == "intent_slot" and (problem := form_problem(reference)):
        return f"{problem}, expected {FORM}"
    return ""
