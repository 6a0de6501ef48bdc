import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pl_compile.errors import DataError
from pl_compile.metrics.intent_slot import parse_intent_and_slots
from pl_compile.training.prepare import prepare_assistant
from pl_compile.training.prepare.assistant import parse_annotation

Reader = Callable[[Path], list[dict[str, Any]]]
HEADER = "answerid;scenario;intent;answer_annotation;answer_from_anno;answer_from_user"


def write_intent(folder: Path, scenario: str, intent: str, *annotations: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{scenario}_{intent}.csv"
    rows = [f'null;{scenario};{intent};"{text}";"plain";"spoken"' for text in annotations]
    path.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    fold = tmp_path / "NLU-Evaluation-Data-master" / "CrossValidation" / "KFold_1"
    write_intent(fold / "trainset", "play", "music", "play [artist_name : adele]", "play; a song")
    write_intent(fold / "trainset", "alarm", "set", "[time : nine am] wake me [date : today]")
    for i, intent in enumerate(("set", "query")):
        write_intent(
            fold / "testset" / "csv",
            "alarm",
            intent,
            *(f"at [time : {n}{i}] please" for n in "abc"),
        )
    return fold


@pytest.mark.parametrize(
    ("annotation", "utterance", "slots"),
    [
        ("tell a joke", "tell a joke", []),
        (
            "[date : today] is it [weather : hot]?",
            "today is it hot?",
            [("date", "today"), ("weather", "hot")],
        ),
        ("at [time : four am] [time : ten pm]", "at four am ten pm", [("time", "four am ten pm")]),
        ("[time : four] or [time : ten]", "four or ten", [("time", "four"), ("time", "ten")]),
        ("[time : six][date : today]", "sixtoday", [("time", "six"), ("date", "today")]),
        ("at [time : 5:30]", "at 5:30", [("time", "5:30")]),
        ("at [list name:  milk ]", "at milk", [("list name", "milk")]),
    ],
)
def test_annotations_are_read(
    annotation: str, utterance: str, slots: list[tuple[str, str]]
) -> None:
    assert parse_annotation(annotation) == (utterance, slots)


@pytest.mark.parametrize(
    "annotation", ["a [time : ", "a time : six]", "[time six]", "[time : ]", "[ : x]"]
)
def test_half_an_annotation_is_refused(annotation: str) -> None:
    with pytest.raises(ValueError, match=r"^brackets in"):
        parse_annotation(annotation)


def test_rows_carry_intent_and_slots_and_a_leading_slot_is_kept(
    fold: Path, tmp_path: Path, read_jsonl: Reader
) -> None:
    out = tmp_path / "my_test"  # NeMo dropped labels wherever a path held "_test"

    counts = prepare_assistant(fold, out)

    assert counts == {
        "assistant_train.jsonl": 3,
        "assistant_val.jsonl": 3,
        "assistant_test.jsonl": 3,
        "assistant_test_ground_truth.jsonl": 3,
    }
    rows = read_jsonl(out / "assistant_train.jsonl")
    assert sorted((row["utterance"], row["label"]) for row in rows) == [
        ("nine am wake me today", "\nIntent: alarm_set\nSlots: time(nine am), date(today)"),
        ("play adele", "\nIntent: play_music\nSlots: artist_name(adele)"),
        ("play; a song", "\nIntent: play_music\nSlots: None"),
    ]
    assert {tuple(row) for row in rows} == {("taskname", "utterance", "label")}
    assert {row["taskname"] for row in rows} == {"intent_and_slot"}


def test_the_test_set_is_shuffled_after_the_training_set_and_halved(
    fold: Path, tmp_path: Path, read_jsonl: Reader
) -> None:
    # Intents in alphabetical order, one generator for both shuffles: NeMo's order.
    generator = random.Random(42)
    generator.shuffle([None] * 3)
    expected = [f"at {n}{i} please" for i in (1, 0) for n in "abc"]
    generator.shuffle(expected)

    prepare_assistant(fold, tmp_path / "out")

    val = read_jsonl(tmp_path / "out" / "assistant_val.jsonl")
    test = read_jsonl(tmp_path / "out" / "assistant_test.jsonl")
    truth = read_jsonl(tmp_path / "out" / "assistant_test_ground_truth.jsonl")
    assert [row["utterance"] for row in val + test] == expected
    assert [{**row, "label": None} for row in test] == [{**row, "label": None} for row in truth]
    assert all("label" in row for row in val + truth)
    assert not any("label" in row for row in test)


def test_options_list_all_intents_and_slots(fold: Path, tmp_path: Path, read_jsonl: Reader) -> None:
    prepare_assistant(fold, tmp_path / "out", include_options=True)

    for name in ("train", "val", "test", "test_ground_truth"):
        row = read_jsonl(tmp_path / "out" / f"assistant_{name}.jsonl")[0]
        assert row["intent options"] == "alarm_query, alarm_set, play_music"
        assert row["slot_options"] == "artist_name, date, time"


def test_fold_1_is_found_from_any_folder_above(fold: Path, tmp_path: Path) -> None:
    assert prepare_assistant(tmp_path, tmp_path / "out") == prepare_assistant(
        fold, tmp_path / "out"
    )


def test_a_folder_without_fold_1_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        prepare_assistant(tmp_path, tmp_path / "out")

    assert str(error.value) == (
        f"looking for the Assistant set in {tmp_path}: no KFold_1 in it; "
        "expected one folder KFold_1 with trainset/ and testset/csv/. "
        "Give the unpacked NLU-Evaluation-Data, or its fold itself."
    )


def test_all_bad_rows_of_the_fold_are_listed_with_file_and_line(fold: Path, tmp_path: Path) -> None:
    path = write_intent(fold / "trainset", "alarm", "remove", "stop [time six]", "fine", " ")
    with path.open("a") as file:
        file.write('1;alarm;set;"x";"x";"x"\n1;alarm\n')
    (fold / "trainset" / "qa_maths.csv").write_text("answerid;scenario;text\n1;qa;x\n")
    bad = fold / "testset" / "csv" / "alarm_set.csv"
    bad.write_text(f'{HEADER}\n1;alarm;set;"never closed;x;x\n', encoding="utf-8")

    with pytest.raises(DataError) as error:
        prepare_assistant(fold, tmp_path / "out")

    assert str(error.value).splitlines() == [
        f"reading {fold}: 7 problems:",
        "  - trainset/alarm_remove.csv:6: 2 fields, the header has 6",
        "  - trainset/alarm_remove.csv:2: brackets in 'stop [time six]'",
        "  - trainset/alarm_remove.csv:4: an empty utterance",
        "  - trainset/alarm_remove.csv:5: the intent 'alarm_set' in the file of 'alarm_remove'",
        "  - trainset/qa_maths.csv:1: the column 'intent' is missing",
        "  - trainset/qa_maths.csv:1: the column 'answer_annotation' is missing",
        "  - testset/csv/alarm_set.csv:2: a field begins with a quote that is never closed.",
    ]
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_of_the_fold_is_named(tmp_path: Path) -> None:
    write_intent(tmp_path / "trainset", "alarm", "set", "x")
    (tmp_path / "testset" / "csv").mkdir(parents=True)

    with pytest.raises(DataError, match=r"testset/csv/\*\.csv: no rows\.$"):
        prepare_assistant(tmp_path, tmp_path / "out")


def test_the_real_set_keeps_all_utterances_as_their_publisher_wrote_them(
    shared_data: Callable[[str], Path], tmp_path: Path, read_jsonl: Reader
) -> None:
    source = shared_data("assistant")

    counts = prepare_assistant(source, tmp_path, include_options=True)

    assert list(counts.values()) == [8942, 538, 538, 538]
    rows = [
        row
        for split in ("train", "val", "test_ground_truth")
        for row in read_jsonl(tmp_path / f"assistant_{split}.jsonl")
    ]
    assert len(rows[0]["intent options"].split(", ")) == 64
    assert len(rows[0]["slot_options"].split(", ")) == 54
    plain = []
    for path in source.rglob("*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            plain += [row["answer_from_anno"] for row in csv.DictReader(file, delimiter=";")]
    assert sorted(row["utterance"] for row in rows) == sorted(plain)
    for row in rows:
        for slot in parse_intent_and_slots(row["label"]).slots:
            assert slot.partition("(")[2].removesuffix(")") in row["utterance"].lower()
