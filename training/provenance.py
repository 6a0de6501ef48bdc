"""Where a run's numbers come from: versions, machine, command line, state of the source.

A run folder's `history.jsonl` has one record for each time that the run was started or resumed.
"""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pl_compile
from pl_compile.artifact.files import write_atomically

HISTORY_NAME = "history.jsonl"

_PACKAGES = ("torch", "transformers", "numpy")
_GIT_SECONDS = 10  # a large checkout on a slow disk must not hold up a run


def describe_run(argv: Sequence[str]) -> dict[str, Any]:
    """Versions, machine and source of a run that starts now, as plain data.

    Args:
        argv: the command line.

    Returns:
        "started" (UTC, ISO 8601), "argv", "cwd", "versions" by name (None where a package is not
        installed), "platform", and "git": the state of the current folder's checkout as "commit",
        "branch" (None on a detached commit), "dirty" (whether tracked files differ from the commit)
        and "diff" (how much they differ). "git" is None outside a checkout or without git.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": list(argv),
        "cwd": os.getcwd(),
        "versions": {
            "python": platform.python_version(),
            "plc": pl_compile.__version__,
            **{package: _version(package) for package in _PACKAGES},
        },
        "platform": platform.platform(),
        "git": _git_state(),
    }


def record_start(
    run_folder: Path,
    argv: Sequence[str],
    step: int,
    *,
    resumed: bool,
    precision: Mapping[str, str],
) -> dict[str, Any]:
    """Adds a record of this start to `history.jsonl`; earlier ones are kept.

    Args:
        run_folder: of the run; it is made if it does not exist.
        argv: the command line.
        step: optimiser steps done so far.
        resumed: whether the run is resumed, not new.
        precision: of the base: "chosen", "asked" and "reason".

    Returns:
        The record: "event" ("started" or "resumed"), "step", "precision", and what `describe_run`
        says.

    Raises:
        ArtifactError: it cannot be written.
    """
    event = "resumed" if resumed else "started"
    record = {"event": event, "step": step, "precision": dict(precision), **describe_run(argv)}
    path = run_folder / HISTORY_NAME
    earlier = path.read_bytes() if path.is_file() else b""
    # A command line may hold bytes that are not UTF-8; they are escaped.
    line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace")
    write_atomically(path, earlier + line + b"\n")
    return record


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    if _git("rev-parse", "--is-inside-work-tree") != "true":
        return None
    diff = _git("diff", "HEAD", "--shortstat", "--no-ext-diff")
    return {
        "commit": _git("rev-parse", "--verify", "--quiet", "HEAD"),
        "branch": _git("branch", "--show-current") or None,
        "dirty": None if diff is None else bool(diff),
        "diff": diff,
    }


def _git(*arguments: str) -> str | None:
    """What a git command prints, or None if it fails for any reason."""
    # Without optional locks: a run must not disturb a commit that is made at the same time.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
