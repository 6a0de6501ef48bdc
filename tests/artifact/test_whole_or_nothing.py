import errno
import hashlib
import io
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pl_compile.artifact.files import folder_written_whole, sha256_of, write_atomically
from pl_compile.config.utf8 import read_text
from pl_compile.errors import ArtifactError

FULL = "No space left on device"
NOTHING_LEFT = "Nothing was left under that name that was not there before."

FailAt = Callable[[str, int], None]


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch) -> FailAt:
    """Makes the `nth` call (from 1) of an `os` function meet a full disk."""

    def arrange(name: str, nth: int) -> None:
        real = getattr(os, name)
        calls = 0

        def fails(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise OSError(errno.ENOSPC, FULL)
            return real(*arguments, **keywords)

        monkeypatch.setattr(os, name, fails)

    return arrange


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _write_folder(path: Path, text: str) -> None:
    with folder_written_whole(path, ours=_tree) as staging:
        (staging / "deep").mkdir()
        (staging / "deep" / "file").write_text(text)
        (staging / "top").write_text(text)


# Files


def test_a_file_is_written_with_the_folders_on_its_way(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "table"

    write_atomically(path, b"abc")

    assert path.read_bytes() == b"abc"
    assert _names(path.parent) == ["table"]


def test_a_file_is_replaced_and_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_bytes(b"a longer old content")

    write_atomically(path, b"new")

    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(
    tmp_path: Path, fail_at: FailAt, step: str
) -> None:
    path = tmp_path / "table"
    path.write_bytes(b"old")
    fail_at(step, 1)

    with pytest.raises(ArtifactError) as error:
        write_atomically(path, b"new")

    assert str(error.value) == f"writing {path}: {FULL}. {NOTHING_LEFT}"
    assert path.read_bytes() == b"old"
    assert _names(tmp_path) == ["table"]


def test_a_full_disk_leaves_nothing_where_nothing_was(tmp_path: Path, fail_at: FailAt) -> None:
    fail_at("fsync", 1)

    with pytest.raises(ArtifactError):
        write_atomically(tmp_path / "table", b"new")

    assert _names(tmp_path) == []


def test_a_file_in_place_of_a_folder_on_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")

    with pytest.raises(ArtifactError) as error:
        write_atomically(tmp_path / "runs" / "table", b"new")

    assert str(error.value).startswith(f"writing {tmp_path / 'runs' / 'table'}: ")
    assert str(error.value).endswith(NOTHING_LEFT)
    assert (tmp_path / "runs").read_text() == "a file"


def test_a_folder_in_place_of_the_file_is_told_and_kept(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()

    with pytest.raises(ArtifactError) as error:
        write_atomically(tmp_path / "table", b"new")

    assert str(error.value) == f"writing {tmp_path / 'table'}: a folder. Name a file in it."
    assert _names(tmp_path) == ["table"]


def test_an_interrupted_write_leaves_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "table", b"new")

    assert _names(tmp_path) == []


# Folders


def test_a_folder_appears_under_its_name_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out" / "bundle"

    with folder_written_whole(path, ours=_tree) as staging:
        (staging / "file").write_text("x")
        assert not path.exists()
        assert staging.parent == path.parent

    assert _tree(path) == {"file": b"x"}
    assert _names(path.parent) == ["bundle"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_a_folder_replaces_the_one_before_whole(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    _write_folder(path, "old")
    (path / "left over").write_text("old")

    _write_folder(path, "new")

    assert _tree(path) == {"deep/file": b"new", "top": b"new"}
    assert _names(tmp_path) == ["bundle"]


def test_a_block_that_raises_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    _write_folder(path, "old")

    def write_half() -> None:
        with folder_written_whole(path, ours=_tree) as staging:
            (staging / "half").write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()

    assert _tree(path) == {"deep/file": b"old", "top": b"old"}
    assert _names(tmp_path) == ["bundle"]


# Forced to the disk one after the other: deep, deep/file, top, the staging folder.
@pytest.mark.parametrize(
    ("step", "nth"),
    [("fsync", 1), ("fsync", 2), ("fsync", 3), ("fsync", 4), ("rename", 1), ("rename", 2)],
)
def test_a_full_disk_at_any_step_leaves_the_old_folder_and_no_temporary(
    tmp_path: Path, fail_at: FailAt, step: str, nth: int
) -> None:
    path = tmp_path / "bundle"
    _write_folder(path, "old")
    fail_at(step, nth)

    with pytest.raises(ArtifactError) as error:
        _write_folder(path, "new")

    assert str(error.value) == f"writing {path}: {FULL}. {NOTHING_LEFT}"
    assert _tree(path) == {"deep/file": b"old", "top": b"old"}
    assert _names(tmp_path) == ["bundle"]


def test_a_disk_that_cannot_force_the_rename_leaves_one_whole_folder_and_no_temporary(
    tmp_path: Path, fail_at: FailAt
) -> None:
    path = tmp_path / "bundle"
    _write_folder(path, "old")
    fail_at("fsync", 5)

    try:
        _write_folder(path, "new")
        expected = b"new"
    except ArtifactError:
        expected = b"old"

    assert _tree(path) == {"deep/file": expected, "top": expected}
    assert _names(tmp_path) == ["bundle"]


def test_a_full_disk_while_the_block_writes_is_told_with_the_final_name(tmp_path: Path) -> None:
    path = tmp_path / "bundle"

    with (
        pytest.raises(ArtifactError) as error,
        folder_written_whole(path, ours=_tree),
    ):
        raise OSError(errno.ENOSPC, FULL)

    assert str(error.value) == f"writing {path}: {FULL}. {NOTHING_LEFT}"
    assert _names(tmp_path) == []


def test_a_file_in_the_way_of_a_folder_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.write_text("mine")

    with (
        pytest.raises(ArtifactError) as error,
        folder_written_whole(path, ours=_tree),
    ):
        pytest.fail("the block must not run")

    assert str(error.value) == f"writing {path}: a file of that name. Choose another --output."
    assert path.read_text() == "mine"
    assert _names(tmp_path) == ["bundle"]


# What a killed process left


def _killed_while(work: str, folder: Path) -> None:
    """Runs a process that is killed where `work` says `kill()`."""
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from pl_compile.artifact import files\n"
        "path = Path(sys.argv[1])\n"
        "def kill(*_): os.kill(os.getpid(), signal.SIGKILL)\n" + work
    )
    done = subprocess.run([sys.executable, "-c", code, folder / "bundle"], check=False)
    assert done.returncode == -signal.SIGKILL


IN_THE_BLOCK = (
    "with files.folder_written_whole(path, ours=lambda _: ['deep/file', 'top']) as staging:\n"
    "    (staging / 'half').write_text('x')\n"
    "    kill()\n"
)
BETWEEN_THE_RENAMES = (
    "rename = os.rename\n"
    "os.rename = lambda a, b: rename(a, b) if str(b).endswith('.old') else kill()\n"
    "with files.folder_written_whole(path, ours=lambda _: ['deep/file', 'top']): pass\n"
)


@pytest.mark.parametrize("work", [IN_THE_BLOCK, BETWEEN_THE_RENAMES])
def test_the_next_folder_of_that_name_removes_what_a_kill_left(tmp_path: Path, work: str) -> None:
    path = tmp_path / "bundle"
    _write_folder(path, "old")
    _killed_while(work, tmp_path)
    assert len(_names(tmp_path)) == 2

    _write_folder(path, "new")

    assert _names(tmp_path) == ["bundle"]
    assert _tree(path) == {"deep/file": b"new", "top": b"new"}


def test_an_old_folder_stays_until_there_is_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    _write_folder(path, "old")
    _killed_while(BETWEEN_THE_RENAMES, tmp_path)

    with (
        pytest.raises(ZeroDivisionError),
        folder_written_whole(path, ours=_tree),
    ):
        raise ZeroDivisionError

    (left,) = tmp_path.iterdir()
    assert _tree(left) == {"deep/file": b"old", "top": b"old"}


def test_the_next_file_of_that_name_removes_what_a_kill_left(tmp_path: Path) -> None:
    _killed_while("os.replace = kill\nfiles.write_atomically(path, b'x')\n", tmp_path)
    assert len(_names(tmp_path)) == 1

    write_atomically(tmp_path / "bundle", b"new")

    assert _names(tmp_path) == ["bundle"]


def test_what_is_being_written_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    names = [".bundle.backup", ".bundle.0123456", ".bundle2.01234567", "bundle.01234567"]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / ".bundle.01234567").symlink_to(tmp_path / names[0])
    os.mkfifo(tmp_path / ".bundle.89abcdef")

    with folder_written_whole(tmp_path / "bundle", ours=_tree) as slow:
        (slow / "file").write_text("slow")
        _write_folder(tmp_path / "bundle", "fast")
        assert (slow / "file").read_text() == "slow"

    assert _tree(tmp_path / "bundle") == {"file": b"slow"}
    kept = {*names, "bundle", ".bundle.01234567"}
    assert set(_names(tmp_path)) - {".bundle.89abcdef"} == kept


def test_a_file_that_the_block_cannot_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bundle"

    with (
        pytest.raises(ArtifactError) as error,
        folder_written_whole(path, ours=_tree),
    ):
        tmp_path.read_bytes()

    assert str(error.value) == f"{tmp_path}: Is a directory."
    assert _names(tmp_path) == []


def test_a_file_that_fails_while_it_is_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")

    class Broken(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", lambda *_: Broken())

    for read in (sha256_of, read_text):
        with pytest.raises(OSError, match="Input/output error") as error:
            read(path)
        assert error.value.filename == str(path)


# Sums


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, (1 << 20) + 1])
def test_a_sum_is_that_of_all_bytes(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    path = tmp_path / "file"
    path.write_bytes(data[:size])

    assert sha256_of(path) == hashlib.sha256(data[:size]).hexdigest()
