"""Whole runs on tiny bases: what they leave, that they learn, what they refuse."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pl_compile.artifact.prompt_table import read_prompt_table
from pl_compile.checkpoints.safetensors import SafetensorsCheckpoint
from pl_compile.cli.main import main
from pl_compile.driver import train
from pl_compile.driver.train import train_run
from pl_compile.errors import (
    ArtifactError,
    BaseModelError,
    ConfigError,
    FingerprintError,
    TrainingError,
)
from pl_compile.families.registry import FAMILIES
from pl_compile.importers.run_checkpoint import read_checkpoint_table
from pl_compile.testing import (
    PREFIX_TASK,
    TASKS,
    assert_close,
    tiny_examples,
    tiny_run,
    tiny_train_config,
    tone_examples,
    tone_tasks,
    write_jsonl,
)
from pl_compile.text.render import Rendered
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.data.dataset import TrainingSequence
from pl_compile.training.data.packing import pack
from pl_compile.training.read_config import read_train_config
from pl_compile.training.run import run_training
from pl_compile.training.soft_prompt import SoftPrompt

Records = Callable[[Path], list[dict[str, Any]]]
Sums = Callable[[Path | None], dict[str, str]]


# What a run leaves


@pytest.mark.usefixtures("real_curves")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_leaves_table_records_curves_and_checkpoints(
    tiny_bases: dict[str, Path], tmp_path: Path, family: str
) -> None:
    result = run_training(tiny_run(tmp_path / "data", tiny_bases[family]), tmp_path / "run")

    assert result.table == tmp_path / "run/prompts.safetensors"
    assert set(read_prompt_table(result.table).entries) == {"tone", "ask"}
    assert (result.steps, result.skipped, result.ended) == (6, 0, "")
    assert result.trained == (3 + 5) * 24
    assert result.base is None
    names = {p.relative_to(tmp_path / "run").as_posix() for p in (tmp_path / "run").rglob("*.*")}
    assert names == {
        "prompts.safetensors",
        "config.yaml",
        "metrics.jsonl",
        "history.jsonl",
        "curves.png",
        "checkpoints/last.safetensors",
        "checkpoints/best.safetensors",
    }
    assert (tmp_path / "run/curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_record_tells_of_each_step_and_each_validation(
    tiny_bases: dict[str, Path], tmp_path: Path, records: Records
) -> None:
    config = tiny_run(tmp_path / "data", tiny_bases["llama"], trainer={"log_every_n_steps": 2})

    run_training(config, tmp_path / "run")

    found = records(tmp_path / "run")
    assert [(record["step"], *sorted(record)[:2]) for record in found] == [
        (0, "baseline", "baseline_by_task"),
        (2, "gradient_norm", "lr"),
        (3, "by_task", "step"),
        (4, "gradient_norm", "lr"),
        (6, "gradient_norm", "lr"),
        (6, "by_task", "step"),
    ]
    steps = [record for record in found if "train_loss" in record]
    assert all(
        set(record) == {"step", "train_loss", "lr", "gradient_norm", "tokens"} for record in steps
    )
    for record in found:
        if "val_loss" in record:
            assert record["val_loss"] == pytest.approx(np.mean(list(record["by_task"].values())))


def test_training_lowers_the_loss_below_that_of_the_base_alone(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        tasks=tone_tasks("tone"),
        rows=tone_examples("tone", count=24),
        trainer={"max_steps": 60, "val_check_interval": 60, "micro_batch_size": 8},
    )

    (task,) = run_training(config, tmp_path / "run").tasks

    assert task.loss_with_prompt is not None
    assert task.loss_without_prompt is not None
    assert task.loss_with_prompt < 0.8 * task.loss_without_prompt


def test_the_base_is_the_same_afterwards(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    base = tiny_bases["gpt2"]
    before = {path.name: path.read_bytes() for path in base.iterdir()}

    run_training(tiny_run(tmp_path / "data", base), tmp_path / "run")

    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_the_table_holds_the_prompts_of_the_best_validation(
    tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([5.0, 3.0, 4.0, 3.5])
    monkeypatch.setattr(
        "pl_compile.training.loop.validation_losses", lambda *_, **__: {0: next(told), 1: 1.0}
    )
    config = tiny_run(
        tmp_path / "data", tiny_bases["llama"], trainer={"max_steps": 8, "val_check_interval": 2}
    )

    result = run_training(config, tmp_path / "run")

    assert result.best_step == 4
    assert [task.loss_with_prompt for task in result.tasks] == [3.0, 1.0]
    folder = tmp_path / "run/checkpoints"
    of_best, of_last = (
        read_checkpoint_table(folder / f"{name}.safetensors").entries for name in ("best", "last")
    )
    table = read_prompt_table(tmp_path / "run/prompts.safetensors").entries
    for name in ("tone", "ask"):
        assert np.array_equal(table[name].rows, of_best[name].rows)
        assert not np.array_equal(table[name].rows, of_last[name].rows)


def test_a_table_is_written_at_every_improvement(
    tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: Records
) -> None:
    from pl_compile.training import run

    written = []
    monkeypatch.setattr(
        run, "write_prompt_table", lambda table, path: written.append((path, table.entries))
    )
    config = tiny_run(
        tmp_path / "data", tiny_bases["llama"], trainer={"max_steps": 8, "val_check_interval": 1}
    )

    run_training(config, tmp_path / "run")

    losses = [record["val_loss"] for record in records(tmp_path / "run") if "val_loss" in record]
    improvements = sum(
        loss < min(losses[:index], default=np.inf) for index, loss in enumerate(losses)
    )
    assert len(written) == improvements > 2
    assert {path for path, _ in written} == {tmp_path / "run/prompts.safetensors"}


def test_a_table_gives_the_loss_that_was_validated(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    from pl_compile.training.data.load import load_sequences, sequence_rules

    config = tiny_run(tmp_path / "data", tiny_bases["gpt2"])
    result = run_training(config, tmp_path / "run")
    base = FrozenBase(tiny_bases["gpt2"])
    from pl_compile.progress import SILENT
    from pl_compile.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(tiny_bases["gpt2"])
    rules = sequence_rules(config, base.config, tokenizer)
    rows = load_sequences(config, config.data.validation, base.config, tokenizer, rules, SILENT)
    entries = read_prompt_table(tmp_path / "run/prompts.safetensors").entries
    for index, task in enumerate(result.tasks):
        prompt = SoftPrompt(rows=torch.from_numpy(entries[task.taskname].rows))
        batch = pack([row for row in rows if row.task == index])
        with torch.no_grad():
            loss = base.token_losses(batch, {index: prompt}).mean()

        assert float(loss) == pytest.approx(task.loss_with_prompt, rel=1e-5)


def test_the_checkpoint_of_a_step_becomes_a_table(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prompt_sums: Sums,
) -> None:
    config = tiny_run(tmp_path / "data", tiny_bases["llama"])
    whole = run_training(config, tmp_path / "run")
    checkpoint = tmp_path / "run/checkpoints/best.safetensors"
    arguments = ["plc", "import", "checkpoint", str(checkpoint), "--output", "table.safetensors"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", arguments)

    main()

    assert capsys.readouterr().out == "wrote table.safetensors: tone, ask\n"
    assert prompt_sums(tmp_path / "table.safetensors") == prompt_sums(whole.table)
    found, expected = (
        read_prompt_table(path)
        for path in (tmp_path / "table.safetensors", tmp_path / "run/prompts.safetensors")
    )
    assert found.base == expected.base
    for name, entry in expected.entries.items():
        assert found.entries[name].record() == entry.record()


def test_the_resolved_config_trains_again_from_another_folder(
    tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt_sums: Sums
) -> None:
    plain = tiny_train_config(tmp_path, Path("base"))
    plain["data"] = {"train": ["train.jsonl"], "validation": ["validation.jsonl"], "cache": False}
    (tmp_path / "base").symlink_to(tiny_bases["llama"])
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(plain))
    monkeypatch.chdir(tmp_path)
    first = run_training(read_train_config(Path("train.yaml")), Path("run"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    second = run_training(read_train_config(Path("../run/config.yaml")), Path("again"))

    assert first.table is not None
    assert prompt_sums(second.table) == prompt_sums(tmp_path / first.table)


# Data


def test_token_ids_are_kept_for_the_next_run(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prompt_sums: Sums,
) -> None:
    monkeypatch.setenv("PLC_CACHE", str(tmp_path / "cache"))
    config = tiny_run(tmp_path / "data", tiny_bases["llama"], data={"cache": True})
    first = run_training(config, tmp_path / "first")
    assert len(list((tmp_path / "cache/datasets").iterdir())) == 2

    with monkeypatch.context() as patch:
        patch.setattr("pl_compile.training.data.load.render_examples", None)
        second = run_training(config, tmp_path / "second")
    without = run_training(
        tiny_run(tmp_path / "data", tiny_bases["llama"]), tmp_path / "without a cache"
    )

    assert prompt_sums(first.table) == prompt_sums(second.table) == prompt_sums(without.table)


def test_without_shuffling_the_order_of_the_files_is_the_order_of_the_run(
    tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def packed(rows: list[TrainingSequence], **options: Any) -> Any:
        seen.append([row.where for row in rows])
        return pack(rows, **options)

    monkeypatch.setattr("pl_compile.training.loop.pack", packed)
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        data={"validation": [], "shuffle": False},
        trainer={"max_steps": 4},
    )

    run_training(config, tmp_path / "run")

    lines = [int(where.rpartition(":")[2]) for rows in seen for where in rows]
    assert lines == [*range(1, 25), *range(1, 9)]


def test_what_cannot_be_used_is_told_with_its_places(
    tiny_bases: dict[str, Path], tmp_path: Path, told: Any
) -> None:
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        tasks=tone_tasks("tone", choices=[]),
        rows=tone_examples("tone"),
        data={"add_eos": False},
        trainer={"max_steps": 1},
    )
    rows = [*tone_examples("tone"), {"taskname": "tone", "sentence": "cold", "label": ""}]
    rows.append({"taskname": "tone", "sentence": "cold " * 99, "label": "neutral"})
    write_jsonl(config.data.train[0], rows)

    (task,) = run_training(config, tmp_path / "run", progress=told).tasks

    assert task.train_examples == 24
    assert [line for line in told.lines if line.startswith("left out")] == [
        f"left out 1 of 26: no token to learn from ({config.data.train[0]}:25)",
        "left out 1 of 26: longer than 96 tokens, and task 'tone' has no truncate_field: name one, "
        "or raise data.max_seq_length where the base has more positions "
        f"({config.data.train[0]}:26)",
    ]


def test_a_length_that_the_base_does_not_have_is_told(
    tiny_bases: dict[str, Path], tmp_path: Path, told: Any
) -> None:
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        data={"max_seq_length": 97},
        trainer={"max_steps": 1},
    )

    run_training(config, tmp_path / "run", progress=told)

    assert "data.max_seq_length 97 is more than the base has: 96 is taken" in told.lines


@pytest.mark.parametrize(("length", "virtual"), [(None, 96), (None, 500), (20, 20)])
def test_virtual_tokens_that_leave_no_room_are_refused_before_the_examples_are_read(
    tiny_bases: dict[str, Path], tmp_path: Path, length: int | None, virtual: int
) -> None:
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        tasks=tone_tasks("tone", total_virtual_tokens=virtual),
        data={"max_seq_length": length},
    )
    config.data.train[0].write_text("no example")

    with pytest.raises(ConfigError) as error:
        run_training(config, tmp_path / "run")

    whose = "the positions of the base" if length is None else "data.max_seq_length"
    assert str(error.value) == (
        f"checking the lengths of the tasks: task 'tone' has {virtual} virtual tokens; "
        f"expected fewer than {length or 96}, {whose}: a text must fit too."
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_prompts_that_stay_float32(
    tiny_bases: dict[str, Path], tmp_path: Path, precision: str
) -> None:
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        trainer={"max_steps": 2, "global_batch_size": 4, "precision": precision},
    )

    run_training(config, tmp_path / "run")

    rows = read_prompt_table(tmp_path / "run/prompts.safetensors").entry("tone").rows
    assert rows.dtype == np.float32
    assert len(np.unique(rows)) == rows.size


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_with_a_bos_inside_is_trained_and_stands_before_everything(
    tiny_bases: dict[str, Path], tmp_path: Path, family: str
) -> None:
    rows = [
        {"taskname": "order", "request": row["sentence"], "order": row["label"]}
        for row in tone_examples("order", count=8)
    ]
    config = tiny_run(
        tmp_path / "data",
        tiny_bases[family],
        tasks=[{**PREFIX_TASK, "init_text": "what is it?"}],
        virtual_prompt_style="prefix-tuning",
        data={"add_bos": True},
        rows=rows,
        trainer={"max_steps": 4, "val_check_interval": 2},
    )

    (task,) = run_training(config, tmp_path / "run").tasks

    entry = read_prompt_table(tmp_path / "run/prompts.safetensors").entry("order")
    assert entry.prefix_kv is not None
    assert (entry.rules.bos_id, entry.rules.eos_id) == (None, 1)
    # The baseline is the base after its BOS.
    base = FrozenBase(tiny_bases[family])
    from pl_compile.text.render import Renderer, SequenceRules
    from pl_compile.text.template import parse_template
    from pl_compile.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(tiny_bases[family])
    renderer = Renderer(parse_template(config.tasks[0]), tokenizer, SequenceRules(0, 1))
    losses = []
    for row in rows[:8]:
        bare = renderer.example({key: row[key] for key in ("request", "order")}).without_virtual()
        assert bare.token_ids[0] == 0
        sequence = TrainingSequence(0, bare, np.arange(len(bare)) >= bare.answer_start)
        with torch.no_grad():
            losses.append(base.token_losses(pack([sequence]), {0: SoftPrompt()}))
    assert float(torch.cat(losses).mean()) == pytest.approx(task.loss_without_prompt, rel=1e-5)


def test_a_micro_batch_without_a_target_changes_nothing_and_stops_nothing(
    tiny_bases: dict[str, Path], tmp_path: Path, records: Records
) -> None:
    # Right after a prefix, and of one token: nothing predicts the answer of every other row.
    task = {
        "taskname": "next",
        "prompt_template": "<|VIRTUAL_PROMPT_0|>{answer}",
        "total_virtual_tokens": 2,
    }
    rows = [{"taskname": "next", "answer": text} for text in ("#", "#&%") * 4]
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        tasks=[task],
        rows=rows,
        virtual_prompt_style="prefix-tuning",
        data={"add_eos": False, "shuffle": False},
        trainer={"max_steps": 4, "global_batch_size": 2, "micro_batch_size": 1},
    )

    result = run_training(config, tmp_path / "run")

    assert result.skipped == 0
    assert all(record["train_loss"] > 0 for record in records(tmp_path / "run") if "lr" in record)


# The base alone


def test_no_prompts_measure_the_base_and_leave_no_table(
    tiny_bases: dict[str, Path], tmp_path: Path, records: Records
) -> None:
    with_prompts = run_training(
        tiny_run(tmp_path / "data", tiny_bases["llama"], trainer={"max_steps": 1}),
        tmp_path / "prompts",
    )
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        virtual_prompt_style="no-prompts",
        validation={"generate": True, "limit": 2, "max_tokens": 3},
    )

    result = train_run(config, tmp_path / "run")

    assert (result.table, result.trained, result.steps) == (None, 0, 0)
    assert [task.loss_without_prompt for task in result.tasks] == [
        task.loss_without_prompt for task in with_prompts.tasks
    ]
    assert [task.loss_with_prompt for task in result.tasks] == [None, None]
    assert {task.taskname: set(task.metrics) for task in result.tasks} == {
        "tone": {"accuracy", "total"},
        "ask": {"exact_match", "f1", "total"},
    }
    baseline, scores = records(tmp_path / "run")
    assert set(baseline) == {"step", "baseline_by_task", "baseline"}
    assert set(scores) == {"step", "val_metrics"}
    assert not (tmp_path / "run/prompts.safetensors").exists()
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_prompt_that_does_not_beat_the_base_alone_is_told_of(
    tiny_bases: dict[str, Path], tmp_path: Path, told: Any
) -> None:
    config = tiny_run(
        tmp_path / "data", tiny_bases["llama"], trainer={"max_steps": 1}, optim={"lr": 1e-9}
    )

    result = run_training(config, tmp_path / "run", progress=told)

    warned = [line for line in told.lines if line.startswith("warning: ")]
    worse = [
        task
        for task in result.tasks
        if task.loss_with_prompt is not None
        and task.loss_without_prompt is not None
        and task.loss_with_prompt >= task.loss_without_prompt
    ]
    assert len(warned) == len(worse) >= 1
    for line, task in zip(warned, worse, strict=True):
        assert line == (
            f"warning: the prompt of '{task.taskname}' does not beat the base without it: "
            f"loss {task.loss_with_prompt:.3f} against {task.loss_without_prompt:.3f}. "
            "Train longer, or change optim.lr or the initial text."
        )


# Validation


def test_answers_are_written_and_scored_at_each_validation(
    tiny_bases: dict[str, Path], tmp_path: Path, records: Records, prompt_sums: Sums
) -> None:
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        validation={"generate": True, "limit": 2, "max_tokens": 3},
    )
    silent = tiny_run(tmp_path / "data", tiny_bases["llama"])

    result = train_run(config, tmp_path / "run")
    without = train_run(silent, tmp_path / "silent")

    scores = {r["step"]: r["val_metrics"] for r in records(tmp_path / "run") if "val_metrics" in r}
    assert list(scores) == [3, 6]
    for of_tasks in scores.values():
        assert set(of_tasks["tone"]) == {"accuracy", "total"}
        assert of_tasks["tone"]["total"] == of_tasks["ask"]["total"] == 2
    assert {task.taskname: task.metrics for task in result.tasks} == scores[result.best_step]
    # Writing answers on the way changes nothing of the training.
    assert prompt_sums(result.table) == prompt_sums(without.table)


def test_a_run_makes_its_tokenizer_and_opens_its_base_and_data_once_whatever_it_scores(
    tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: Counter[str] = Counter()

    def count(where: Any, name: str, what: str) -> None:
        function = getattr(where, name)

        def counting(*given: Any, **options: Any) -> Any:
            done[what] += 1
            return function(*given, **options)

        monkeypatch.setattr(where, name, counting)

    count(Tokenizer, "__init__", "tokenizer")
    count(SafetensorsCheckpoint, "__init__", "base")
    count(train, "read_to_score", "examples to score")
    count(train, "score_examples", "scores")
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        validation={"generate": True, "limit": 2, "max_tokens": 3},
    )

    train_run(config, tmp_path / "run")

    assert done["scores"] > 1
    assert done == {**dict.fromkeys(done, 1), "scores": done["scores"]}


def test_validation_sees_the_prompts_without_dropout(
    tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    def record(base: Any, method: Any, *rest: Any, **options: Any) -> dict[int, float]:
        modes.append(method.training)
        return {0: 1.0}

    monkeypatch.setattr("pl_compile.training.loop.validation_losses", record)

    run_training(tiny_run(tmp_path / "data", tiny_bases["llama"]), tmp_path / "run")

    assert modes == [False, False]


def test_without_validation_data_the_last_prompts_are_the_best(
    tiny_bases: dict[str, Path], tmp_path: Path, records: Records
) -> None:
    config = tiny_run(tmp_path / "data", tiny_bases["llama"], data={"validation": []})

    result = run_training(config, tmp_path / "run")

    assert result.best_step == 6
    table = read_prompt_table(tmp_path / "run/prompts.safetensors")
    last = read_checkpoint_table(tmp_path / "run/checkpoints/last.safetensors")
    for name, entry in last.entries.items():
        assert np.array_equal(table.entry(name).rows, entry.rows)
    assert [task.loss_with_prompt for task in result.tasks] == [None, None]
    assert not any("val_loss" in record for record in records(tmp_path / "run"))


def test_activation_checkpointing_ends_at_the_same_prompts(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    usual = tiny_run(tmp_path / "data", tiny_bases["llama"])
    saving = tiny_run(
        tmp_path / "data", tiny_bases["llama"], trainer={"activation_checkpointing": True}
    )

    run_training(usual, tmp_path / "usual")
    run_training(saving, tmp_path / "saving")

    one, other = (
        read_prompt_table(tmp_path / name / "prompts.safetensors").entries
        for name in ("usual", "saving")
    )
    for name in one:
        assert_close(other[name].rows, one[name].rows, relative=1e-4)


# What cannot start


def test_a_table_of_another_base_is_refused_with_both_fingerprints(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    first = run_training(tiny_run(tmp_path / "data", tiny_bases["llama"]), tmp_path / "first")
    assert first.table is not None
    fingerprint = read_prompt_table(first.table).base.fingerprint
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["gpt2"],
        tasks=tone_tasks("mood"),
        existing_table=str(first.table),
    )

    with pytest.raises(FingerprintError) as caught:
        run_training(config, tmp_path / "second")

    assert fingerprint in str(caught.value)
    assert len({word for word in str(caught.value).split() if len(word.strip(",;")) == 64}) == 2
    assert not (tmp_path / "second").exists()


def test_a_task_that_is_in_the_existing_table_is_refused_before_training(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    first = run_training(tiny_run(tmp_path / "data", tiny_bases["llama"]), tmp_path / "first")
    config = tiny_run(tmp_path / "data", tiny_bases["llama"], existing_table=str(first.table))

    with pytest.raises(ArtifactError, match="task 'ask' is in it already"):
        run_training(config, tmp_path / "again")


def test_a_run_is_not_overwritten(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    config = tiny_run(tmp_path / "data", tiny_bases["llama"])
    run_training(config, tmp_path / "run")

    with pytest.raises(TrainingError) as caught:
        run_training(config, tmp_path / "run")

    assert str(caught.value) == (
        f"starting a run in {tmp_path / 'run'}: a run is there already. "
        "Add --resume to go on with it, or choose another --output."
    )


def test_a_table_in_the_folder_is_not_overwritten(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/prompts.safetensors").write_bytes(b"somebody's")

    with pytest.raises(TrainingError, match="a run is there already"):
        run_training(tiny_run(tmp_path / "data", tiny_bases["llama"]), tmp_path / "run")


@pytest.mark.parametrize(
    "name", ["config.yaml", "metrics.jsonl", "history.jsonl", "curves.png", "checkpoints/a", "base"]
)
@pytest.mark.parametrize("linked", [False, True])
def test_a_file_of_no_run_is_not_written_over(
    tiny_bases: dict[str, Path], tmp_path: Path, name: str, linked: bool
) -> None:
    mine = tmp_path / "run" / name
    mine.parent.mkdir(parents=True)
    (tmp_path / "mine").write_text('"an event"\n')
    mine.symlink_to(tmp_path / "mine") if linked else shutil.copy(tmp_path / "mine", mine)

    with pytest.raises(
        TrainingError, match=f"{name.partition('/')[0]}, not of a run, which the run"
    ):
        run_training(tiny_run(tmp_path / "data", tiny_bases["llama"]), tmp_path / "run")

    assert mine.read_text() == '"an event"\n'
    assert sum(1 for path in (tmp_path / "run").rglob("*") if path.is_file()) == 1


def test_empty_folders_stop_no_run(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    for name in ("base", "checkpoints"):
        (tmp_path / "run" / name).mkdir(parents=True)

    result = run_training(tiny_run(tmp_path / "data", tiny_bases["llama"]), tmp_path / "run")

    assert result.steps == 6


def test_a_folder_that_cannot_be_written_is_told_first(
    tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr(  # root may write anywhere
        os, "access", lambda path, mode: path != tmp_path / "read-only" and access(path, mode)
    )
    (tmp_path / "read-only").mkdir()
    config = tiny_run(tmp_path / "data", tiny_bases["llama"])

    for run, found in (
        (tmp_path / "read-only/run", f"{tmp_path}/read-only may not be written to"),
        (tmp_path / "read-only", f"{tmp_path}/read-only may not be written to"),
        (Path("/proc/run"), "No such file or directory"),
    ):
        with pytest.raises(TrainingError) as caught:
            run_training(config, run)

        assert str(caught.value) == (
            f"starting a run in {run}: {found}. "
            "Choose another --output, or let it be written to: chmod u+w."
        )


@pytest.mark.parametrize(("name", "what"), [("config.json", "base"), ("manifest.json", "bundle")])
def test_no_run_starts_in_the_folder_of_a_base_or_a_bundle(
    tiny_bases: dict[str, Path], tmp_path: Path, name: str, what: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("{}")

    with pytest.raises(TrainingError, match=f"{name}, as a {what} has it"):
        run_training(tiny_run(tmp_path / "data", tiny_bases["llama"]), tmp_path / "run")


def test_fewer_examples_than_a_batch_are_refused(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    config = tiny_run(tmp_path / "data", tiny_bases["llama"], trainer={"global_batch_size": 64})

    with pytest.raises(TrainingError) as caught:
        run_training(config, tmp_path / "run")

    assert str(caught.value) == (
        "planning the batches: 24 usable training examples; "
        "expected at least one global batch of 64. "
        "Lower trainer.global_batch_size (and micro_batch_size), or add examples."
    )


def test_a_task_without_examples_is_refused(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    config = tiny_run(tmp_path / "data", tiny_bases["llama"], rows=tone_examples("tone"))

    with pytest.raises(TrainingError, match="task 'ask': none that can be used for training"):
        run_training(config, tmp_path / "run")


def test_a_base_with_missing_tensors_is_refused(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    base = tmp_path / "base"
    shutil.copytree(tiny_bases["llama"], base)
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(
        BaseModelError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' is missing"
    ):
        run_training(tiny_run(tmp_path / "data", base), tmp_path / "run")


def test_a_rate_that_ends_above_where_it_starts_is_refused(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    config = tiny_run(
        tmp_path / "data", tiny_bases["llama"], optim={"lr": 0.1, "sched": {"min_lr": 0.2}}
    )

    with pytest.raises(ConfigError, match=r"min_lr 0\.2; expected at most lr 0\.1"):
        run_training(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"existing_tasks": ["tone"]},
            "checking 'existing_tasks': ['tone'] without a table to take them from; "
            "expected existing_table.",
        ),
        (
            {"data": {"validation": []}, "early_stopping": {}},
            "checking 'early_stopping': no data.validation; "
            "expected held-out examples to validate on.",
        ),
        (
            {"data": {"validation": []}, "validation": {"generate": True}},
            "checking 'validation.generate': no data.validation; "
            "expected held-out examples to validate on.",
        ),
        (
            {"lm_finetune": True, "existing_table": "prompts.safetensors"},
            "checking 'lm_finetune': existing_table; "
            "expected none: its prompts do not fit a base whose weights change.",
        ),
        (
            {"lm_finetune": True, "virtual_prompt_style": "no-prompts"},
            "checking 'lm_finetune': virtual_prompt_style no-prompts; "
            "expected a method that trains prompts with the base.",
        ),
        (
            {"lm_finetune": True, "trainer": {"precision": "fp16"}},
            "checking 'lm_finetune': trainer.precision fp16; "
            "expected fp32: what is trained loses small steps in fewer digits.",
        ),
        (
            {"parallel": {"shard_base": True, "tensor_parallel_size": 2}},
            "checking 'parallel': shard_base with a tensor_parallel_size above 1, "
            "expected one of the two.",
        ),
        (
            {"trainer": {"max_time": "1h"}},
            "checking 'trainer': max_time '1h', expected '[[DD:]HH:]MM:SS'.",
        ),
        (
            {"checkpoint": {"every_n_steps": 0, "save_top_k": 0}},
            "checking 'checkpoint': 2 problems:\n  - every_n_steps 0, expected at least 1\n"
            "  - save_top_k 0, expected at least 1.",
        ),
        (
            {"early_stopping": {"patience": 0, "min_delta": -1.0}},
            "checking 'early_stopping': 2 problems:\n  - patience 0, expected at least 1\n"
            "  - min_delta -1.0, expected 0 or more.",
        ),
        (
            {"validation": {"limit": 0}},
            "checking 'validation': limit 0, expected at least 1.",
        ),
        (
            {"seed": -1},
            "checking 'seed': -1, expected 0 to 2**32 - 1.",
        ),
    ],
)
def test_what_cannot_go_together_is_refused_when_the_config_is_read(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_run(tmp_path, Path("base"), **changes)

    assert message in str(caught.value)


def test_a_first_token_that_is_a_target_has_a_predictor_only_after_a_prompt() -> None:
    ids = np.asarray([0, 7, 8], np.int64)
    whole = TrainingSequence(
        0, Rendered(ids, np.asarray([0, -1, -1]), 1), np.asarray([0, 1, 1]) > 0
    )

    assert pack([whole]).targets.tolist() == [7, 8]
    assert pack([whole], learned_prefix=True).targets.tolist() == [8]
    assert pack([whole.without_virtual()]).targets.tolist() == [8]


def test_a_run_records_how_it_was_started(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    config = tiny_run(tmp_path / "data", tiny_bases["llama"], trainer={"max_steps": 1})

    run_training(config, tmp_path / "run")
    run_training(config, tmp_path / "run", resume=True)

    lines = (tmp_path / "run/history.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    assert [(event["event"], event["step"]) for event in events] == [("started", 0), ("resumed", 1)]


def test_the_examples_of_the_tasks_are_counted(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        rows=[*tiny_examples(24), *tone_examples("tone", count=6)],
        trainer={"max_steps": 1},
    )

    result = run_training(config, tmp_path / "run")

    assert [(task.taskname, task.virtual_tokens, task.train_examples) for task in result.tasks] == [
        (TASKS[0]["taskname"], 3, 18),
        (TASKS[1]["taskname"], 5, 12),
    ]


@pytest.mark.parametrize("add_eos", [True, False])
def test_a_table_records_all_end_tokens_of_its_base_where_one_is_learned(
    tiny_bases: dict[str, Path], tmp_path: Path, add_eos: bool
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_bases["llama"], base)
    path = base / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [11, 1, 5]}), encoding="utf-8")
    config = tiny_run(
        tmp_path / "data",
        base,
        data={"add_eos": add_eos},
        trainer={"max_steps": 1, "val_check_interval": 1},
    )

    run_training(config, tmp_path / "run")

    for entry in read_prompt_table(tmp_path / "run/prompts.safetensors").entries.values():
        assert (entry.rules.eos_id, entry.rules.end_ids) == (
            (1, (11, 5)) if add_eos else (None, ())
        )
