import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from pl_compile.artifact.prompt_table import (
    BaseIdentity,
    PromptTable,
    TaskEntry,
    read_prompt_table,
    write_prompt_table,
)
from pl_compile.config.task import TaskConfig
from pl_compile.errors import ArtifactError, ConfigError, FingerprintError
from pl_compile.text.render import SequenceRules

HIDDEN = 6
BASE = BaseIdentity("tiny", "5eed" * 16, HIDDEN, 397)


RULES = SequenceRules(0, 1)


def entry(
    name: str,
    total: int,
    *,
    method: str = "prompt-tuning",
    rules: SequenceRules = RULES,
    **changes: Any,
) -> TaskEntry:
    """A task whose rows have every kind of number a float32 can be, but for the not finite."""
    odd = [-0.0, 1e-45, -3.4028235e38, 1 / 3, np.float32(1) + np.float32(1.2e-7)]
    rows = np.resize(np.asarray([*odd, len(name)], np.float32), (total, HIDDEN)) + 0
    task = TaskConfig(name, "<|VIRTUAL_PROMPT_0|>{text} is {label}", total, (total,))
    return replace(TaskEntry(task, rows, rules, method), **changes)


def table(*entries: TaskEntry) -> PromptTable:
    return PromptTable(BASE, {each.task.taskname: each for each in entries})


def refusal(path: Path) -> str:
    with pytest.raises(ArtifactError) as error:
        read_prompt_table(path)
    return str(error.value)


def _tensor_bytes(path: Path) -> dict[str, bytes]:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prompts.safetensors"


# What is kept


def test_tasks_of_different_lengths_and_methods_share_a_table(path: Path) -> None:
    written = table(
        entry("mood", 3),
        entry("squad", 11, method="p-tuning", rules=SequenceRules(None, 1)),
        entry("a-1_B", 1, rules=SequenceRules(0)),
        entry("turns", 2, rules=SequenceRules(0, 1, (396, 0))),
    )

    write_prompt_table(written, path)
    read = read_prompt_table(path)

    assert read.base == BASE
    assert list(read.entries) == ["mood", "squad", "a-1_B", "turns"]
    for name, expected in written.entries.items():
        found = read.entry(name)
        assert found.rows.dtype == np.float32
        assert found.rows.tobytes() == expected.rows.tobytes()
        assert replace(found, rows=expected.rows) == expected


def test_a_new_task_leaves_the_bytes_of_the_others_as_they_are(path: Path) -> None:
    write_prompt_table(table(entry("mood", 3), entry("squad", 5)), path)
    before = _tensor_bytes(path)

    old = read_prompt_table(path)
    write_prompt_table(old.with_entries({"aaa": entry("aaa", 4)}), path)

    after = _tensor_bytes(path)
    assert set(after) == {"mood", "squad", "aaa"}
    assert {name: after[name] for name in before} == before
    assert set(old.entries) == {"mood", "squad"}


def test_the_file_says_what_it_is_to_other_readers(path: Path) -> None:
    write_prompt_table(table(entry("mood", 3)), path)

    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()

    assert metadata["format"] == "plc.prompt-table"
    assert metadata["version"] == "1"
    assert json.loads(metadata["base"])["fingerprint"] == BASE.fingerprint
    assert json.loads(metadata["tasks"])["mood"]["method"] == "prompt-tuning"


def test_rows_that_are_a_view_are_written_as_they_look(path: Path) -> None:
    flipped = np.asfortranarray(np.arange(18, dtype=np.float32).reshape(3, HIDDEN))[::-1]

    write_prompt_table(table(replace(entry("mood", 3), rows=flipped)), path)

    assert read_prompt_table(path).entry("mood").rows.tolist() == flipped.tolist()


@pytest.mark.parametrize("name", ["keys", "_", "0", "a" * 64])
def test_odd_tasknames_can_be_read_back(path: Path, name: str) -> None:
    write_prompt_table(table(entry(name, 2)), path)

    assert list(read_prompt_table(path).entries) == [name]


