"""What is noted of how a run was started."""

import json
import platform
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pl_compile
from pl_compile.training.provenance import describe_run, record_start


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", *who, *arguments]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a checkout on branch `trunk`, without a commit."""
    # The variables that git sets for its hooks would lead to the repository of this test.
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=trunk")
    monkeypatch.chdir(folder)
    return folder


def test_versions_platform_and_command_line_are_noted() -> None:
    before = datetime.now(UTC).replace(microsecond=0)

    found = describe_run(["plc", "train", "a.yaml"])

    assert found["argv"] == ["plc", "train", "a.yaml"]
    assert found["cwd"] == str(Path.cwd())
    assert found["versions"] == {
        "python": platform.python_version(),
        "plc": pl_compile.__version__,
        "torch": torch.__version__,
        "transformers": found["versions"]["transformers"],
        "numpy": np.__version__,
    }
    assert found["platform"] == platform.platform()
    assert before <= datetime.fromisoformat(found["started"]) <= datetime.now(UTC)
    assert json.loads(json.dumps(found)) == found


def test_the_checkout_in_which_a_run_is_started_is_noted(checkout: Path) -> None:
    (checkout / "train.yaml").write_text("a\nb\n", encoding="utf-8")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "--message=one")
    commit = git(checkout, "rev-parse", "HEAD")
    clean = describe_run([])["git"]

    (checkout / "train.yaml").write_text("a\nc\nd\n", encoding="utf-8")
    (checkout / "runs").mkdir()
    (checkout / "runs" / "metrics.jsonl").write_text("untracked", encoding="utf-8")
    changed = describe_run([])["git"]
    git(checkout, "checkout", "--quiet", "--detach", "--force")
    detached = describe_run([])["git"]

    assert clean == {"commit": commit, "branch": "trunk", "dirty": False, "diff": ""}
    assert changed == {
        "commit": commit,
        "branch": "trunk",
        "dirty": True,
        "diff": "1 file changed, 2 insertions(+), 1 deletion(-)",
    }
    assert detached == {"commit": commit, "branch": None, "dirty": False, "diff": ""}


def test_a_checkout_without_a_commit_has_none(checkout: Path) -> None:
    assert describe_run([])["git"] == {
        "commit": None,
        "branch": "trunk",
        "dirty": None,
        "diff": None,
    }


def test_no_git_and_no_checkout_keep_no_run_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert describe_run([])["git"] is None

    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_run([])["git"] is None


def test_a_git_that_hangs_is_not_waited_for(checkout: Path, monkeypatch: Any) -> None:
    def hangs(command: list[str], timeout: float, **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hangs)

    assert describe_run([])["git"] is None


def test_each_start_of_a_run_adds_a_record(
    tmp_path: Path, read_jsonl: Callable[[Path], list[dict[str, Any]]]
) -> None:
    run_folder = tmp_path / "run"

    precision = {"chosen": "fp32", "asked": "auto", "reason": "no unit for bf16"}

    first = record_start(
        run_folder, ["plc", "train", "größe.yaml"], 0, resumed=False, precision=precision
    )
    second = record_start(
        run_folder, ["plc", "train", "--resume"], 30, resumed=True, precision=precision
    )

    records = read_jsonl(run_folder / "history.jsonl")
    assert records == [first, second]
    assert [(r["event"], r["step"]) for r in records] == [("started", 0), ("resumed", 30)]
    assert [r["precision"] for r in records] == [precision, precision]
    assert records[0]["argv"] == ["plc", "train", "größe.yaml"]
    assert records[1]["versions"]["plc"] == pl_compile.__version__


def test_what_is_no_utf8_stays_in_the_history(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b"\xff\n")

    record_start(tmp_path, ["plc", "train", "\udcff.yaml"], 0, resumed=True, precision={})

    earlier, line = path.read_bytes().splitlines()
    assert earlier == b"\xff"
    assert json.loads(line)["argv"][2] == "\udcff.yaml"
