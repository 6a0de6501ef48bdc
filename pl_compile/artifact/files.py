"""Writes files and folders whole or not at all, and computes sums of files.

A file or folder is written beside its final name, forced to the disk, then renamed. So no reader
sees half of it, and a full disk or a kill leaves no half of it under that name. The writer holds a
lock on it for that time. What is not locked was left by a killed process, and the next one to
write under that name removes it. Knows nothing of what the bytes mean.
"""

import errno
import hashlib
import os
import re
import stat
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from pl_compile.errors import ArtifactError, reason_of

_CHUNK_BYTES = 1 << 17

# A temporary name is the final name and this many random bytes.
_RANDOM_BYTES = 4

# Names of descriptors that a process holds open; /dev/stdout and /dev/fd/1 are links to such names.
_DESCRIPTOR = re.compile(
    r"(?P<owner>/proc/(?P<process>[0-9]+)(/task/[0-9]+)?|/dev)/fd/(?P<number>[0-9]+)"
)
_MOST_LINKS = 40  # as many as Linux follows

# Files that file managers and network file systems leave in any folder; they may be removed.
_LEFT_BY_OTHERS = re.compile(r"\.DS_Store|\._.*|\.directory|Thumbs\.db|desktop\.ini|\.nfs[0-9a-f]+")

_UNCHANGED = "Nothing was left under that name that was not there before."

