"""`lm_finetune`: the base is trained too, and the run leaves a new one with its own prompts."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pl_compile.artifact.prompt_table import TaskEntry, read_prompt_table
from pl_compile.checkpoints.checkpoint import open_checkpoint
from pl_compile.config.train import TrainConfig
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import ArtifactError, FingerprintError
from pl_compile.families.read import read_decoder_config
from pl_compile.families.registry import FAMILIES
from pl_compile.importers.run_checkpoint import read_checkpoint_table
from pl_compile.progress import SILENT
from pl_compile.testing import (
    tiny_run,
    tone_examples,
    tone_tasks,
    write_jsonl,
    write_tiny_base,
)
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.data.load import load_sequences, sequence_rules
from pl_compile.training.data.packing import pack
from pl_compile.training.run import run_training
from pl_compile.training.soft_prompt import SoftPrompt
from pl_compile.weights.fingerprint import fingerprint_base

Sums = Callable[[Path | None], dict[str, str]]

NAMES = ("tone", "mood")


def joint_run(folder: Path, base: Path, **changes: Any) -> TrainConfig:
    return tiny_run(
        folder,
        base,
        **{
            "tasks": tone_tasks(*NAMES),
            "rows": tone_examples(*NAMES),
            "lm_finetune": True,
            "optim": {"lr": 0.02, "lm_lr": 0.01},
            **changes,
        },
    )


def fingerprint(base: Path) -> str:
    return fingerprint_base(open_checkpoint(base), read_decoder_config(base))


def losses_of(base: Path, entries: Mapping[str, TaskEntry], config: TrainConfig) -> list[float]:
    """The validation loss of each task, from what is in the files."""
    frozen = FrozenBase(base)
    tokenizer = Tokenizer.from_folder(base)
    rules = sequence_rules(config, frozen.config, tokenizer)
    rows = load_sequences(config, config.data.validation, frozen.config, tokenizer, rules, SILENT)
    losses = []
    for index, task in enumerate(config.tasks):
        entry = entries[task.taskname]
        prefix = None if entry.prefix_kv is None else torch.from_numpy(entry.prefix_kv)
        prompt = SoftPrompt(None if prefix is not None else torch.from_numpy(entry.rows), prefix)
        batch = pack([row for row in rows if row.task == index], learned_prefix=prefix is not None)
        with torch.no_grad():
            losses.append(float(frozen.token_losses(batch, {index: prompt}).mean()))
    return losses


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("style", ["prompt-tuning", "p-tuning", "prefix-tuning"])
def test_a_run_leaves_a_new_base_and_prompts_that_fit_it(
    tiny_bases: dict[str, Path], tmp_path: Path, family: str, style: str
) -> None:
    old = tiny_bases[family]
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    config = joint_run(tmp_path / "data", old, virtual_prompt_style=style)

    result = run_training(config, tmp_path / "run")

    new = tmp_path / "run/base"
    assert result.base == new
    assert result.frozen == 0
    assert result.trained > FrozenBase(old).parameters
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    assert {path.name for path in new.iterdir()} >= set(before)
    assert (new / "tokenizer.json").read_bytes() == before["tokenizer.json"]
    assert read_decoder_config(new) == read_decoder_config(old)
    table = read_prompt_table(tmp_path / "run/prompts.safetensors")
    assert table.base.name == str(new.absolute())
    assert table.base.fingerprint == fingerprint(new) != fingerprint(old)
    with pytest.raises(FingerprintError):
        table.check_base(replace(table.base, fingerprint=fingerprint(old)), "the old one")
    # Both are those of the best step, as they were validated.
    expected = [task.loss_with_prompt for task in result.tasks]
    assert losses_of(new, table.entries, config) == [pytest.approx(e, rel=1e-5) for e in expected]


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_falls_below_that_of_prompts_on_a_frozen_base(tmp_path: Path, tied: bool) -> None:
    base = write_tiny_base(tmp_path / "base", "llama", tied=tied)
    steps = {"max_steps": 20, "val_check_interval": 20}
    frozen = joint_run(tmp_path / "data", base, lm_finetune=False, trainer=steps)
    joint = joint_run(tmp_path / "data", base, trainer=steps)

    prompts_alone = run_training(frozen, tmp_path / "frozen").tasks
    both = run_training(joint, tmp_path / "joint").tasks

    for with_base, alone in zip(both, prompts_alone, strict=True):
        assert with_base.loss_without_prompt == pytest.approx(alone.loss_without_prompt, rel=1e-5)
        assert with_base.loss_with_prompt is not None
        assert alone.loss_with_prompt is not None
        assert with_base.loss_with_prompt < 0.9 * alone.loss_with_prompt


def test_the_new_base_serves_its_prompts_from_a_bundle(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    config = joint_run(tmp_path / "data", tiny_bases["llama"])
    result = run_training(config, tmp_path / "run")
    assert result.table is not None
    assert result.base is not None

    report = export_bundle(ExportRequest(result.table, result.base, tmp_path / "bundle"))

    assert report.parity is not None
    with pytest.raises(FingerprintError):
        export_bundle(ExportRequest(result.table, tiny_bases["llama"], tmp_path / "wrong"))


def test_the_bases_own_rate_is_a_part_of_the_schedule(
    tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[list[float]] = []
    step = torch.optim.AdamW.step

    def stepped(self: torch.optim.AdamW, *arguments: Any) -> Any:
        rates.append([group["lr"] for group in self.param_groups])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    config = joint_run(
        tmp_path / "data",
        tiny_bases["llama"],
        optim={"lr": 0.02, "lm_lr": 1e-4, "sched": {"warmup_steps": 0}},
    )

    run_training(config, tmp_path / "run")

    assert rates[0] == [0.02, pytest.approx(1e-4)]
    assert all(base == pytest.approx(prompt / 200) for prompt, base in rates)
    assert len({prompt for prompt, _ in rates}) == 6


def test_prompts_of_a_base_that_no_folder_holds_fit_no_base(
    tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 2.0])  # so that the last base is not the one that is kept
    monkeypatch.setattr(
        "pl_compile.training.loop.validation_losses", lambda *_, **__: {0: next(losses)}
    )
    run_training(joint_run(tmp_path / "data", tiny_bases["llama"]), tmp_path / "run")

    found = {
        name: read_checkpoint_table(tmp_path / f"run/checkpoints/{name}.safetensors").base
        for name in ("best", "last")
    }

    new = fingerprint(tmp_path / "run/base")
    assert found["best"].fingerprint == new
    assert found["last"].fingerprint not in (new, fingerprint(tiny_bases["llama"]))


def test_more_tasks_are_added_to_the_new_base_as_to_any_other(
    tiny_bases: dict[str, Path], tmp_path: Path, prompt_sums: Sums
) -> None:
    first = run_training(joint_run(tmp_path / "data", tiny_bases["gpt2"]), tmp_path / "run")
    rows = tone_examples("added")
    config = tiny_run(
        tmp_path / "more",
        tmp_path / "run/base",
        tasks=tone_tasks("added"),
        rows=rows,
        existing_table=str(first.table),
    )
    write_jsonl(config.data.validation[0], rows[:4])

    second = run_training(config, tmp_path / "second")

    before, after = prompt_sums(first.table), prompt_sums(second.table)
    assert {name: after[name] for name in before} == before
    assert set(after) == {*NAMES, "added"}


def test_a_file_of_somebody_else_in_the_new_base_is_told_before_the_run_goes_on(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    config = joint_run(tmp_path / "data", tiny_bases["llama"])
    run_training(config, tmp_path / "run")
    (tmp_path / "run/base/notes.txt").write_text("years of work")

    with pytest.raises(ArtifactError, match=r"other things in it: notes\.txt\. Move it elsewhere"):
        run_training(config, tmp_path / "run", resume=True)

    (tmp_path / "run/base/notes.txt").unlink()
    run_training(config, tmp_path / "run", resume=True)
