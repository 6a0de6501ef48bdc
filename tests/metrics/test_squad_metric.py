import pytest
from hypothesis import given
from hypothesis import strategies as st

from pl_compile.errors import DataError
from pl_compile.metrics.squad import exact_match, f1, normalize_answer, squad_scores


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Cat's, hat!", "cats hat"),  # the golden case of the reference
        ("t.h.e end", "end"),  # punctuation goes before articles
        ("An apple a day", "apple day"),
        ("theatre banana", "theatre banana"),  # articles are whole words
        ("U.S.A.\n\t1,000", "usa 1000"),
        ("«the» 5 €", "« » 5 €"),  # only ASCII punctuation goes
        ("A", ""),
    ],
)
def test_normalizing_follows_the_official_order(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


def test_f1_counts_repeated_words_as_often_as_both_have_them() -> None:
    # Shared: "new" twice, "york" once: precision 3/4, recall 3/3.
    assert f1("new new new york", "New New York") == pytest.approx(6 / 7)


def test_f1_is_zero_where_nothing_is_shared_also_if_both_are_empty() -> None:
    assert f1("cat", "dog") == 0
    assert f1("", "the") == 0


def test_the_best_of_several_answers_counts() -> None:
    scores = squad_scores(["the red cat", "blue"], [["dog", "red cat"], "blue sky"])

    # Row 2: precision 1, recall 1/2.
    assert scores == {"exact_match": 50, "f1": pytest.approx((1 + 2 / 3) / 2 * 100), "total": 2}


def test_a_question_without_an_answer_wants_an_empty_prediction() -> None:
    assert squad_scores(["", "cat"], [[], []]) == {"exact_match": 50, "f1": 50, "total": 2}


def test_different_lengths_are_refused_with_both_numbers() -> None:
    with pytest.raises(DataError) as error:
        squad_scores(["a", "b", "c"], ["a", "b"])

    assert str(error.value) == (
        "scoring squad: 3 predictions, 2 references; expected one prediction for each reference. "
        "Row i of one belongs to row i of the other: take both from the same test file."
    )


@given(st.text())
def test_normalizing_twice_changes_nothing_more(text: str) -> None:
    assert normalize_answer(normalize_answer(text)) == normalize_answer(text)


@given(st.text(alphabet="abc the.", max_size=20), st.text(alphabet="abc the.", max_size=20))
def test_f1_is_symmetric_and_full_only_for_the_same_words(left: str, right: str) -> None:
    assert 0 <= f1(left, right) <= 1
    assert f1(left, right) == f1(right, left)
    if exact_match(left, right) and normalize_answer(left):
        assert f1(left, right) == 1
