"""Files that are there whole or not at all, and their sums.

A file or folder is written beside its final name, forced to the disk, then renamed: a reader, a
full disk or a killed process never meets half of it. Whoever writes holds a lock on it for that
time, so what is not locked was left by a process that was killed, and the next one to write under
that name removes it. Knows nothing of what the bytes mean.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pl_compile.errors import ArtifactError, reason_of

_CHUNK_BYTES = 1 << 17

# What stands behind the final name in a temporary one.
_RANDOM_BYTES = 4


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
        _remove_left_behind(path)
        beside, descriptor = _new_beside(path, _new_file)
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
    folder is removed. A kill leaves the temporary folder (`.NAME.…`), and between the two renames
    of a replacement the old folder too (`.NAME.….old`): the next one that is written under this
    name removes the first at its beginning, the second at its end.

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
        _remove_left_behind(path)
        staging, lock = _new_beside(path, _new_folder)
        try:
            with _naming_others(staging):
                yield staging
            for file in sorted(staging.rglob("*")):
                _sync(file)
            _sync(staging)
            _replace_folder(staging, path)
        except BaseException:
            _remove_tree(staging)
            raise
        finally:
            os.close(lock)
        _remove_left_behind(path, suffix=".old")


def remove_left_behind_in(folder: Path) -> None:
    """Removes what killed processes left in a folder of ours, whatever its name was to be.

    What is written again under its name needs no such call.
    """
    _remove_unlocked(folder, ".+")


def check_replaceable(path: Path, is_ours: Callable[[Path], bool]) -> None:
    """Raises `ArtifactError` unless a folder may be written under this name.

    Args:
        path: the name; nothing, an empty folder, or a folder of ours may be there.
        is_ours: whether a folder with something in it may be replaced.
    """
    with _reporting(path):
        if path.exists() and not path.is_dir():
            found = "a file of that name"
        elif path.is_dir() and path.samefile(Path.cwd()):
            found = "the current folder, which cannot be replaced by another"
        elif path.is_dir() and any(path.iterdir()) and not is_ours(path):
            found = "a folder with other things in it"
        else:
            return
    raise ArtifactError(f"writing {path}", found=found, fix="Choose another --output.")


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: it cannot be read; the error names the file.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        try:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        except OSError as error:
            error.filename = str(path)  # the system's own names it only where it is opened
            raise
    return digest.hexdigest()


def _new_beside(path: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """Something new beside `path`, and the descriptor that holds a lock on it until it is closed.

    A killed process holds none: that is how `_remove_left_behind` knows what is in use.
    """
    import fcntl  # there is none on Windows, where bundles can be read

    while True:
        beside = path.with_name(f".{path.name}.{os.urandom(_RANDOM_BYTES).hex()}")
        descriptor = make(beside)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)  # it is being removed, before it had its lock
            continue
        except OSError:
            return beside, descriptor  # a file system without locks: nobody can remove it either
        if beside.exists():
            return beside, descriptor
        os.close(descriptor)  # it was removed, before it had its lock


def _new_file(path: Path) -> int:
    # 0o666 less the umask, as programs leave their files.
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)


def _new_folder(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY)


def _remove_left_behind(path: Path, suffix: str = "") -> None:
    """Removes what killed processes left beside `path`."""
    _remove_unlocked(path.parent, re.escape(path.name), suffix)


def _remove_unlocked(folder: Path, name: str, suffix: str = "") -> None:
    """Removes what has a temporary name for `name`, a pattern, and what nobody holds a lock on."""
    import fcntl

    digits = f"[0-9a-f]{{{2 * _RANDOM_BYTES}}}"
    temporary = re.compile(rf"\.{name}\.{digits}{re.escape(suffix)}")
    with suppress(OSError):  # a folder that may be written to, but not listed
        for left in [each for each in folder.iterdir() if temporary.fullmatch(each.name)]:
            # In use, somebody else's, no file or folder, or on a file system without locks.
            with suppress(OSError):
                descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if left.is_dir():
                        _remove_tree(left)
                    else:
                        left.unlink()
                finally:
                    os.close(descriptor)


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
def _naming_others(folder: Path) -> Iterator[None]:
    """Says of a file that could not be read or written which one, where it is not in `folder`."""
    try:
        yield
    except OSError as error:
        name = error.filename
        if not isinstance(name, str | Path) or Path(name).is_relative_to(folder):
            raise
        raise ArtifactError(str(name), found=reason_of(error)) from error


@contextmanager
def _reporting(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"writing {path}",
            found=reason_of(error),
            fix="Nothing was left under that name that was not there before.",
        ) from error


def _remove_tree(folder: Path) -> None:
    import shutil  # brings compressors along, which a reader of bundles has no use for

    shutil.rmtree(folder, ignore_errors=True)
