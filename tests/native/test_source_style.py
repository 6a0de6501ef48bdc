"""The sources of the native runtime are laid out as `.clang-format` says."""

import shutil
import subprocess

import pytest
from native_programs import SOURCES


def test_the_sources_are_formatted() -> None:
    tool = shutil.which("clang-format")
    said = tool and subprocess.run([tool, "--version"], capture_output=True, text=True, check=True)
    if not said or "version 14." not in said.stdout:
        pytest.skip(
            "needs clang-format 14, as in Debian 12; "
            "what compilers say of the same sources, as errors: the other tests of this folder"
        )
    files = sorted(str(path) for path in SOURCES.glob("*.[ch]*"))
    assert len(files) > 50

    done = subprocess.run(
        ["clang-format", "--dry-run", "-Werror", *files],
        capture_output=True,
        text=True,
        check=False,
    )

    assert not done.returncode, f"run: clang-format -i {SOURCES}/*\n{done.stderr[:3000]}"