def test_the_name_that_safetensors_keeps_for_itself_never_gets_into_a_file(path: Path) -> None:
    with pytest.raises((ConfigError, ArtifactError)) as error:
        write_prompt_table(table(entry("__metadata__", 2)), path)

    assert "__metadata__" in str(error.value)
    assert not path.exists()


# Looking in and adding


def test_an_unknown_task_lists_the_known_ones_with_the_nearest(path: Path) -> None:
    with pytest.raises(ArtifactError) as error:
        table(entry("sentiment", 2), entry("topic", 2)).entry("sentimant")

    assert str(error.value) == (
        "looking into the prompt table: task 'sentimant' does not exist. "
        "Did you mean 'sentiment'? Known tasks: sentiment, topic."
    )


def test_an_empty_table_says_that_it_is_empty() -> None:
    with pytest.raises(ArtifactError) as error:
        table().entry("mood")

    assert str(error.value).endswith("task 'mood' does not exist. There is no task yet.")


def test_a_task_cannot_be_added_twice() -> None:
    with pytest.raises(ArtifactError) as error:
        table(entry("mood", 3)).with_entries({"new": entry("new", 2), "mood": entry("mood", 2)})

    assert str(error.value) == (
        "adding to the prompt table: task 'mood' is in it already. "
        "Name the new task otherwise, or rename or remove that one with plc tasks."
    )


def test_another_base_is_refused_with_both_fingerprints() -> None:
    with pytest.raises(FingerprintError) as error:
        table(entry("mood", 3)).check_base(replace(BASE, fingerprint="f00d" * 16), "other")

    assert str(error.value) == (
        f"matching the prompt table with the base other: the base has fingerprint {'f00d' * 16}; "
        f"expected {'5eed' * 16} ('tiny'), which it was trained on. "
        "Give that base with --base, or train the tasks again on this one."
    )


def test_its_own_base_is_accepted() -> None:
    table(entry("mood", 3)).check_base(replace(BASE, name="another"), "under another name")


@pytest.mark.parametrize("sizes", [{"vocab": 1 << 10}, {"hidden": HIDDEN + 1}])
def test_a_table_of_other_sizes_than_its_base_is_refused_with_both(sizes: dict[str, int]) -> None:
    base = replace(BASE, **sizes)  # type: ignore[arg-type]

    with pytest.raises(FingerprintError) as error:
        table(entry("mood", 3)).check_base(base, "other")

    assert f"a table for hidden {BASE.hidden}, vocab {BASE.vocab}; " in str(error.value)
    assert f"expected hidden {base.hidden}, vocab {base.vocab}, as the base has" in str(error.value)


# What is not written


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_rows_of_a_run_that_diverged_are_not_written(path: Path, number: float) -> None:
    rows = entry("mood", 3).rows.copy()
    rows[2, 4] = number

    with pytest.raises(ArtifactError) as error:
        write_prompt_table(table(entry("good", 2), replace(entry("mood", 3), rows=rows)), path)

    assert str(error.value) == (
        f"writing {path}: rows of 'mood' that are not finite numbers. "
        "The run that made them diverged: lower its learning rate."
    )
    assert not path.exists()


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((3, HIDDEN + 1), np.float32),
        np.zeros((2, HIDDEN), np.float32),
        np.zeros((HIDDEN, 3), np.float32),
        np.zeros((3 * HIDDEN,), np.float32),
        np.zeros((3, HIDDEN), np.float64),
    ],
)
def test_rows_of_a_wrong_form_are_not_written(path: Path, rows: NDArray[Any]) -> None:
    with pytest.raises(ArtifactError) as error:
        write_prompt_table(table(replace(entry("mood", 3), rows=rows)), path)

    assert str(error.value) == (
        f"writing {path}: rows of 'mood': {rows.dtype} {rows.shape}; "
        f"expected float32 (3, {HIDDEN})."
    )
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"rules": SequenceRules(0, 397)},
            "eos_id 397 of task 'mood'; expected a token of the base: 0 to 396",
        ),
        ({"method": "\ud800"}, "half of a surrogate pair"),
        (
            {"task": TaskConfig("mood", "{text} is {label}", 3)},
            "the template of task 'mood': the template has 0 <|VIRTUAL_PROMPT_n|> markers",
        ),
    ],
)
def test_what_a_reader_would_refuse_is_not_written(
    path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ArtifactError) as error:
        write_prompt_table(table(replace(entry("mood", 3), **change)), path)

    assert str(error.value).startswith(f"writing {path}: ")
    assert said in str(error.value)
    assert not path.exists()


