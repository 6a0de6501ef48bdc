"""A disk that refuses: a clear error, the last checkpoint as it was, and a run that goes on."""

import errno
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pl_compile.errors import ArtifactError
from pl_compile.testing import tiny_run
from pl_compile.training.checkpoint import save_checkpoint
from pl_compile.training.run import run_training

Records = Callable[[Path], list[dict[str, Any]]]
Sums = Callable[[Path | None], dict[str, str]]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Lets the disk be full when a file of some name is written for the nth time."""
    fsync = os.fsync

    def fill(name: str, nth: int) -> None:
        times = count(1)

        def refusing(descriptor: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.name.startswith(f".{name}.") and next(times) == nth:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", refusing)

    return fill


def contents(run: Path) -> dict[str, bytes]:
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("name", "nth", "step"),
    [
        ("last.safetensors", 2, 3),
        ("best.safetensors", 2, 6),
        ("prompts.safetensors", 2, 6),
        ("prompts.safetensors", 1, 3),
        ("curves.png", 1, 6),
    ],
)
def test_a_full_disk_ends_the_run_which_is_then_resumed(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    records: Records,
    prompt_sums: Sums,
    full_disk: Callable[[str, int], None],
    name: str,
    nth: int,
    step: int,
) -> None:
    config = tiny_run(tmp_path / "data", tiny_bases["llama"])
    whole = run_training(config, tmp_path / "whole")
    run = tmp_path / "run"
    last: dict[int, bytes] = {}

    def save(path: Path, state: Any, *rest: Any) -> None:
        save_checkpoint(path, state, *rest)
        if path.name == "last.safetensors":
            last[state.step] = path.read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr("pl_compile.training.run.save_checkpoint", save)
        full_disk(name, nth)
        with pytest.raises(ArtifactError) as caught:
            run_training(config, run)

    folder = run / "checkpoints" if name in ("last.safetensors", "best.safetensors") else run
    assert str(caught.value) == (
        f"writing {folder / name}: No space left on device. "
        "Nothing was left under that name that was not there before."
    )
    left = contents(run)
    assert left["checkpoints/last.safetensors"] == last[step]
    assert not [path for path in left if Path(path).name.startswith(".")]

    parts = run_training(config, run, resume=True)

    assert prompt_sums(parts.table) == prompt_sums(whole.table)
    assert records(run) == records(tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "nth"), [("config.yaml", 1), ("history.jsonl", 1), ("last.safetensors", 1)]
)
def test_a_run_that_could_not_save_anything_is_started_anew(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    prompt_sums: Sums,
    full_disk: Callable[[str, int], None],
    name: str,
    nth: int,
) -> None:
    config = tiny_run(tmp_path / "data", tiny_bases["llama"])
    full_disk(name, nth)

    with pytest.raises(ArtifactError, match=f"{name}: No space left on device"):
        run_training(config, tmp_path / "run")
    result = run_training(config, tmp_path / "run")

    assert set(prompt_sums(result.table)) == {"tone", "ask"}


def test_a_record_that_was_cut_by_a_full_disk_is_made_again(
    tiny_bases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    records: Records,
) -> None:
    from pl_compile.artifact.files import append_line

    config = tiny_run(tmp_path / "data", tiny_bases["llama"])
    run_training(config, tmp_path / "whole")
    lines = count(1)

    def append(path: Path, line: str) -> None:
        if next(lines) == 8:  # the fifth step; the third was saved
            with path.open("a", encoding="utf-8") as file:
                file.write(line[:9])
            raise ArtifactError(f"writing {path}", found=os.strerror(errno.ENOSPC))
        append_line(path, line)

    with monkeypatch.context() as patch:
        patch.setattr("pl_compile.training.run_folder.append_line", append)
        with pytest.raises(ArtifactError, match=r"metrics\.jsonl: No space left on device"):
            run_training(config, tmp_path / "run")
    assert not (tmp_path / "run/metrics.jsonl").read_text().endswith("\n")

    run_training(config, tmp_path / "run", resume=True)

    assert records(tmp_path / "run") == records(tmp_path / "whole")
