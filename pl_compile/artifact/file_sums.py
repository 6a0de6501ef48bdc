"""Sums and sizes of a folder's files: recorded when written, compared when read.

Knows nothing of what the files are for. Only plain files inside the folder are opened.
"""

import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from pl_compile.artifact.files import sha256_of
from pl_compile.errors import ArtifactError, list_problems, reason_of


@dataclass(frozen=True)
class FileRecord:
    """One file of a bundle."""

    sha256: str
    size_bytes: int


def records_of(
    folder: Path,
    *,
    left_out: Collection[str] = (),
    noted: Mapping[str, FileRecord] = MappingProxyType({}),
) -> dict[str, FileRecord]:
    """The sum and size of every file in a folder, by its path in it.

    Args:
        folder: all its files are read, except those that are noted.
        left_out: paths in it that get no record.
        noted: records of files in it that have not changed since.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    names = [
        name for name, path in sorted(paths.items()) if name not in left_out and path.is_file()
    ]

    def record(name: str) -> FileRecord:
        path = paths[name]
        return noted.get(name) or FileRecord(sha256_of(path), path.stat().st_size)

    with _readers() as pool:
        return dict(zip(names, pool.map(record, names), strict=True))


def check_files(
    folder: Path,
    files: Mapping[str, FileRecord],
    doing: str,
    *,
    left_out: Collection[str],
    is_read: Callable[[str], bool],
    fix: str,
) -> None:
    """Raises `ArtifactError` unless a folder holds the recorded files, unaltered, and no others.

    Args:
        folder: where the files are.
        files: the record of each.
        doing: what an error says was being done.
        left_out: files without a record that may be there.
        is_read: whether a file is read to compare its sum; names and sizes are always compared.
        fix: what to do about files that are missing or altered.
    """
    for name in files:
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or "\\" in name:
            # Reported without other problems: such a manifest was made to mislead.
            raise ArtifactError(
                doing,
                found=f"the path '{name}' leaves the folder",
                expected="paths inside the bundle",
                fix="Do not use this bundle; export it again.",
            )
    sizes, odd = _regular_files(folder)
    if odd:
        raise ArtifactError(doing, found=list_problems(odd), fix=fix)
    unnoted = sorted(sizes.keys() - files.keys() - {*left_out})
    problems = [f"{name} is not in the manifest" for name in unnoted]

    by_name = {
        name: _problem_of_size(name, record, sizes.get(name)) for name, record in files.items()
    }
    read = [name for name, problem in by_name.items() if not problem and is_read(name)]
    with _readers() as pool:
        found = pool.map(lambda name: _problem_of_sum(name, files[name], folder / name), read)
        by_name |= zip(read, found, strict=True)
    damaged = [problem for problem in by_name.values() if problem]
    if problems and not damaged:
        fix = (
            "Move elsewhere what the manifest does not name: another program may have put it there."
        )
    if problems or damaged:
        raise ArtifactError(doing, found=list_problems(problems + damaged), fix=fix)


def _readers() -> ThreadPoolExecutor:
    """Threads that read files at once: a sum is computed without Python's lock."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))


def _regular_files(folder: Path) -> tuple[dict[str, int], list[str]]:
    """The size of each file by its path in the folder, and a problem for everything else in it.

    Links are not followed, since they may lead out of the folder. Pipes are not opened, since that
    may wait for ever.
    """
    sizes: dict[str, int] = {}
    problems = []
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            entries = list(os.scandir(folder / inside))
        except OSError as error:
            problems.append(f"{inside or 'the folder'} cannot be read ({reason_of(error)})")
            continue
        for entry in entries:
            name = f"{inside}{entry.name}"
            if entry.is_symlink():
                problems.append(f"{name} is a link")
            elif entry.is_dir():
                waiting.append(f"{name}/")
            elif entry.is_file():
                sizes[name] = entry.stat().st_size
            else:
                problems.append(f"{name} is a pipe, a device or a socket")
    return sizes, sorted(problems)


def _problem_of_size(name: str, record: FileRecord, size: int | None) -> str:
    if size is None:
        return f"{name} is missing"
    if size != record.size_bytes:
        return f"{name} has {size} bytes, expected {record.size_bytes}"
    return ""


def _problem_of_sum(name: str, record: FileRecord, path: Path) -> str:
    try:
        found = sha256_of(path)
    except OSError as error:
        return f"{name} cannot be read ({reason_of(error)})"
    if found != record.sha256:
        return f"{name} has sha256 {found}, expected {record.sha256}"
    return ""
