import pytest

from pl_compile.errors import DataError
from pl_compile.metrics import METRICS, Reference, choose_metric

_INTENT = "\nIntent: a\nSlots: None"


@pytest.mark.parametrize(
    ("answers", "choices", "name"),
    [
        ([" positive"], ["positive", "negative"], "accuracy"),
        ([["a", "b"], ["c"]], None, "squad"),
        (["a", ["b"]], None, "squad"),
        ([_INTENT, _INTENT], None, "intent_slot"),
        ([_INTENT, "free text"], None, "squad"),
        (["free text"], [], "squad"),
        ([], None, "squad"),
    ],
)
def test_the_answers_choose_the_metric(
    answers: list[Reference], choices: list[str] | None, name: str
) -> None:
    assert choose_metric(answers, choices) == name


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_gives_full_marks_to_the_right_answers(name: str) -> None:
    scores = METRICS[name]([_INTENT, _INTENT], [_INTENT, _INTENT])

    assert scores.pop("total") == 2
    assert scores
    assert set(scores.values()) == {100.0}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_refuses_rows_without_a_partner(name: str) -> None:
    with pytest.raises(DataError, match=f"scoring {name}: 1 predictions, 2 references"):
        METRICS[name](["a"], ["a", "b"])


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_refuses_to_score_nothing(name: str) -> None:
    with pytest.raises(DataError, match=f"scoring {name}: no rows; expected at least one"):
        METRICS[name]([], [])
