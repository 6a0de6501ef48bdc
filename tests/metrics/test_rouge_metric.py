import sys

import pytest

from pl_compile.errors import MissingExtraError
from pl_compile.metrics.rouge import rouge_scores


def test_words_pairs_and_subsequences_are_counted_as_the_library_counts_them() -> None:
    scores = rouge_scores(["The quick brown dog jumps on the log."], ["the quick fox jumps over"])

    # Words shared: the, quick, jumps: 2 * 3 / (8 + 5). Pairs shared: the quick: 2 * 1 / (7 + 4).
    # In order: the, quick, jumps.
    assert scores == {
        "rouge1": pytest.approx(100 * 6 / 13),
        "rouge2": pytest.approx(100 * 2 / 11),
        "rougeL": pytest.approx(100 * 6 / 13),
        "total": 1,
    }


def test_the_order_of_words_counts_for_the_subsequence_only() -> None:
    scores = rouge_scores(["cold was it"], ["it was cold"])

    assert scores["rouge1"] == 100
    assert scores["rouge2"] == 0
    assert scores["rougeL"] == pytest.approx(100 / 3)


def test_words_are_not_stemmed() -> None:
    assert rouge_scores(["parcels"], ["parcel"])["rouge1"] == 0


def test_the_best_of_several_answers_counts_and_rows_are_averaged() -> None:
    scores = rouge_scores(["so cold", "warm"], [["hot", "so cold"], "cold"])

    assert scores == {"rouge1": 50, "rouge2": 50, "rougeL": 50, "total": 2}


def test_a_row_without_answers_wants_an_empty_one() -> None:
    scores = rouge_scores([" ", "cat"], [[], []])

    assert scores == {"rouge1": 50, "rouge2": 50, "rougeL": 50, "total": 2}


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)

    with pytest.raises(MissingExtraError) as error:
        rouge_scores(["a"], ["a"])

    assert str(error.value) == (
        "scoring rouge: the package 'rouge_score' is not installed. "
        "Install it with: pip install 'pl-compile[eval]'"
    )
