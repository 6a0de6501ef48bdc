import pytest

from pl_compile.errors import DataError
from pl_compile.metrics.classification import accuracy_scores, exact_match_scores


def test_blanks_around_a_label_do_not_count_but_case_does() -> None:
    scores = accuracy_scores(
        ["positive", " neutral\n", "Negative"], [" positive", " neutral", " negative"]
    )

    assert scores == {"accuracy": pytest.approx(200 / 3), "total": 3}


def test_a_label_with_more_text_after_it_is_wrong() -> None:
    assert accuracy_scores(["positive news"], ["positive"])["accuracy"] == 0


def test_several_right_labels_are_refused_with_their_rows() -> None:
    with pytest.raises(DataError) as error:
        accuracy_scores(["a", "b", "c"], [["a"], ["b", "c"], []])

    assert str(error.value) == (
        "scoring accuracy: 2 problems:\n"
        "  - row 2: 2 right answers\n"
        "  - row 3: 0 right answers; expected one right answer a row.\n"
        "The metrics 'squad' and 'exact_match' take several."
    )


def test_exact_match_keeps_case_and_punctuation_and_takes_any_answer() -> None:
    scores = exact_match_scores(
        [" The cat.", "the cat.", "dog"], ["The cat.", "The cat.", ["cat", "dog "]]
    )

    assert scores == {"exact_match": pytest.approx(200 / 3), "total": 3}
