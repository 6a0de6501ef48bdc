import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pl_compile.errors import ConfigError, DataError
from pl_compile.training.prepare import prepare_phrasebank

Reader = Callable[[Path], list[dict[str, Any]]]
SPLITS = ("train", "val", "test_ground_truth")


def write_sentences(path: Path, n_sentences: int) -> list[str]:
    labels = ("positive", "neutral", "negative")
    sentences = [f"Sales of firm {i} changed ." for i in range(n_sentences)]
    lines = [f"{sentence}@{labels[i % 3]}\r\n" for i, sentence in enumerate(sentences)]
    path.write_bytes("".join(lines).encode("iso-8859-1"))
    return sentences


def test_rows_are_shuffled_and_dealt_out_as_by_nemo(tmp_path: Path, read_jsonl: Reader) -> None:
    sentences = write_sentences(tmp_path / "Sentences_AllAgree.txt", 23)
    random.Random(1234).shuffle(sentences)

    counts = prepare_phrasebank(tmp_path, tmp_path / "out")

    # int(23 * 0.8) = 18, and the 5 left are halved, the odd one to the test.
    assert counts == {
        "financial_phrase_bank_train.jsonl": 18,
        "financial_phrase_bank_val.jsonl": 2,
        "financial_phrase_bank_test.jsonl": 3,
        "financial_phrase_bank_test_ground_truth.jsonl": 3,
    }
    rows = [
        row
        for split in SPLITS
        for row in read_jsonl(tmp_path / "out" / f"financial_phrase_bank_{split}.jsonl")
    ]
    assert [row["sentence"] for row in rows] == sentences


def test_labels_begin_with_a_space_and_the_test_has_none(
    tmp_path: Path, read_jsonl: Reader
) -> None:
    write_sentences(tmp_path / "Sentences_AllAgree.txt", 10)

    prepare_phrasebank(tmp_path, tmp_path / "my_test")

    out = tmp_path / "my_test"
    train = read_jsonl(out / "financial_phrase_bank_train.jsonl")
    assert list(train[0]) == ["taskname", "sentence", "label"]
    assert {row["label"] for row in train} == {" positive", " neutral", " negative"}
    (truth,) = read_jsonl(out / "financial_phrase_bank_test_ground_truth.jsonl")
    assert read_jsonl(out / "financial_phrase_bank_test.jsonl") == [
        {"taskname": "sentiment", "sentence": truth["sentence"]}
    ]


def test_another_file_fraction_and_seed_can_be_chosen(tmp_path: Path, read_jsonl: Reader) -> None:
    path = tmp_path / "Sentences_75Agree.txt"
    write_sentences(path, 20)

    counts = prepare_phrasebank(path, tmp_path / "a", train_fraction=0.5, seed=1)
    prepare_phrasebank(path, tmp_path / "b", train_fraction=0.5, seed=2)

    assert list(counts.values()) == [10, 5, 5, 5]
    name = "financial_phrase_bank_train.jsonl"
    assert read_jsonl(tmp_path / "a" / name) != read_jsonl(tmp_path / "b" / name)


def test_latin_letters_and_control_bytes_and_addresses_stay_inside_their_sentence(
    tmp_path: Path, read_jsonl: Reader
) -> None:
    path = tmp_path / "sentences.txt"
    path.write_bytes(b"P\xe4\xe4 \x85 rose@positive\na@b.fi fell@negative\nOk@neutral\n" * 4)

    prepare_phrasebank(path, tmp_path / "out")

    rows = read_jsonl(tmp_path / "out" / "financial_phrase_bank_train.jsonl")
    assert {row["sentence"] for row in rows} == {"Pää \x85 rose", "a@b.fi fell", "Ok"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "iso-8859-1"])
@pytest.mark.parametrize("end", ["\r", "\n"])
def test_a_file_that_was_saved_anew_reads_as_the_publishers(
    tmp_path: Path, read_jsonl: Reader, encoding: str, end: str
) -> None:
    path = tmp_path / "sentences.txt"
    path.write_bytes((f"Pää rose@positive{end}Bär fell@negative{end}" * 5).encode(encoding))

    prepare_phrasebank(path, tmp_path / "out")

    rows = read_jsonl(tmp_path / "out" / "financial_phrase_bank_train.jsonl")
    assert {row["sentence"] for row in rows} == {"Pää rose", "Bär fell"}


def test_all_bad_lines_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "sentences.txt"
    path.write_bytes(b"Fine@positive\r\nno label\r\n\r\nBad@great\r\n@neutral\r\n")

    with pytest.raises(DataError) as error:
        prepare_phrasebank(path, tmp_path / "out")

    assert str(error.value).splitlines() == [
        f"reading {path}: 4 problems:",
        "  - line 2: 'no label', expected sentence@label",
        "  - line 3: '', expected sentence@label",
        "  - line 4: label 'great', expected one of positive, neutral, negative",
        "  - line 5: '@neutral', expected sentence@label.",
    ]
    assert not (tmp_path / "out").exists()


def test_too_few_rows_for_the_split_leave_nothing_behind(tmp_path: Path) -> None:
    write_sentences(tmp_path / "Sentences_AllAgree.txt", 3)

    with pytest.raises(DataError) as error:
        prepare_phrasebank(tmp_path, tmp_path / "out")

    assert str(error.value) == (
        f"writing to {tmp_path / 'out'}: financial_phrase_bank_val.jsonl would have no rows. "
        "The input has too few rows for this split."
    )
    assert not (tmp_path / "out").exists()


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Sentences_AllAgree\.txt: no such file\. Check the path"):
        prepare_phrasebank(tmp_path, tmp_path / "out")

    (tmp_path / "Sentences_AllAgree.txt").touch()
    with pytest.raises(DataError, match=r"Sentences_AllAgree\.txt: the file is empty\."):
        prepare_phrasebank(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("fraction", [0, 1, -0.5, float("nan")])
def test_an_impossible_fraction_is_refused_with_its_range(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"fraction .*; expected a number above 0 and below 1\."):
        prepare_phrasebank(tmp_path, tmp_path / "out", train_fraction=fraction)


def test_the_real_phrasebank_keeps_all_rows_and_labels(
    shared_data: Callable[[str], Path], tmp_path: Path, read_jsonl: Reader
) -> None:
    counts = prepare_phrasebank(shared_data("FinancialPhraseBank-v1.0"), tmp_path)

    assert list(counts.values()) == [1411, 176, 177, 177]
    rows = [
        row
        for split in SPLITS
        for row in read_jsonl(tmp_path / f"financial_phrase_bank_{split}.jsonl")
    ]
    assert len(rows) == 1764
    assert Counter(row["label"] for row in rows) == {
        " neutral": 1084,
        " positive": 443,
        " negative": 237,
    }
    assert len({row["sentence"] for row in rows}) == 1759  # five are repeated by the publisher
