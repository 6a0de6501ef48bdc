"""When a run ends, validates and saves, and which checkpoints it keeps."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pl_compile.importers.run_checkpoint import read_checkpoint_table
from pl_compile.testing import tiny_run
from pl_compile.training.checkpoint import save_checkpoint
from pl_compile.training.run import run_training
from pl_compile.training.run_state import RunState

Records = Callable[[Path], list[dict[str, Any]]]
Validate = Callable[[Sequence[float]], None]


@pytest.fixture
def validate(monkeypatch: pytest.MonkeyPatch) -> Validate:
    """Gives the validations of a run these losses."""

    def script(losses: Sequence[float]) -> None:
        told: Iterator[float] = iter(losses)
        monkeypatch.setattr(
            "pl_compile.training.loop.validation_losses", lambda *_, **__: {0: next(told)}
        )

    return script


def validated(rows: Sequence[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in rows if "val_loss" in row]


# Validations


@pytest.mark.parametrize(
    ("interval", "steps"),
    [
        (2, [2, 4, 6, 7]),  # the last step always validates
        (50, [7]),
        (1.0, [3, 6, 7]),  # an epoch has three steps
        (0.34, [1, 2, 3, 4, 5, 6, 7]),
        (0.01, [1, 2, 3, 4, 5, 6, 7]),
        (0.67, [2, 4, 6, 7]),
        (2.0, [6, 7]),
    ],
)
def test_validations_come_every_so_many_steps_or_parts_of_an_epoch(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    records: Records,
    validate: Validate,
    interval: float,
    steps: list[int],
) -> None:
    validate([1.0] * 9)
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        trainer={"max_steps": 7, "val_check_interval": interval},
    )

    run_training(config, tmp_path / "run")

    assert validated(records(tmp_path / "run")) == steps


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"max_steps": 4}, 4),
        ({"max_steps": None, "max_epochs": 2}, 6),
        ({"max_steps": 4, "max_epochs": 2}, 4),
        ({"max_steps": 9, "max_epochs": 1}, 3),
    ],
)
def test_a_run_ends_at_whichever_limit_comes_first(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    validate: Validate,
    limits: dict[str, Any],
    steps: int,
) -> None:
    validate([1.0] * 9)
    config = tiny_run(tmp_path / "data", tiny_bases["llama"], trainer=limits)

    result = run_training(config, tmp_path / "run")

    assert (result.steps, result.ended) == (steps, "")


# Early stopping


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "steps", "best"),
    [
        ([5, 4, 4.5, 4.2, 3, 9], 2, 0.0, 4, 2),
        ([5, 4, 4.5, 3, 4, 3.5, 9], 2, 0.0, 6, 4),  # a better one starts the count anew
        ([5, 4, 4, 9], 1, 0.0, 3, 2),  # as good is not better
        ([5, 4.6, 4.2, 3.8, 9], 1, 0.5, 2, 2),  # better, but by too little
        ([5, 4.4, 4.1, 3.95, 9], 2, 0.5, 4, 4),  # counted from what was better by enough
        ([5, 4, 3, 2, 1, 0], 1, 0.0, 6, 6),
    ],
)
def test_a_run_ends_when_its_validation_loss_no_longer_falls(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    records: Records,
    validate: Validate,
    losses: list[float],
    patience: int,
    min_delta: float,
    steps: int,
    best: int,
) -> None:
    validate(losses)
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        trainer={"max_steps": 6, "val_check_interval": 1, "global_batch_size": 4},
        early_stopping={"patience": patience, "min_delta": min_delta},
    )

    result = run_training(config, tmp_path / "run")

    assert (result.steps, result.best_step) == (steps, best)
    assert result.ended == ("early_stopping" if losses[steps - 1] != 0 else "")
    assert validated(records(tmp_path / "run")) == list(range(1, steps + 1))


def test_a_run_that_stopped_early_is_not_gone_on_with(
    tiny_bases: dict[str, Path], tmp_path: Path, validate: Validate
) -> None:
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        trainer={"val_check_interval": 1},
        early_stopping={"patience": 1},
    )
    validate([5, 6])
    run_training(config, tmp_path / "run")

    result = run_training(config, tmp_path / "run", resume=True)

    assert (result.steps, result.ended, result.best_step) == (2, "early_stopping", 1)


# Checkpoints


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """File and step of each checkpoint that is written."""
    writes: list[tuple[str, int]] = []

    def save(path: Path, state: RunState, *rest: Any) -> None:
        writes.append((path.stem, state.step))
        save_checkpoint(path, state, *rest)

    monkeypatch.setattr("pl_compile.training.run.save_checkpoint", save)
    return writes


@pytest.mark.parametrize(
    ("every", "last"), [(None, [3, 6, 7]), (2, [2, 3, 4, 6, 7]), (1, list(range(1, 8)))]
)
def test_the_last_state_is_saved_at_validations_and_as_often_as_asked_for(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    saved: list[tuple[str, int]],
    validate: Validate,
    every: int | None,
    last: list[int],
) -> None:
    validate([5, 4, 6])
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        trainer={"max_steps": 7},
        checkpoint={"every_n_steps": every},
    )

    run_training(config, tmp_path / "run")

    assert [step for name, step in saved if name == "last"] == last
    assert [step for name, step in saved if name == "best"] == [3, 6]


def test_the_checkpoints_with_the_lowest_losses_are_kept(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    validate: Validate,
) -> None:
    validate([5, 3, 4.25, 6, 2.5, 12])
    config = tiny_run(
        tmp_path / "data",
        tiny_bases["llama"],
        trainer={"val_check_interval": 1},
        checkpoint={"save_top_k": 3},
    )
    folder = tmp_path / "run/checkpoints"
    kept: list[list[str]] = []
    number = count(1)
    from pl_compile.training.run_folder import RunFolder

    drop_worse = RunFolder.drop_worse

    def drop(self: RunFolder, most: int) -> None:
        drop_worse(self, most)
        kept.append(sorted(path.name for path in folder.glob("val_loss*")))
        next(number)

    monkeypatch.setattr(RunFolder, "drop_worse", drop)

    run_training(config, tmp_path / "run")

    def names(*steps: tuple[str, int]) -> list[str]:
        return [f"val_loss={loss}-step={step}.safetensors" for loss, step in steps]

    assert kept == [
        names(("5.0000", 1)),
        names(("3.0000", 2), ("5.0000", 1)),
        names(("3.0000", 2), ("4.2500", 3), ("5.0000", 1)),
        names(("2.5000", 5), ("3.0000", 2), ("4.2500", 3)),
    ]
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.safetensors",
        "last.safetensors",
        *kept[-1],
    ]
    best, other = (
        read_checkpoint_table(folder / name).entry("tone").rows.tolist()
        for name in ("best.safetensors", kept[-1][0])
    )
    assert best == other


def test_one_best_checkpoint_is_kept_under_its_own_name(
    tiny_bases: dict[str, Path], tmp_path: Path, validate: Validate
) -> None:
    validate([5, 3])

    run_training(tiny_run(tmp_path / "data", tiny_bases["llama"]), tmp_path / "run")

    names = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert names == {"best.safetensors", "last.safetensors"}
