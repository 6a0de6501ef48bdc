import json
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
DATA = QUICKSTART / "data"
SIZES = {"train": 400, "val": 60, "test": 100}
KEYS = {"ticket": ("message", "label"), "command": ("request", "command")}
LABELS = {"billing", "delivery", "technical", "account"}
VERBS = {"lights", "timer", "alarm", "thermostat", "remind", "shopping", "music", "message"}
# Words that a template may add to its verb: "shopping add ...", "music ... off".
FIXED_WORDS = {"shopping": {"add"}, "music": {"off"}}

every_task = pytest.mark.parametrize("task", KEYS)


def rows_of(task: str, split: str) -> list[dict[str, str]]:
    lines = (DATA / f"{task}_{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def all_rows(task: str) -> list[dict[str, str]]:
    return [row for split in SIZES for row in rows_of(task, split)]


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[\w:.-]*\w", text.lower()))


def test_generator_writes_the_committed_files_byte_for_byte(tmp_path: Path) -> None:
    command = [sys.executable, str(QUICKSTART / "make_data.py"), "--output", str(tmp_path)]

    subprocess.run(command, check=True, capture_output=True, timeout=60)

    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_bytes() for path in DATA.glob("*.jsonl")}
    assert sorted(written) == sorted(f"{task}_{split}.jsonl" for task in KEYS for split in SIZES)
    assert written == committed


@every_task
def test_every_split_has_its_size_and_its_fields_in_order(task: str) -> None:
    for split, size in SIZES.items():
        rows = rows_of(task, split)

        assert len(rows) == size
        assert {tuple(row) for row in rows} == {("taskname", *KEYS[task])}
        assert {row["taskname"] for row in rows} == {task}


@every_task
def test_no_text_is_in_two_splits_or_twice_in_one(task: str) -> None:
    text_key = KEYS[task][0]

    texts = {split: {row[text_key].lower() for row in rows_of(task, split)} for split in SIZES}

    assert {split: len(found) for split, found in texts.items()} == SIZES
    for one, other in combinations(SIZES, 2):
        assert texts[one].isdisjoint(texts[other]), f"{one} and {other} share a text"


@every_task
@pytest.mark.parametrize("split", ["val", "test"])
def test_half_of_the_held_out_texts_have_a_word_that_training_lacks(task: str, split: str) -> None:
    text_key = KEYS[task][0]
    trained_words = set().union(*(words_of(row[text_key]) for row in rows_of(task, "train")))

    rows = rows_of(task, split)
    n_new = sum(not words_of(row[text_key]) <= trained_words for row in rows)

    assert n_new >= len(rows) / 2


@pytest.mark.parametrize(("task", "fewest", "most"), [("ticket", 6, 22), ("command", 5, 18)])
def test_texts_stay_short(task: str, fewest: int, most: int) -> None:
    n_words = [len(row[KEYS[task][0]].split()) for row in all_rows(task)]

    assert min(n_words) >= fewest
    assert max(n_words) <= most


@pytest.mark.parametrize("split", SIZES)
def test_tickets_carry_known_labels_in_rough_balance(split: str) -> None:
    counts = Counter(row["label"] for row in rows_of("ticket", split))

    assert set(counts) == LABELS
    assert max(counts.values()) <= 2 * min(counts.values())


@pytest.mark.parametrize("split", SIZES)
def test_every_verb_of_the_command_language_is_in_every_split(split: str) -> None:
    verbs = {row["command"].split()[0] for row in rows_of("command", split)}

    assert verbs == VERBS


def test_commands_are_two_to_six_lower_case_words() -> None:
    for row in all_rows("command"):
        words = row["command"].split(" ")

        assert row["command"] == row["command"].lower()
        assert 2 <= len(words) <= 6, row
        assert all(words), row


def test_every_other_word_of_a_command_stands_in_its_request() -> None:
    for row in all_rows("command"):
        verb, *rest = row["command"].split()
        copied = set(rest) - FIXED_WORDS.get(verb, set())

        assert copied <= words_of(row["request"]), row
