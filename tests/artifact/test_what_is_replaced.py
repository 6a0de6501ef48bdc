"""Only what is ours is replaced, and only files are."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pl_compile.artifact.bundle import files_of_bundle
from pl_compile.artifact.files import (
    append_line,
    check_replaceable,
    check_writable,
    folder_written_whole,
    write_atomically,
)
from pl_compile.errors import ArtifactError


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the system refuse to write to some path, as it never does to root."""

    def lock(path: Path) -> None:
        access = os.access

        def refusing(asked: Path, mode: int) -> bool:
            return access(asked, mode) and not (asked == path and mode & os.W_OK)

        monkeypatch.setattr(os, "access", refusing)

    return lock


def test_a_folder_of_somebody_else_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"name": "my web app"}')

    with (
        pytest.raises(ArtifactError, match="a folder with other things in it"),
        folder_written_whole(folder, ours=files_of_bundle),
    ):
        raise AssertionError("never reached")

    assert (folder / "manifest.json").read_text() == '{"name": "my web app"}'


def test_a_bundle_of_any_version_and_an_empty_folder_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/manifest.json").write_text('{"format": "plc.bundle", "version": 9}')

    for name in ("empty", "bundle", "nothing-there"):
        check_replaceable(tmp_path / name, files_of_bundle)


@pytest.mark.parametrize("stranger", ["answers.jsonl", "base/notes.txt", "link", "tasks/a/b"])
def test_a_bundle_with_a_file_of_somebody_else_is_kept(tmp_path: Path, stranger: str) -> None:
    bundle = tmp_path / "bundle"
    (bundle / "base").mkdir(parents=True)
    manifest = {"format": "plc.bundle", "version": 1, "files": {"base/model.onnx": {}}}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    for name in ("base/model.onnx", "report.json", "report.html", ".DS_Store", "base/Thumbs.db"):
        (bundle / name).touch()
    (bundle / "empty").mkdir()
    check_replaceable(bundle, files_of_bundle)
    (bundle / stranger).parent.mkdir(parents=True, exist_ok=True)
    if stranger == "link":
        (bundle / stranger).symlink_to(tmp_path)
    else:
        (bundle / stranger).touch()

    with pytest.raises(ArtifactError) as caught:
        check_replaceable(bundle, files_of_bundle)

    assert str(caught.value) == (
        f"writing {bundle}: a folder with other things in it: {stranger}. "
        "Move it elsewhere, or choose another --output."
    )


def test_a_file_that_is_put_into_the_folder_during_the_work_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()

    with (
        pytest.raises(ArtifactError, match="other things in it: answers"),
        folder_written_whole(folder, ours=files_of_bundle),
    ):
        (folder / "answers").touch()

    assert [path.name for path in tmp_path.rglob("*")] == ["bundle", "answers"]


def test_a_mounted_volume_is_told_before_the_work() -> None:
    with pytest.raises(ArtifactError, match=r"a mounted volume, .* Choose a folder in it"):
        check_replaceable(Path("/proc"), files_of_bundle)


def test_the_current_folder_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    for name in (Path("."), tmp_path):
        with pytest.raises(ArtifactError, match="the current folder, which cannot be replaced"):
            check_replaceable(name, files_of_bundle)


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


def run(code: str, output: Any, **others: Any) -> int:
    """The exit code of a process that writes to its own standard output by a name of it."""
    text = f"from pathlib import Path\nfrom pl_compile.artifact.files import *\n{code}"
    return subprocess.run(
        [sys.executable, "-c", text], stdout=output, check=False, **others
    ).returncode


@pytest.mark.parametrize(
    "name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/proc/thread-self/fd/1", "link"]
)
@pytest.mark.parametrize("mode", ["ab", "wb"])
def test_standard_output_is_written_after_what_is_there(
    tmp_path: Path, name: str, mode: str
) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    (tmp_path / "all").write_bytes(b"" if mode == "wb" else b"yesterday\n")
    path = tmp_path / name  # an absolute name stays one

    with (tmp_path / "all").open(mode) as output:
        output.write(b"header\n")
        output.flush()
        code = run(f"print('said'); write_atomically(Path({str(path)!r}), b'answer\\n')", output)
        output.write(b"footer\n")

    before = "" if mode == "wb" else "yesterday\n"
    assert (code, (tmp_path / "all").read_text()) == (0, f"{before}header\nsaid\nanswer\nfooter\n")
    assert (tmp_path / "link").is_symlink()


def test_a_pipe_at_standard_output_is_written_to() -> None:
    code = (
        "from pl_compile.artifact.files import *\nwrite_atomically(Path('/dev/stdout'), b'answer')"
    )

    assert subprocess.check_output([sys.executable, "-c", code]) == b"answer"


def test_the_output_of_another_process_is_written_after_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"before\n")
    with (tmp_path / "log").open("ab") as log:
        code = "input()"
        other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=log)
    try:
        write_atomically(Path(f"/proc/{other.pid}/fd/1"), b"answer\n")
    finally:
        other.communicate(b"\n")

    assert (tmp_path / "log").read_bytes() == b"before\nanswer\n"


def test_a_descriptor_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "read").touch()
    with (tmp_path / "read").open() as file:
        name = Path(f"/dev/fd/{file.fileno()}")
        with pytest.raises(ArtifactError, match="open for reading only"):
            check_writable(name)
    with pytest.raises(ArtifactError, match="Bad file descriptor"):
        check_writable(name)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_what_replaces_a_file_or_a_folder_has_its_mode(tmp_path: Path, mode: int) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    folder.mkdir()
    for path in (file, folder):
        path.chmod(mode | 0o100)

    write_atomically(file, b"x")
    with folder_written_whole(folder, ours=files_of_bundle) as staging:
        assert staging.stat().st_mode & 0o777 == mode | 0o100
        (staging / "x").touch()

    assert [path.stat().st_mode & 0o777 for path in (file, folder)] == [mode | 0o100] * 2


@pytest.mark.skipif(
    os.geteuid() != 0,
    reason="needs root, who alone gives files away; that modes stay, for anybody: "
    "test_what_replaces_a_file_or_a_folder_has_its_mode",
)
def test_what_root_replaces_stays_its_owners(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o600)
    os.chown(tmp_path / "file", 1234, 5678)

    write_atomically(tmp_path / "file", b"x")

    stat = (tmp_path / "file").stat()
    assert (stat.st_uid, stat.st_gid, stat.st_mode & 0o777) == (1234, 5678, 0o600)


def test_a_read_only_file_or_folder_is_refused_and_kept(tmp_path: Path, locked: Any) -> None:
    (tmp_path / "table").write_bytes(b"old")
    locked(tmp_path / "table")

    for write in (check_writable, lambda path: write_atomically(path, b"new")):
        with pytest.raises(ArtifactError) as caught:
            write(tmp_path / "table")

    assert str(caught.value) == (
        f"writing {tmp_path / 'table'}: {tmp_path / 'table'} may not be written to. "
        "Write elsewhere, or let it be written to: chmod u+w."
    )
    assert (tmp_path / "table").read_bytes() == b"old"

    locked(tmp_path)
    for check in (check_writable, lambda path: check_replaceable(path, files_of_bundle)):
        with pytest.raises(ArtifactError, match=f"{tmp_path} may not be written to"):
            check(tmp_path / "new" / "one")


def test_a_log_that_the_disk_refuses_may_have_half_a_line() -> None:
    with pytest.raises(ArtifactError) as caught:
        append_line(Path("/dev/full"), "line")

    assert str(caught.value) == (
        "writing /dev/full: No space left on device. "
        "Its last line may be cut. Make room, and go on with --resume."
    )
