import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from pl_compile.artifact.bundle import MANIFEST
from pl_compile.artifact.prompt_table import (
    BaseIdentity,
    PromptTable,
    TaskEntry,
    read_prompt_table,
    write_prompt_table,
)
from pl_compile.config.task import TaskConfig
from pl_compile.driver.tasks import add_tasks, export_peft, list_tasks, remove_tasks, rename_task
from pl_compile.errors import ArtifactError, ConfigError, FingerprintError
from pl_compile.text.render import SequenceRules

HIDDEN = 6
BASE = BaseIdentity("tiny", "5eed" * 16, HIDDEN, 397)


def entry(name: str, total: int, *, prefix: bool = False, seed: int = 0) -> TaskEntry:
    generator = np.random.default_rng([seed, total])
    task = TaskConfig(name, "<|VIRTUAL_PROMPT_0|> {text} is {label}", total, choices=("a", "b"))
    rows = generator.normal(size=(0 if prefix else total, HIDDEN)).astype(np.float32)
    kv = generator.normal(size=(2, 2, 3, total, 4)).astype(np.float32) if prefix else None
    return TaskEntry(task, rows, SequenceRules(None, 1), "any", kv)


def written(path: Path, *entries: TaskEntry, base: BaseIdentity = BASE) -> Path:
    table = PromptTable(base, {each.task.taskname: each for each in entries})
    write_prompt_table(table, path)
    return path


def sums(path: Path) -> dict[str, str]:
    """The sha256 of each task's tensor and of its record."""
    with safe_open(path, framework="numpy") as file:
        records = json.loads(file.metadata()["tasks"])
        return {
            name: hashlib.sha256(
                file.get_tensor(name).tobytes() + json.dumps(record).encode()
            ).hexdigest()
            for name, record in records.items()
        }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(
        tmp_path / "table", entry("mood", 3), entry("squad", 5), entry("order", 4, prefix=True)
    )


def test_tasks_are_listed_whatever_they_hold(path: Path, tmp_path: Path) -> None:
    tasks = list_tasks(path)

    assert [task["taskname"] for task in tasks] == ["mood", "squad", "order"]
    assert [task["virtual_tokens"] for task in tasks] == [3, 5, 4]
    assert all(task["row_norms"]["largest"] > 0 for task in tasks)

    path.rename(tmp_path / "prompts.safetensors")  # the folder is that of a run now
    assert list_tasks(tmp_path) == tasks


def test_a_base_has_no_tasks_to_list(tiny_bases: dict[str, Path]) -> None:
    with pytest.raises(ArtifactError, match="it holds: base; expected a prompt table, a run"):
        list_tasks(tiny_bases["llama"])


def test_removing_a_task_leaves_the_others_as_they_were(path: Path) -> None:
    before = sums(path)

    remove_tasks(path, ["squad"])

    assert sums(path) == {name: before[name] for name in ("mood", "order")}


def test_the_last_task_is_not_removed(path: Path) -> None:
    before = path.read_bytes()

    with pytest.raises(ArtifactError) as error:
        remove_tasks(path, ["order", "mood", "squad"])

    assert str(error.value) == (
        f"removing tasks of {path}: no task would stay. Delete the file if you need no task of it."
    )
    assert path.read_bytes() == before


def test_renaming_a_task_keeps_its_numbers_and_its_place(path: Path) -> None:
    before, old = sums(path), read_prompt_table(path).entry("mood")

    rename_task(path, "mood", "tone")

    table = read_prompt_table(path)
    assert list(table.entries) == ["tone", "squad", "order"]
    assert table.entry("tone").learned.tobytes() == old.learned.tobytes()
    assert table.entry("tone").task == replace(old.task, taskname="tone")
    after = sums(path)
    assert (after["squad"], after["order"]) == (before["squad"], before["order"])


def test_tasks_of_another_table_are_added_after_its_own(path: Path, tmp_path: Path) -> None:
    before = sums(path)
    other = written(tmp_path / "other", entry("b", 2), entry("mood", 3, seed=1), entry("a", 2))

    add_tasks(path, other, ["a", "b"])

    after = sums(path)
    assert list(read_prompt_table(path).entries) == ["mood", "squad", "order", "a", "b"]
    assert after == {**before, **{name: sums(other)[name] for name in ("a", "b")}}


def test_a_new_table_is_made_of_chosen_tasks(path: Path, tmp_path: Path) -> None:
    add_tasks(tmp_path / "new", path, ["order"])

    assert sums(tmp_path / "new") == {"order": sums(path)["order"]}


def test_tasks_of_another_base_are_refused(path: Path, tmp_path: Path) -> None:
    foreign = BaseIdentity("other", "bead" * 16, HIDDEN, 397)
    other = written(tmp_path / "other", entry("a", 2), base=foreign)
    before = path.read_bytes()

    with pytest.raises(FingerprintError):
        add_tasks(path, other)

    assert path.read_bytes() == before


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "rm unknown": (lambda p: remove_tasks(p, ["mod"]), "Did you mean 'mood'"),
    "rename unknown": (lambda p: rename_task(p, "mod", "x"), "Did you mean 'mood'"),
    "rename to a task": (lambda p: rename_task(p, "mood", "squad"), "'squad' is in it already"),
    "rename to itself": (lambda p: rename_task(p, "mood", "mood"), "'mood' is in it already"),
    "rename to no name": (lambda p: rename_task(p, "mood", "../x"), "taskname '../x'"),
    "add to itself": (lambda p: add_tasks(p, p, ["mood"]), "'mood' is in it already"),
    "add unknown": (lambda p: add_tasks(p, p, ["mod"]), "Did you mean 'mood'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_change_leaves_the_file(path: Path, name: str) -> None:
    change, message = REFUSED[name]
    before = path.read_bytes()

    with pytest.raises((ArtifactError, ConfigError), match=message):
        change(path)

    assert path.read_bytes() == before


def test_the_tasks_of_a_bundle_are_not_changed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / MANIFEST).write_text('{"format": "plc.bundle"}')

    changes: list[Callable[[Path], object]] = [
        lambda bundle: remove_tasks(bundle, ["mood"]),
        lambda bundle: rename_task(bundle, "mood", "tone"),
        lambda bundle: add_tasks(bundle, path),
    ]
    for change in changes:
        with pytest.raises(ArtifactError, match="a bundle; expected a prompt table"):
            change(tmp_path / "bundle")


def test_the_text_for_peft_is_the_template_without_its_virtual_tokens(
    path: Path, tmp_path: Path
) -> None:
    assert export_peft(path, "mood", tmp_path / "adapter") == " {text} is {label}"

    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
