"""The tutorial's two sessions, on a tiny base and a handful of examples."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from pl_compile.artifact.prompt_table import PromptTable, read_prompt_table
from pl_compile.driver.train import train_run
from pl_compile.training.read_config import read_train_config

TUTORIAL = Path(__file__).parents[2] / "examples" / "tutorial"
FIRST = ("sentiment", "intent_and_slot")
ROWS = {
    "sentiment": {"sentence": "Profit rose to EUR {} mn .", "label": " positive"},
    "intent_and_slot": {
        "utterance": "wake me at {}",
        "label": "\nIntent: alarm_set\nSlots: time({})",
    },
    "squad": {"context": "He was born in {}.", "question": "When was he born?", "answer": "{}"},
}


def write_data(folder: Path) -> None:
    folder.mkdir()
    for task, fields in ROWS.items():
        for split, count in (("train", 16), ("val", 2)):
            rows = [
                {"taskname": task, **{key: text.format(n) for key, text in fields.items()}}
                for n in range(count)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{task}_{split}.jsonl").write_text(text, encoding="utf-8")


def sums(table: PromptTable) -> dict[str, str]:
    return {
        name: hashlib.sha256(entry.learned.tobytes()).hexdigest()
        for name, entry in table.entries.items()
    }


@pytest.fixture(scope="module")
def tables(
    tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[PromptTable, PromptTable]:
    """What the sessions leave, trained as run.sh does it."""
    folder = tmp_path_factory.mktemp("tutorial")
    write_data(folder / "data")
    found = []
    for session, base_key in (("session1", "model.language_model_path"), ("session2", "base")):
        shutil.copy(TUTORIAL / f"{session}.yaml", folder)
        settings = [f"{base_key}={tiny_bases['llama']}", "trainer.max_steps=2"]
        settings += ["trainer.val_check_interval=2"]
        train_run(read_train_config(folder / f"{session}.yaml", settings), folder / session)
        found.append(read_prompt_table(folder / session / "prompts.safetensors"))
    return found[0], found[1]


def test_the_second_session_adds_a_task_and_leaves_the_bytes_of_the_others(
    tables: tuple[PromptTable, PromptTable],
) -> None:
    first, second = tables

    assert tuple(first.entries) == FIRST
    assert tuple(second.entries) == (*FIRST, "squad")
    kept = {name: digest for name, digest in sums(second).items() if name in FIRST}
    assert kept == sums(first)
    for name in FIRST:
        assert second.entries[name].record() == first.entries[name].record()


def test_one_table_holds_different_methods_and_counts(
    tables: tuple[PromptTable, PromptTable],
) -> None:
    entries = tables[1].entries

    assert {name: (entry.method, len(entry.rows)) for name, entry in entries.items()} == {
        "sentiment": ("p-tuning", 10),
        "intent_and_slot": ("p-tuning", 10),
        "squad": ("prompt-tuning", 15),
    }
    assert entries["intent_and_slot"].task.virtual_token_splits == (7, 3)


def test_the_second_session_takes_what_the_first_one_trains() -> None:
    first, second = (read_train_config(TUTORIAL / f"session{n}.yaml") for n in (1, 2))

    assert tuple(task.taskname for task in first.tasks) == second.existing_tasks
    assert second.existing_table == TUTORIAL / "session1" / "prompts.safetensors"
    assert second.base == first.base


def test_the_script_is_one_that_a_shell_reads_and_names_the_files_of_the_configs() -> None:
    script = TUTORIAL / "run.sh"
    subprocess.run(["sh", "-n", str(script)], check=True, timeout=30)
    text = script.read_text(encoding="utf-8")

    for number in (1, 2):
        data = read_train_config(TUTORIAL / f"session{number}.yaml").data
        for path in (*data.train, *data.validation):
            assert f" {path.stem}\n" in text
