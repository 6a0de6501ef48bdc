"""A reader of our output that is gone: the exit code says so, and nothing else does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pl_compile.testing import random_table


@pytest.fixture(scope="module")
def table(tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "table.safetensors"
    random_table(tiny_bases["llama"], path)
    return path


def into_a_closed_pipe(*arguments: str, errors_too: bool = False) -> tuple[int, str | None]:
    """The exit code of a command whose output nobody reads, and its standard error."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pl_compile.cli", *arguments],
            stdout=writing,
            stderr=writing if errors_too else subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"]])
def test_a_closed_pipe_ends_help_with_exit_code_141(arguments: list[str]) -> None:
    assert into_a_closed_pipe(*arguments) == (141, "")


@pytest.mark.parametrize("arguments", [["inspect"], ["inspect", "--json"], ["tasks", "ls"]])
def test_a_closed_pipe_ends_a_command_with_exit_code_141(table: Path, arguments: list[str]) -> None:
    assert into_a_closed_pipe(*arguments, str(table)) == (141, "")


def test_an_error_that_nobody_reads_has_the_same_exit_code() -> None:
    assert into_a_closed_pipe("inspect", "nothing", errors_too=True) == (141, None)
