"""Losses and gradients that are not finite: a step is left out, many in a row end the run."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pl_compile.errors import TrainingError
from pl_compile.testing import tiny_run, tone_examples, tone_tasks
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.checkpoint import save_checkpoint
from pl_compile.training.data.dataset import TrainingSequence
from pl_compile.training.data.packing import pack
from pl_compile.training.run import run_training

Records = Callable[[Path], list[dict[str, Any]]]
Sums = Callable[[Path | None], dict[str, str]]

# The rate stays as it is, and the examples come in the order of the file: 8 a step, 4 at a time.
STEADY: dict[str, Any] = {
    "tasks": tone_tasks("tone"),
    "data": {"shuffle": False},
    "optim": {"lr": 0.05, "sched": {"warmup_steps": 0, "min_lr": 0.05}},
}
ROWS = tone_examples("tone")


class Killed(BaseException):
    """As if the process ended here."""


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Spoils the losses of training batches that hold one of some lines of the data."""
    current: list[int] = []
    token_losses = FrozenBase.token_losses

    def remember(rows: Sequence[TrainingSequence], **options: Any) -> Any:
        current[:] = [int(row.where.rpartition(":")[2]) for row in rows]
        return pack(rows, **options)

    def spoiler(lines: Sequence[int], how: Callable[[Tensor], Tensor]) -> None:
        def spoiled(self: FrozenBase, *arguments: Any) -> Tensor:
            losses = token_losses(self, *arguments)
            spoils = torch.is_grad_enabled() and not set(lines).isdisjoint(current)
            return how(losses) if spoils else losses

        monkeypatch.setattr(FrozenBase, "token_losses", spoiled)

    monkeypatch.setattr("pl_compile.training.loop.pack", remember)
    return spoiler


def no_number(losses: Tensor) -> Tensor:
    return losses * torch.nan


def no_gradient(losses: Tensor) -> Tensor:
    """The same losses; the root of nothing has an infinite slope."""
    return losses + (losses - losses.detach()).sqrt()


@pytest.mark.parametrize(
    ("how", "what", "lines"),
    [
        # Of the loss, the micro-batch is known; of a gradient, the step.
        (no_number, "a loss of nan", range(9, 13)),
        (no_gradient, "a gradient of nan", range(9, 17)),
    ],
)
def test_a_step_that_is_not_finite_is_left_out_counted_and_logged(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    records: Records,
    prompt_sums: Sums,
    spoil: Callable[..., None],
    how: Callable[[Tensor], Tensor],
    what: str,
    lines: range,
) -> None:
    config = tiny_run(tmp_path / "data", tiny_bases["llama"], rows=ROWS, **STEADY)
    # Steps 2 and 5 are those of lines 9 to 16; the others, and nothing else, are trained here.
    others = tiny_run(
        tmp_path / "others",
        tiny_bases["llama"],
        rows=[*ROWS[:8], *ROWS[16:]],
        **{**STEADY, "trainer": {"max_steps": 4}},
    )
    without = run_training(others, tmp_path / "without")
    spoil([11], how)

    result = run_training(config, tmp_path / "run")

    assert (result.steps, result.skipped, result.ended) == (6, 2, "")
    skipped = [record for record in records(tmp_path / "run") if "skipped" in record]
    train = config.data.train[0]
    assert skipped == [
        {"step": step, "skipped": what, "skipped_rows": [f"{train}:{line}" for line in lines]}
        for step in (2, 5)
    ]
    steps = [record["step"] for record in records(tmp_path / "run") if "lr" in record]
    assert steps == [1, 3, 4, 6]
    assert result.best_step == without.best_step + 2
    assert prompt_sums(result.table) == prompt_sums(without.table)


def test_the_rate_does_not_move_on_with_a_skipped_step(
    tiny_bases: dict[str, Path], tmp_path: Path, records: Records, spoil: Callable[..., None]
) -> None:
    settings = {**STEADY, "optim": {"lr": 0.05}}
    config = tiny_run(tmp_path / "data", tiny_bases["llama"], rows=ROWS, **settings)
    run_training(config, tmp_path / "sound")
    spoil([11], no_number)

    run_training(config, tmp_path / "run")

    sound, found = (
        [record["lr"] for record in records(tmp_path / name) if "lr" in record]
        for name in ("sound", "run")
    )
    assert found == sound[:4]
    assert len(set(sound)) == 6


def test_too_many_skipped_steps_in_a_row_end_the_run_and_name_the_rows(
    tiny_bases: dict[str, Path], tmp_path: Path, records: Records, spoil: Callable[..., None]
) -> None:
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        rows=ROWS,
        **{**STEADY, "trainer": {"max_skipped_steps": 2, "val_check_interval": 1}},
    )
    spoil([9, 14, 17], no_number)

    with pytest.raises(TrainingError) as caught:
        run_training(config, tmp_path / "run")

    train = config.data.train[0]
    last = ", ".join(f"{train}:{line}" for line in range(17, 21))
    assert str(caught.value) == (
        f"training step 3: a loss of nan, 2 skipped steps in a row; the last on {last}. "
        "Lower optim.lr, train with precision fp32, or look at these examples."
    )
    assert [r["step"] for r in records(tmp_path / "run") if "skipped" in r] == [2, 3]
    # What was learned before is there.
    assert (tmp_path / "run/checkpoints/last.safetensors").is_file()
    assert (tmp_path / "run/prompts.safetensors").is_file()