Ours: TypeAlias = Callable[[Path], Collection[str]]
"""The files that we wrote into a folder, by their paths in it; none where the folder is not ours.
"""


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, replacing what was there only once all of it is on the disk.

    A file that replaces another gets its mode, and its owner where the system allows it. To a
    pipe, a device or an open descriptor (/dev/stdout) the bytes are added.

    Raises:
        ArtifactError: the folder cannot be made, or the bytes cannot be written (disk full,
            no permission). What `path` held before is still there.
        BrokenPipeError: the reader of an open descriptor has gone.
    """
    check_writable(path)
    if (descriptor := _descriptor_of(path)) is not None:
        _add_to(descriptor, path, data)
        return
    with _reporting(path):
        path = resolved(path)  # a link stays a link: the file that it leads to is written
        if path.exists() and not path.is_file():
            path.write_bytes(data)  # a pipe or a device: there is nothing to replace
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(path)
        like = path.stat() if path.exists() else None
        beside, opened = _new_beside(path, partial(_new_file, like=like))
        try:
            with os.fdopen(opened, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        _sync_rename(path)


def check_writable(path: Path) -> None:
    """Raises `ArtifactError` where `write_atomically` would, as far as can be told in advance.

    Called before long work. Some failures (a full disk) show only when it is written.

    Args:
        path: the name of a file; its content is not read.
    """
    with _reporting(path):
        descriptor = _descriptor_of(path)
        number = None if descriptor is None else _own_number(descriptor)
        if number is not None and not _is_for_writing(number):
            raise OSError(errno.EBADF, "open for reading only")
        if descriptor is None and path.is_dir():
            raise ArtifactError(f"writing {path}", found="a folder", fix="Name a file in it.")
        if number is None:
            _check_access(path, descriptor or resolved(path))


def resolved(path: Path) -> Path:
    """A path without links and without `..`; links in a circle stay as they are."""
    return Path(os.path.realpath(path))


def is_open_descriptor(path: Path) -> bool:
    """Whether a path names an open descriptor of a process, as /dev/stdout and /dev/fd/1 do."""
    return _descriptor_of(path) is not None


def append_line(path: Path, line: str) -> None:
    """Adds a line to the log of a run.

    Raises:
        ArtifactError: it cannot be written; a part of the line may be there.
    """
    fix = "Its last line may be cut. Make room, and go on with --resume."
    with _reporting(path, fix), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


@contextmanager
def folder_written_whole(path: Path, *, ours: Ours) -> Iterator[Path]:
    """Gives a temporary folder beside `path`; if the block ends without error, it becomes `path`.

    A folder of ours that was at `path` is replaced, and the new one gets its mode. If the block
    raises, the old folder stays and the temporary one is removed. A kill leaves the temporary
    folder (`.NAME.…`). A kill between the two renames of a replacement leaves the old folder too
    (`.NAME.….old`). The next write under this name removes the first when it begins, the second
    when it ends.

    Args:
        path: the final name.
        ours: which files of a folder may be replaced.

    Raises:
        ArtifactError: it cannot be written (disk full, no permission), `path` is a file, or a
            folder with files in it that are not ours.
    """
    check_replaceable(path, ours)
    with _reporting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(path)
        like = path.stat() if path.exists() else None
        staging, lock = _new_beside(path, partial(_new_folder, like=like))
        try:
            with _naming_others(staging):
                yield staging
            for file in sorted(staging.rglob("*")):
                _sync(file)
            _sync(staging)
            check_replaceable(path, ours)  # a file may have been put there meanwhile
            _replace_folder(staging, path)
        except BaseException:
            _remove_tree(staging)
            raise
        finally:
            os.close(lock)
        _remove_left_behind(path, suffix=".old")


def remove_left_behind_in(folder: Path) -> None:
    """Removes what killed processes left in a folder of ours, under any name.

    Not needed for a name that is written again: the write removes what was left of that name.
    """
    _remove_unlocked(folder, ".+")


def check_replaceable(
    path: Path, ours: Ours, *, option: str = "--output", in_place: bool = False
) -> None:
    """Raises `ArtifactError` unless a folder may be written under this name.

    Args:
        path: the name; nothing, an empty folder, or a folder with nothing but ours may be there.
        ours: which files of a folder may be replaced.
        option: the option of the command line that gives the name, for messages.
        in_place: whether only files in the folder are replaced, and not the folder itself.
    """
    fix = f"Choose another {option}."
    with _reporting(path):
        if path.exists() and not path.is_dir():
            found = "a file of that name"
        elif path.is_dir() and path.samefile(Path.cwd()) and not in_place:
            found = "the current folder, which cannot be replaced by another"
        elif path.is_mount() and not in_place:
            found = "a mounted volume, which cannot be replaced by another folder"
            fix = "Choose a folder in it."
        elif path.is_dir() and (others := list(islice(_files_besides(path, ours(path)), 4))):
            named = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
            found = f"a folder with other things in it: {named}"
            them = "it" if len(others) == 1 else "them"
            fix = f"Move {them} elsewhere, or choose another {option}."
        else:
            _check_access(path, resolved(path))
            return
    raise ArtifactError(f"writing {path}", found=found, fix=fix)


def _files_besides(folder: Path, ours: Collection[str]) -> Iterator[str]:
    """The paths of files in a folder that are not `ours` and not `_LEFT_BY_OTHERS`."""
    for at, folders, files in os.walk(folder, onerror=_raise):
        links = [name for name in folders if (Path(at) / name).is_symlink()]
        for name in sorted([*files, *links]):
            inside = (Path(at) / name).relative_to(folder).as_posix()
            if inside not in ours and not _LEFT_BY_OTHERS.fullmatch(name):
                yield inside


def _raise(error: OSError) -> None:
    raise error


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
            error.filename = str(path)  # the system names it only in errors of opening
            raise
    return digest.hexdigest()


def _new_beside(path: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """A new file or folder beside `path`, and a descriptor that locks it until it is closed.

    A killed process holds no lock: so `_remove_left_behind` knows what is still in use.
    """
    import fcntl  # there is none on Windows, where bundles can be read

    while True:
        beside = path.with_name(f".{path.name}.{os.urandom(_RANDOM_BYTES).hex()}")
        descriptor = make(beside)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)  # another process is removing it: it was not locked yet
            continue
        except OSError:
            # A file system without locks: no other process removes it there.
            return beside, descriptor
        if beside.exists():
            return beside, descriptor
        os.close(descriptor)  # it was removed before it was locked


def _new_file(path: Path, like: os.stat_result | None) -> int:
    # 0o666 less the umask, as usual. Never more permissions than the file that it replaces.
    mode = 0o666 if like is None else stat.S_IMODE(like.st_mode) & 0o777
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    _own_like(descriptor, like, mode)
    return descriptor


def _new_folder(path: Path, like: os.stat_result | None) -> int:
    mode = 0o777 if like is None else stat.S_IMODE(like.st_mode) & 0o777
    path.mkdir(mode)
    descriptor = os.open(path, os.O_RDONLY)
    _own_like(descriptor, like, mode)
    return descriptor


def _own_like(descriptor: int, like: os.stat_result | None, mode: int) -> None:
    """Gives a new file or folder the owner and the mode of the one that it replaces."""
    if like is not None:
        # Only root can change an owner, and a file system may know neither owners nor modes.
        for owner, group in ((like.st_uid, -1), (-1, like.st_gid)):
            with suppress(OSError):
                os.fchown(descriptor, owner, group)
        with suppress(OSError):
            os.fchmod(descriptor, mode)


def _check_access(path: Path, at: Path) -> None:
    """Raises `ArtifactError` where the system does not let a file be written or replaced.

    Args:
        path: its name in messages.
        at: the same path without links, or an open descriptor of another process.
    """
    replaced = at.is_file() or at.is_dir()
    if not at.exists():
        needed = [next(folder for folder in at.parents if folder.exists())]
        if not needed[0].is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{needed[0]} is a file, and no folder")
    elif replaced and not _DESCRIPTOR.fullmatch(str(at)):
        needed = [at, at.parent]
    else:
        needed = [at]
    for each in needed:
        if not os.access(each, os.W_OK):
            raise ArtifactError(
                f"writing {path}",
                found=f"{each} may not be written to",
                fix="Write elsewhere, or let it be written to: chmod u+w.",
            )


def _descriptor_of(path: Path) -> Path | None:
    """The open descriptor that a name such as /dev/stdout leads to, or None.

    It may lead to a file. That file is not replaced: its reader and other writers hold it open.
    """
    for _ in range(_MOST_LINKS):
        path = resolved(path.parent) / path.name
        if _DESCRIPTOR.fullmatch(str(path)):
            return path
        if not os.path.islink(path):  # no error where the system does not let it be seen
            return None
        path = path.parent / path.readlink()
    return None


def _own_number(descriptor: Path) -> int | None:
    """The number of a descriptor of this process; None for a descriptor of another one."""
    match = _DESCRIPTOR.fullmatch(str(descriptor))
    assert match is not None
    own = match["process"] in (None, str(os.getpid()))
    return int(match["number"]) if own else None


def _is_for_writing(number: int) -> bool:
    import fcntl  # there is none on Windows, where bundles can be read

    return fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


def _add_to(descriptor: Path, path: Path, data: bytes) -> None:
    """Writes to an open descriptor, named `path`, after what was written to it before."""
    number = _own_number(descriptor)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # so that earlier output stays before it
    with _reporting(path, "What was written before that is there."):
        if number is None:
            opened = os.open(descriptor, os.O_WRONLY | os.O_APPEND)
        else:  # opening it again would write a file from its start, and a socket cannot be opened
            opened = os.dup(number)
        with os.fdopen(opened, "wb") as file:
            file.write(data)


def _remove_left_behind(path: Path, suffix: str = "") -> None:
    """Removes what killed processes left beside `path`."""
    _remove_unlocked(path.parent, re.escape(path.name), suffix)


def _remove_unlocked(folder: Path, name: str, suffix: str = "") -> None:
    """Removes what has a temporary name for `name` (a pattern) and is not locked by a process."""
    import fcntl

    digits = f"[0-9a-f]{{{2 * _RANDOM_BYTES}}}"
    temporary = re.compile(rf"\.{name}\.{digits}{re.escape(suffix)}")
    with suppress(OSError):  # a folder that may be written to, but not listed
        for left in [each for each in folder.iterdir() if temporary.fullmatch(each.name)]:
            # Left alone: what is in use, not ours, not a file or folder, or cannot be locked.
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
    # A rename cannot replace a folder that holds files, so the old one is renamed first.
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
    # The new content is in place already, even if the file system cannot sync a folder.
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
    """Turns an error about a file outside `folder` into one that names the file."""
    try:
        yield
    except OSError as error:
        name = error.filename
        if not isinstance(name, str | Path) or Path(name).is_relative_to(folder):
            raise
        raise ArtifactError(str(name), found=reason_of(error)) from error


@contextmanager
def _reporting(path: Path, fix: str = _UNCHANGED) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # the reader has gone: that is not an error of the file
    except OSError as error:
        raise ArtifactError(f"writing {path}", found=reason_of(error), fix=fix) from error


def _remove_tree(folder: Path) -> None:
    import shutil  # imports compressors, which a reader of bundles does not need

    shutil.rmtree(folder, ignore_errors=True)
