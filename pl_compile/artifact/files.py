"""Files that are there whole or not at all, and their sums.

A file or folder is written beside its final name, forced to the disk, then renamed: a reader, a
full disk or a killed process never meets half of it. Knows nothing of what the bytes mean.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pl_compile.errors import ArtifactError

_CHUNK_BYTES = 1 << 20


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, replacing what was there only once all of it is on the disk.

    Raises:
        ArtifactError: the folder cannot be made, or the bytes cannot be written (disk full,
            no permission). What `path` held before is still there.
    """
    with _reporting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)  # mkstemp makes files that only their owner can read
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync_rename(path)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `path`; at a clean end it becomes `path`.

    A folder that was at `path` is replaced; if the block raises, it stays and the temporary folder
    is removed.

    Raises:
        ArtifactError: the disk refuses (full, no permission), or `path` is a file.
    """
    with _reporting(path):
        if path.exists() and not path.is_dir():
            raise ArtifactError(
                f"writing {path}", found="a file of that name", fix="Choose another --output."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        staging.chmod(0o755)
        try:
            yield staging
            for file in sorted(staging.rglob("*")):
                _sync(file)
            _sync(staging)
            _replace_folder(staging, path)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


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
    shutil.rmtree(old, ignore_errors=True)
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