def test_a_sound_step_between_starts_the_count_anew(
    tiny_bases: dict[str, Path], tmp_path: Path, spoil: Callable[..., None]
) -> None:
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        rows=ROWS,
        **{**STEADY, "trainer": {"max_skipped_steps": 2, "max_steps": 9}},
    )
    spoil([1, 17], no_number)  # the last step of an epoch, and the first of the next

    with pytest.raises(TrainingError, match="training step 4: a loss of nan, 2 skipped steps"):
        run_training(config, tmp_path / "run")


def test_a_run_whose_first_steps_are_not_finite_can_be_started_anew(
    tiny_bases: dict[str, Path], tmp_path: Path, spoil: Callable[..., None]
) -> None:
    spoil(range(1, 25), no_number)
    bad = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        rows=ROWS,
        **{**STEADY, "trainer": {"max_skipped_steps": 2}},
    )
    with pytest.raises(TrainingError):
        run_training(bad, tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()
    spoil([], no_number)

    result = run_training(bad, tmp_path / "run")

    assert (result.steps, result.skipped) == (6, 0)


def test_a_run_with_skipped_steps_is_resumed_exactly(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    records: Records,
    prompt_sums: Sums,
    spoil: Callable[..., None],
) -> None:
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        rows=ROWS,
        **{**STEADY, "optim": {"lr": 0.05}, "checkpoint": {"every_n_steps": 1}},
    )
    spoil([11], no_number)
    whole = run_training(config, tmp_path / "whole")
    # Right after a skipped step, and its loss in the checkpoint.
    with pytest.raises(Killed):
        _run_until_save(2, monkeypatch, lambda: run_training(config, tmp_path / "parts"))

    parts = run_training(config, tmp_path / "parts", resume=True)

    assert prompt_sums(parts.table) == prompt_sums(whole.table)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert parts.skipped == whole.skipped == 2


def _run_until_save(
    number: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]
) -> None:
    saves: Iterator[int] = count(1)

    def killed_after_a_save(path: Path, *rest: Any) -> None:
        save_checkpoint(path, *rest)
        if path.name == "last.safetensors" and next(saves) == number:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("pl_compile.training.run.save_checkpoint", killed_after_a_save)
        run()


# Loss scaling


@pytest.fixture
def too_large_a_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss scaling that starts with a number at which gradients overflow."""
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**24)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)


@pytest.mark.usefixtures("too_large_a_scale")
def test_an_overflow_halves_the_scale_and_is_no_fault_of_the_data(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    records: Records,
    prompt_sums: Sums,
) -> None:
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        rows=ROWS,
        **{
            **STEADY,
            "trainer": {"precision": "fp16", "max_skipped_steps": 1, "max_steps": 16},
            "checkpoint": {"every_n_steps": 2},
        },
    )

    whole = run_training(config, tmp_path / "whole")

    found = records(tmp_path / "whole")
    skipped = [record["step"] for record in found if "skipped" in record]
    assert 2 <= len(skipped) < 12
    assert skipped == list(range(1, len(skipped) + 1))
    scales = {record["loss_scale"] for record in found if "lr" in record}
    assert scales == {2.0 ** (24 - len(skipped))}

    # The scale that was found is where a resumed run goes on.
    with pytest.raises(Killed):
        _run_until_save(5, monkeypatch, lambda: run_training(config, tmp_path / "parts"))
    parts = run_training(config, tmp_path / "parts", resume=True)

    assert records(tmp_path / "parts") == found
    assert prompt_sums(parts.table) == prompt_sums(whole.table)


def test_scaling_does_not_search_for_ever(
    tiny_bases: dict[str, Path], tmp_path: Path, records: Records, spoil: Callable[..., None]
) -> None:
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        rows=ROWS,
        **{
            **STEADY,
            "trainer": {
                "precision": "fp16",
                "max_skipped_steps": 3,
                "max_steps": 40,
                "val_check_interval": 40,
            },
        },
    )
    spoil(range(1, 25), no_number)

    # 65536 is halved 16 times; what is not finite at a scale of 1 is counted.
    with pytest.raises(TrainingError, match="training step 19: a loss of nan, 3 skipped steps"):
        run_training(config, tmp_path / "run")

    assert len([record for record in records(tmp_path / "run") if "skipped" in record]) == 19


def test_without_scaling_no_scale_is_logged(
    tiny_bases: dict[str, Path], tmp_path: Path, records: Records
) -> None:
    config = tiny_run(
        tmp_path / "data", tiny_bases["llama"], trainer={"precision": "bf16", "max_steps": 1}
    )

    run_training(config, tmp_path / "run")

    assert not any("loss_scale" in record for record in records(tmp_path / "run"))


# Validation


def test_a_validation_loss_that_is_not_finite_ends_the_run(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    records: Records,
) -> None:
    losses = iter([5.0, float("inf")])
    monkeypatch.setattr(
        "pl_compile.training.loop.validation_losses", lambda *_, **__: {0: next(losses)}
    )
    config = tiny_run(tmp_path / "data", tiny_bases["llama"])

    with pytest.raises(TrainingError) as caught:
        run_training(config, tmp_path / "run")

    assert str(caught.value) == (
        "validating after step 6: a loss of inf. Lower optim.lr, or train with precision fp32."
    )
    assert [r["val_loss"] for r in records(tmp_path / "run") if "val_loss" in r] == [5.0]
    assert (tmp_path / "run/prompts.safetensors").is_file()
