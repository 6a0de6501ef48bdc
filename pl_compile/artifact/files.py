"""Files that are there whole or not at all, and their sums.

A file or folder is written beside its final name, forced to the disk, then renamed: a reader, a
full disk or a killed process never meets half of it. Knows nothing of what the bytes mean.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pl_compile.errors import ArtifactError

_CHUNK_BYTES = 1 << 17


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, replacing what was there only once all of it is on the disk.

    Raises:
        ArtifactError: the folder cannot be made, or the bytes cannot be written (disk full,
            no permission). What `path` held before is still there.
    """
    with _reporting(path):
        path = path.resolve()  # a link stays one, and what it leads to is written
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)  # a pipe or a device: there is nothing to replace
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = _temporary_name(path)
        # 0o666 less the umask, as programs leave their files.
        descriptor = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        _sync_rename(path)


def append_line(path: Path, line: str) -> None:
    """Adds a line to a log.

    Raises:
        ArtifactError: the disk refuses.
    """
    with _reporting(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


@contextmanager
def folder_written_whole(path: Path, *, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Gives a temporary folder beside `path`; at a clean end it becomes `path`.

    A folder of ours that was at `path` is replaced; if the block raises, it stays and the temporary
    folder is removed. A kill between the two renames of a replacement leaves the old folder beside
    its name, as `.NAME.….old`.

    Args:
        path: the final name.
        is_ours: whether a folder with something in it may be replaced.

    Raises:
        ArtifactError: the disk refuses (full, no permission), `path` is a file, or a folder of
            somebody else's.
    """
    check_replaceable(path, is_ours)
    with _reporting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = _temporary_name(path)
        staging.mkdir()
        try:
            yield staging
            for file in sorted(staging.rglob("*")):
                _sync(file)
            _sync(staging)
            _replace_folder(staging, path)
        except BaseException:
            _remove_tree(staging)
            raise


def check_replaceable(path: Path, is_ours: Callable[[Path], bool]) -> None:
    """Raises `ArtifactError` unless a folder may be written under this name.

    Args:
        path: the name; nothing, an empty folder, or a folder of ours may be there.
        is_ours: whether a folder with something in it may be replaced.
    """
    with _reporting(path):
        if path.exists() and not path.is_dir():
            found = "a file of that name"
        elif path.is_dir() and any(path.iterdir()) and not is_ours(path):
            found = "a folder with other things in it"
        else:
            return
    raise ArtifactError(f"writing {path}", found=found, fix="Choose another --output.")


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}")


def _replace_folder(staging: Path, path: Path) -> None:
    # A rename cannot replace a folder that holds files: the old one steps aside first.
    old = staging.with_name(f"{staging.name}.old")
    had_one = path.exists()
    if had_one:
        os.rename(path, old)
    try:
        os.rename(staging, path)
    except OSError:
        if had_one:
            os.rename(old, path)
        raise
    _remove_tree(old)
    _sync_rename(path)


def _sync_rename(path: Path) -> None:
    # The new content is in place already; a file system that cannot force its folder is no failure.
    with suppress(OSError):
        _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _reporting(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"writing {path}",
            found=error.strerror or str(error),
            fix="Nothing was left under that name that was not there before.",
        ) from error


def _remove_tree(folder: Path) -> None:
    import shutil  # brings compressors along, which a reader of bundles has no use for

    shutil.rmtree(folder, ignore_errors=True)
