"""Only what is ours is replaced, and only files are."""

import os
import threading
from pathlib import Path

import pytest

from pl_compile.artifact.bundle import is_bundle
from pl_compile.artifact.files import check_replaceable, folder_written_whole, write_atomically
from pl_compile.errors import ArtifactError


def test_a_folder_of_somebody_else_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"name": "my web app"}')

    with (
        pytest.raises(ArtifactError, match="a folder with other things in it"),
        folder_written_whole(folder, is_ours=is_bundle),
    ):
        raise AssertionError("never reached")

    assert (folder / "manifest.json").read_text() == '{"name": "my web app"}'


def test_a_bundle_of_any_version_and_an_empty_folder_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/manifest.json").write_text('{"format": "plc.bundle", "version": 9}')

    for name in ("empty", "bundle", "nothing-there"):
        check_replaceable(tmp_path / name, is_bundle)


def test_the_current_folder_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    for name in (Path("."), tmp_path):
        with pytest.raises(ArtifactError, match="the current folder, which cannot be replaced"):
            check_replaceable(name, is_bundle)


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()

    write_atomically(pipe, b"answers")

    reader.join(timeout=10)
    assert read == [b"answers"]
    assert pipe.is_fifo()


def test_files_have_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"x")
    finally:
        os.umask(before)

    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
