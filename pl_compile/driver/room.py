"""Is there room on the disk and in memory? Asked before a long step begins."""

import shutil
from pathlib import Path

from pl_compile.errors import ExportError

_MEMINFO = Path("/proc/meminfo")


def check_room(output: Path, *, disk_bytes: int, memory_bytes: int) -> None:
    """Raises `ExportError` if the disk or the memory cannot hold what is about to be made.

    Args:
        output: what will be written; its nearest folder that exists is looked at.
        disk_bytes: that it will take.
        memory_bytes: that making it will take.
    """
    folder = next(path for path in output.absolute().parents if path.exists())
    free = shutil.disk_usage(folder).free
    if free < disk_bytes:
        raise ExportError(
            f"exporting to {output}",
            found=f"{free / 1e6:.0f} MB free on the disk of {folder}",
            expected=f"about {disk_bytes / 1e6:.0f} MB",
            fix="Make room, or choose another --output.",
        )
    memory = available_memory()
    if memory is not None and memory < memory_bytes:
        raise ExportError(
            f"exporting to {output}",
            found=f"{memory / 1e6:.0f} MB of memory available",
            expected=f"about {memory_bytes / 1e6:.0f} MB",
            fix="Close other programs, or export on a larger machine.",
        )


def available_memory() -> int | None:
    """Bytes that a new program can take without swapping; None where nobody says so."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return found[0] * 1024 if found else None
