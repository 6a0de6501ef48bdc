"""Whole runs on tiny bases: what they leave, that they learn, resume and refuse."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pl_compile.artifact.prompt_table import read_prompt_table
from pl_compile.config.read import build, node_from_plain
from pl_compile.config.train import TrainConfig
from pl_compile.errors import (
    ArtifactError,
    BaseModelError,
    ConfigError,
    FingerprintError,
    TrainingError,
)
from pl_compile.testing import TASKS, tiny_examples, tiny_train_config, write_jsonl
from pl_compile.training.checkpoint import save_checkpoint
from pl_compile.training.run import read_train_config, run_training


def make_config(folder: Path, base: Path, **changes: Any) -> TrainConfig:
    plain = tiny_train_config(folder, base, **changes)
    return build(TrainConfig, node_from_plain(plain, "test"), doing="reading the test config")


def records(run_folder: Path) -> list[dict[str, Any]]:
    lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def tensor_bytes(table: Path) -> dict[str, str]:
    entries = read_prompt_table(table).entries
    return {name: hashlib.sha256(e.rows.tobytes()).hexdigest() for name, e in entries.items()}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_run_leaves_table_metrics_curves_and_checkpoints(
    tiny_bases: dict[str, Path], tmp_path: Path, family: str
) -> None:
    result = run_training(make_config(tmp_path, tiny_bases[family]), tmp_path / "run")

    assert result.table == tmp_path / "run/prompts.safetensors"
    assert set(read_prompt_table(result.table).entries) == {"tone", "ask"}
    assert result.trained == (3 + 5) * 24
    names = {p.relative_to(tmp_path / "run").as_posix() for p in (tmp_path / "run").rglob("*.*")}
    assert names == {
        "prompts.safetensors",
        "config.yaml",
        "metrics.jsonl",
        "curves.png",
        "checkpoints/last.safetensors",
        "checkpoints/best.safetensors",
    }
    assert (tmp_path / "run/curves.png").read_bytes().startswith(b"\x89PNG")


def test_training_lowers_the_loss_below_the_no_prompt_baseline(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    trainer = {"max_steps": 60, "global_batch_size": 8, "micro_batch_size": 8}
    config = make_config(tmp_path, tiny_bases["llama"], trainer=trainer, tasks=[TASKS[0]])
    rows = [row for row in tiny_examples(48) if row["taskname"] == "tone"]
    write_jsonl(config.data.train[0], rows)
    write_jsonl(config.data.validation[0], rows)

    (task,) = run_training(config, tmp_path / "run").tasks

    assert task.loss_with_prompt is not None
    assert task.loss_without_prompt is not None
    assert task.loss_with_prompt < 0.8 * task.loss_without_prompt


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_tuning": {"init": "vocabulary"}},
        {"prompt_tuning": {"init": "random"}},
        {
            "prompt_tuning": {"init": "text"},
            "tasks": [{**task, "init_text": "was it good?"} for task in TASKS],
        },
        {
            "virtual_prompt_style": "p-tuning",
            "p_tuning": {"encoder_type": "mlp", "encoder_hidden": 20, "num_layers": 3},
            "tasks": [TASKS[0], {**TASKS[0], "taskname": "a_much_longer_name"}],
        },
        {
            "virtual_prompt_style": "p-tuning",
            "p_tuning": {"encoder_type": "lstm", "dropout": 0.3},
            "tasks": [TASKS[0]],
        },
    ],
    ids=["vocabulary", "random", "text", "mlp", "lstm"],
)
def test_a_run_that_is_resumed_ends_like_one_that_was_not(
    tiny_bases: dict[str, Path], tmp_path: Path, changes: dict[str, Any], monkeypatch: Any
) -> None:
    config = make_config(tmp_path, tiny_bases["llama"], **changes)
    tasknames = [task.taskname for task in config.tasks if task.taskname != "ask"]
    rows = tiny_examples(24) + [
        {**row, "taskname": name}
        for row in tiny_examples(24)
        for name in tasknames
        if row["taskname"] == "tone"
    ]
    rows = [row for row in rows if row["taskname"] in {task.taskname for task in config.tasks}]
    write_jsonl(config.data.train[0], rows)
    write_jsonl(config.data.validation[0], rows[:6])
    whole = run_training(config, tmp_path / "whole")

    def killed_after_the_first_save(path: Path, state: Any, *rest: Any) -> None:
        save_checkpoint(path, state, *rest)
        if path.name == "last.safetensors":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pl_compile.training.run.save_checkpoint", killed_after_the_first_save)
        with pytest.raises(KeyboardInterrupt):
            run_training(config, tmp_path / "parts")
    parts = run_training(config, tmp_path / "parts", resume=True)

    assert tensor_bytes(parts.table) == tensor_bytes(whole.table)
    losses = [
        [(r["step"], r.get("train_loss"), r.get("val_loss")) for r in records(tmp_path / name)]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


def test_the_base_is_the_same_afterwards(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    base = tiny_bases["gpt2"]
    before = {path.name: path.read_bytes() for path in base.iterdir()}

    run_training(make_config(tmp_path, base), tmp_path / "run")

    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_bf16_trains_prompts_that_stay_float32(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    trainer = {
        "max_steps": 2,
        "global_batch_size": 4,
        "micro_batch_size": 4,
        "precision": "bf16",
    }

    result = run_training(
        make_config(tmp_path, tiny_bases["llama"], trainer=trainer), tmp_path / "run"
    )

    assert read_prompt_table(result.table).entry("tone").rows.dtype == np.float32


def test_adding_a_task_leaves_the_bytes_of_the_others(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_bases["llama"]
    first = run_training(make_config(tmp_path, base), tmp_path / "first")
    (tmp_path / "more").mkdir()
    added = {**TASKS[0], "taskname": "mood", "total_virtual_tokens": 4}
    config = make_config(
        tmp_path / "more",
        base,
        tasks=[added],
        existing_table=str(first.table),
        virtual_prompt_style="p-tuning",
    )
    rows = [{**r, "taskname": "mood"} for r in tiny_examples(24) if r["taskname"] == "tone"]
    write_jsonl(config.data.train[0], rows)
    write_jsonl(config.data.validation[0], rows[:4])

    second = run_training(config, tmp_path / "second")

    before, after = tensor_bytes(first.table), tensor_bytes(second.table)
    assert {name: after[name] for name in before} == before
    entry = read_prompt_table(second.table).entry("mood")
    assert (entry.method, entry.rows.shape) == ("p-tuning", (4, 24))


def test_a_task_that_is_in_the_existing_table_is_refused_before_training(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_bases["llama"]
    first = run_training(make_config(tmp_path, base), tmp_path / "first")

    with pytest.raises(ArtifactError, match="task 'ask' is in it already"):
        run_training(
            make_config(tmp_path, base, existing_table=str(first.table)), tmp_path / "again"
        )


def test_a_table_of_another_base_is_refused_with_both_fingerprints(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    first = run_training(make_config(tmp_path, tiny_bases["llama"]), tmp_path / "first")
    fingerprint = read_prompt_table(first.table).base.fingerprint
    config = make_config(tmp_path, tiny_bases["gpt2"], existing_table=str(first.table))

    with pytest.raises(FingerprintError) as caught:
        run_training(config, tmp_path / "second")

    assert fingerprint in str(caught.value)
    assert len({word for word in str(caught.value).split() if len(word.strip(",;")) == 64}) == 2


def test_resuming_another_run_names_what_differs(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    config = make_config(tmp_path, tiny_bases["llama"])
    run_training(config, tmp_path / "run")
    write_jsonl(config.data.train[0], tiny_examples(24, seed=9))

    with pytest.raises(TrainingError) as caught:
        run_training(dataclasses.replace(config, seed=7), tmp_path / "run", resume=True)

    assert "'config.seed' was 1234, now 7" in str(caught.value)
    assert "'train.0.train.jsonl' was" in str(caught.value)


def test_resuming_nothing_says_so(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_bases["llama"])

    with pytest.raises(TrainingError, match=r"resuming from .*last\.safetensors.*without --resume"):
        run_training(config, tmp_path / "run", resume=True)


def test_a_run_is_not_overwritten(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_bases["llama"])
    run_training(config, tmp_path / "run")

    with pytest.raises(TrainingError, match=r"a run is there already.*--resume"):
        run_training(config, tmp_path / "run")


def test_fewer_examples_than_a_batch_is_refused(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    trainer = {"max_steps": 1, "global_batch_size": 64, "micro_batch_size": 8}

    with pytest.raises(TrainingError, match=r"24 usable training examples; expected .* of 64"):
        run_training(make_config(tmp_path, tiny_bases["llama"], trainer=trainer), tmp_path / "run")


def test_a_diverging_run_stops_and_says_what_to_do(
    tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pl_compile.training.base_model.FrozenBase.loss",
        lambda self, batch, rows: rows.sum() * torch.nan,
    )

    with pytest.raises(TrainingError, match=r"training step 1: a loss of nan.*Lower optim\.lr"):
        run_training(make_config(tmp_path, tiny_bases["llama"]), tmp_path / "run")


def test_p_tuning_needs_equal_counts(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_bases["llama"], virtual_prompt_style="p-tuning")

    with pytest.raises(ConfigError, match=r"\{'tone': 3, 'ask': 5\}; expected one number"):
        run_training(config, tmp_path / "run")


def test_text_init_needs_a_text(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_bases["llama"], prompt_tuning={"init": "text"})

    with pytest.raises(ConfigError, match="task 'tone' from text: no init_text"):
        run_training(config, tmp_path / "run")


def test_validation_runs_without_dropout(
    tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    def record(base: Any, rows_of: Any, *rest: Any, **options: Any) -> dict[int, float]:
        modes.append([cell.cell_contents for cell in rows_of.__closure__ or ()])
        return {0: 1.0}

    monkeypatch.setattr("pl_compile.training.loop.validation_losses", record)
    run_training(make_config(tmp_path, tiny_bases["llama"]), tmp_path / "run")

    methods = [cell for cells in modes for cell in cells if hasattr(cell, "rows")]
    assert len(methods) == 2  # after steps 3 and 6
    assert not any(method.training for method in methods)


def test_a_task_without_examples_is_refused(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_bases["llama"])
    rows = [row for row in tiny_examples(48) if row["taskname"] == "tone"]
    write_jsonl(config.data.train[0], rows)

    with pytest.raises(TrainingError, match="task 'ask': none that can be used for training"):
        run_training(config, tmp_path / "run")


def test_a_gradient_that_is_no_number_stops_before_a_checkpoint(
    tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pl_compile.training.base_model.FrozenBase.loss",
        lambda self, batch, rows: (rows * 0).sqrt().sum(),
    )

    with pytest.raises(TrainingError, match="training step 1: a gradient norm of"):
        run_training(make_config(tmp_path, tiny_bases["llama"]), tmp_path / "run")

    assert not (tmp_path / "run/checkpoints").exists()


def test_a_base_with_missing_tensors_is_refused(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    base = tmp_path / "base"
    shutil.copytree(tiny_bases["llama"], base)
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(BaseModelError, match=r"1 missing tensors: model\.layers\.1\.mlp\.up_proj"):
        run_training(make_config(tmp_path, base), tmp_path / "run")


def test_a_torn_last_record_does_not_keep_a_run_from_resuming(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    config = make_config(tmp_path, tiny_bases["llama"])
    run_training(config, tmp_path / "run")
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train_lo')

    run_training(config, tmp_path / "run", resume=True)

    assert [record["step"] for record in records(tmp_path / "run")][-1] == 6


def test_the_resolved_config_trains_again_from_another_folder(
    tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny_train_config(tmp_path, Path("base"))
    plain["data"] = {"train": ["train.jsonl"], "validation": ["validation.jsonl"]}
    (tmp_path / "base").symlink_to(tiny_bases["llama"])
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(plain))
    monkeypatch.chdir(tmp_path)
    first = run_training(read_train_config(Path("train.yaml")), Path("run"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    second = run_training(read_train_config(Path("../run/config.yaml")), Path("again"))

    assert tensor_bytes(second.table) == tensor_bytes(tmp_path / first.table)


def test_names_that_p_tuning_cannot_tell_apart_are_refused(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    tasks = [{**TASKS[0], "taskname": f"the_very_same_start_{end}"} for end in "ab"]
    config = make_config(
        tmp_path, tiny_bases["llama"], tasks=tasks, virtual_prompt_style="p-tuning"
    )
    rows = [{**r, "taskname": tasks[0]["taskname"]} for r in tiny_examples(48)[::2]]
    rows += [{**r, "taskname": tasks[1]["taskname"]} for r in tiny_examples(48)[::2]]
    write_jsonl(config.data.train[0], rows)
    write_jsonl(config.data.validation[0], rows[:2])

    with pytest.raises(ConfigError, match="have names with the same first 3 tokens"):
        run_training(config, tmp_path / "run")