# What is not read


def _stored(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def _tampered(
    path: Path,
    rows: Mapping[str, NDArray[Any]] | None = None,
    mood: Mapping[str, Any] | None = None,
    **metadata: str | None,
) -> Path:
    """Writes a good table of "mood" with something changed; None takes an entry away."""
    write_prompt_table(table(entry("mood", 3)), path)
    stored, notes = _stored(path)
    changed: dict[str, str | None] = {**notes, **metadata}
    if mood is not None:
        changed["tasks"] = json.dumps({"mood": {**json.loads(notes["tasks"])["mood"], **mood}})
    kept = {key: value for key, value in changed.items() if value is not None}
    path.write_bytes(save(dict(stored if rows is None else rows), kept))
    return path


def test_a_missing_file_is_named(path: Path) -> None:
    text = refusal(path)

    assert text.startswith(f"reading the prompt table {path}: ")
    assert "No such file" in text
    assert text.endswith("expected a safetensors file.")


@pytest.mark.parametrize("n_bytes", [0, 7, 8, 100, -1])
def test_a_file_that_was_cut_short_is_refused(path: Path, n_bytes: int) -> None:
    write_prompt_table(table(entry("mood", 3)), path)
    path.write_bytes(path.read_bytes()[:n_bytes])

    text = refusal(path)

    found = "cut short: " if n_bytes else "an empty file; "
    assert text.startswith(f"reading the prompt table {path}: {found}")
    assert text.endswith("expected a safetensors file. Copy it again.")


@pytest.mark.parametrize("data", [b"\xff" * 99, b"PK\x03\x04" + bytes(99), b"\x80\x04pickled" * 9])
def test_bytes_of_another_kind_are_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)

    assert refusal(path).startswith(f"reading the prompt table {path}: ")
    assert "expected a safetensors file" in refusal(path)


def test_the_weights_of_a_model_are_not_taken_for_a_table(path: Path) -> None:
    path.write_bytes(save({"lm_head.weight": np.ones((3, HIDDEN), np.float32)}, {"format": "pt"}))

    assert refusal(path) == (
        f"reading the prompt table {path}: format 'pt'; expected 'plc.prompt-table'. "
        "Adapters and checkpoints come into a table with plc import."
    )


