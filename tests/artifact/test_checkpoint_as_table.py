import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save

from pl_compile.artifact.prompt_table import (
    BaseIdentity,
    TaskEntry,
    read_prompt_table,
    write_prompt_table,
)
from pl_compile.config.read import plain_from_config
from pl_compile.config.task import TaskConfig
from pl_compile.errors import ArtifactError
from pl_compile.importers.run_checkpoint import read_checkpoint_table
from pl_compile.text.render import SequenceRules

HIDDEN = 6
BASE = BaseIdentity("tiny", "5eed" * 16, HIDDEN, 397)


def entry(name: str, total: int, *, prefix: bool = False) -> TaskEntry:
    generator = np.random.default_rng(total)
    task = TaskConfig(name, "<|VIRTUAL_PROMPT_0|>{text} is {label}", total)
    rows = generator.normal(size=(0 if prefix else total, HIDDEN)).astype(np.float32)
    kv = generator.normal(size=(2, 2, 3, total, 4)).astype(np.float32) if prefix else None
    return TaskEntry(task, rows, SequenceRules(None, 1), "any", kv)


ENTRIES = [entry("mood", 3), entry("squad", 5), entry("order", 4, prefix=True)]


def checkpoint(path: Path, **changes: str | None) -> Path:
    """A checkpoint as a run writes it; None takes a note away."""
    tensors: dict[str, NDArray[Any]] = {
        f"table/{each.task.taskname}": each.learned for each in ENTRIES
    }
    others = {"method/rows.0": np.ones((3, HIDDEN)), "optimizer/0/step": np.ones(1, np.int64)}
    notes: dict[str, str | None] = {
        "format": "plc.training-checkpoint",
        "state": "{}",
        "identity": "{}",
        "base": json.dumps(plain_from_config(BASE)),
        "entries": json.dumps({each.task.taskname: each.record() for each in ENTRIES}),
        **changes,
    }
    kept = {key: value for key, value in notes.items() if value is not None}
    path.write_bytes(save(tensors | others, kept))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ArtifactError) as error:
        read_checkpoint_table(path)
    return str(error.value).removeprefix(f"reading the prompts of the checkpoint {path}: ")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "last.safetensors"


def test_the_table_of_a_checkpoint_is_that_of_its_run(path: Path, tmp_path: Path) -> None:
    table = read_checkpoint_table(checkpoint(path))
    write_prompt_table(table, tmp_path / "table")
    read = read_prompt_table(tmp_path / "table")

    assert read.base == BASE
    assert list(read.entries) == ["mood", "squad", "order"]
    for expected in ENTRIES:
        found = read.entry(expected.task.taskname)
        assert found.record() == expected.record()
        assert found.learned.tobytes() == expected.learned.tobytes()


def test_another_file_is_not_taken_for_a_checkpoint(path: Path) -> None:
    expected = "format 'pt'; expected 'plc.training-checkpoint'."

    assert refusal(checkpoint(path, format="pt")) == expected


def test_a_checkpoint_without_prompts_says_what_to_do(path: Path) -> None:
    path.write_bytes(save({"method/x": np.ones(3)}, {"format": "plc.training-checkpoint"}))

    assert refusal(path).startswith("no prompts in it; expected tensors table/<taskname>. It was")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"base": None}, "metadata that says nothing of its base"),
        ({"entries": None}, "metadata that says nothing of its tasks"),
        ({"entries": "{}"}, "rows for ['mood', 'order', 'squad']; expected rows for []"),
        ({"entries": "["}, "damaged metadata"),
        ({"base": "[]"}, "base: '' is a list of 0, expected a mapping"),
    ],
)
def test_damaged_notes_are_refused(path: Path, changes: dict[str, str | None], found: str) -> None:
    assert refusal(checkpoint(path, **changes)).startswith(found)


@pytest.mark.parametrize("n_bytes", [0, 99, -1])
def test_a_checkpoint_that_was_cut_short_is_refused(path: Path, n_bytes: int) -> None:
    checkpoint(path)
    path.write_bytes(path.read_bytes()[:n_bytes])

    assert refusal(path).endswith("expected a safetensors file. Copy it again.")
