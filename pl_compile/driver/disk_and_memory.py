"""Is there room on the disk and in memory? Asked before a long step begins."""

import shutil
from pathlib import Path

from pl_compile.errors import ExportError

_MEMINFO = Path("/proc/meminfo")


def check_room(output: Path, *, disk_bytes: int, memory_bytes: int) -> None:
    """Raises `ExportError` if the disk or the memory cannot hold what is about to be made.

    Args:
        output: what will be written; its nearest folder that exists is looked at.
        disk_bytes: bytes that it will take.
        memory_bytes: bytes that making it will take.
    """
    folder = next(path for path in output.absolute().parents if path.exists())
    free = shutil.disk_usage(folder).free
    if free < disk_bytes:
        raise ExportError(
            f"exporting to {output}",
            found=f"{_size(free)} free on the disk of {folder}",
            expected=f"about {_size(disk_bytes)}",
            fix="Make room, or choose another --output.",
        )
    check_memory(output, memory_bytes)


def check_memory(output: Path, memory_bytes: int) -> None:
    """Raises `ExportError` if the memory cannot hold so many bytes more.

    Args:
        output: what will be written.
        memory_bytes: that making it will take.
    """
    memory = available_memory()
    if memory is not None and memory < memory_bytes:
        raise ExportError(
            f"exporting to {output}",
            found=f"{_size(memory)} of memory available",
            expected=f"about {_size(memory_bytes)}",
            fix="Close other programs, or export on a larger machine.",
        )


def _size(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count >= 10_000_000 else f"{count / 1e3:.0f} KB"


def available_memory() -> int | None:
    """Bytes that a new program can take without swapping; None where the system does not say."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return found[0] * 1024 if found else None