def test_weights_in_numbers_that_numpy_does_not_know_are_refused_as_foreign_too(
    path: Path,
) -> None:
    tensor = {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}
    header = json.dumps({"lm_head.weight": tensor, "__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))

    assert refusal(path).startswith(f"reading the prompt table {path}: ")


def test_a_safetensors_without_metadata_is_refused(path: Path) -> None:
    path.write_bytes(save({"a": np.ones(3, np.float32)}))

    assert "format None; expected 'plc.prompt-table'" in refusal(path)


@pytest.mark.parametrize("version", ["2", "0", "1.0", None])
def test_another_version_is_refused_with_both_numbers(path: Path, version: str | None) -> None:
    _tampered(path, version=version)

    assert refusal(path) == (
        f"reading the prompt table {path}: version {version}; expected 1. "
        "Use the release of plc that wrote it, or a newer one."
    )


def test_rows_without_a_task_and_tasks_without_rows_are_refused(path: Path) -> None:
    good = entry("mood", 3).rows
    _tampered(path, rows={"moods": good, "other": good})

    assert refusal(path) == (
        f"reading the prompt table {path}: rows for ['moods', 'other']; expected rows for ['mood']."
    )


@pytest.mark.parametrize("shape", [(3, HIDDEN - 1), (4, HIDDEN), (1, 3, HIDDEN), (0,)])
def test_rows_of_a_wrong_shape_are_refused_with_both(path: Path, shape: tuple[int, ...]) -> None:
    _tampered(path, rows={"mood": np.zeros(shape, np.float32)})

    assert refusal(path) == (
        f"reading the prompt table {path}: rows of 'mood': float32 {shape}; "
        f"expected float32 (3, {HIDDEN})."
    )


def test_rows_of_another_precision_are_refused(path: Path) -> None:
    _tampered(path, rows={"mood": np.zeros((3, HIDDEN), np.float16)})

    assert f"rows of 'mood': float16 (3, {HIDDEN}); expected float32" in refusal(path)


def test_rows_that_are_not_finite_are_refused(path: Path) -> None:
    _tampered(path, rows={"mood": np.full((3, HIDDEN), np.nan, np.float32)})

    assert "rows of 'mood' that are not finite numbers" in refusal(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base", None),
        ("base", "{"),
        ("base", "[]"),
        ("base", '{"name": "tiny"}'),
        ("base", json.dumps({"name": "t", "fingerprint": "f", "hidden": "6", "vocab": 7})),
        ("base", json.dumps({"name": "t", "fingerprint": "f", "hidden": 6, "vocab": 7, "x": 1})),
        ("tasks", None),
        ("tasks", "[]"),
        ("tasks", "3"),
        ("tasks", '["mood"]'),
        ("tasks", '{"mood": 3}'),
        ("tasks", '{"mood": {}}'),
    ],
)
def test_damaged_metadata_is_refused_with_the_file(path: Path, key: str, value: str | None) -> None:
    changes: dict[str, Any] = {key: value}
    _tampered(path, **changes)

    assert refusal(path).startswith(f"reading the prompt table {path}: ")


def test_a_task_with_an_unknown_key_is_refused_by_name(path: Path) -> None:
    task = {"taskname": "mood", "prompt_template": "x", "total_virtual_tokens": 3, "choice": []}
    _tampered(path, mood={"task": task})

    text = refusal(path)

    assert "unknown key 'task.choice'. Did you mean 'choices'?" in text
    assert str(path) in text


@pytest.mark.parametrize(
    ("key", "value"),
    [("bos_id", "0"), ("bos_id", True), ("eos_id", [1]), ("eos_id", 1.5), ("method", 3)],
)
def test_notes_of_a_wrong_type_are_refused(path: Path, key: str, value: object) -> None:
    _tampered(path, mood={key: value})

    assert key in refusal(path)


@pytest.mark.parametrize("value", [7, "7", [7.0], [True], ["7"], [[7]], None])
def test_further_end_tokens_of_a_wrong_type_are_refused(path: Path, value: object) -> None:
    _tampered(path, mood={"end_ids": value})

    assert "end_ids" in refusal(path)


@pytest.mark.parametrize("value", [[397], [-1], [5, 2**62], [1], [5, 5]])
def test_further_end_tokens_are_other_tokens_of_the_base(path: Path, value: object) -> None:
    _tampered(path, mood={"end_ids": value})

    text = refusal(path)

    assert "end_ids" in text
    assert "expected a token of the base: 0 to 396" in text or "expected each id once" in text


def test_a_task_with_one_end_token_is_written_as_releases_before_read_it(path: Path) -> None:
    write_prompt_table(table(entry("mood", 3)), path)

    with safe_open(path, framework="numpy") as file:
        record = json.loads(file.metadata()["tasks"])["mood"]
    assert set(record) == {"task", "bos_id", "eos_id", "method"}


def test_a_task_stored_under_another_name_is_refused_with_both(path: Path) -> None:
    task = {"taskname": "squad", "prompt_template": "x", "total_virtual_tokens": 3}
    _tampered(path, mood={"task": task})

    text = refusal(path)

    assert "'mood'" in text
    assert "'squad'" in text


def test_an_empty_tensor_of_sizes_that_no_array_has_is_refused(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F32", "shape": [0, 1 << 62], "data_offsets": [0, 0]}}
    text = json.dumps(header).encode()
    path = tmp_path / "table.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)

    with pytest.raises(ArtifactError, match="a tensor that numpy cannot hold"):
        read_prompt_table(path)
