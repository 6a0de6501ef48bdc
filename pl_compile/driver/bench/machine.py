"""The machine that measures, and what processes take of it. Linux says most of it.

Where a system does not say something, it is None or empty: a report is complete without it.
"""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pl_compile import __version__

_PROC = Path("/proc")
_MIB = 2**20

_PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tokenizers",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13",
)


@dataclass(frozen=True)
class Machine:
    """A machine.

    Attributes:
        processor: its name, as the system has it.
        architecture: such as "x86_64".
        system: its kernel, such as "Linux 6.1.0".
        cores: that the system counts: two for a core with two threads.
        usable_cores: those that this process may use.
        memory_mib: of the machine; None where the system does not say.
    """

    processor: str
    architecture: str
    system: str
    cores: int
    usable_cores: int
    memory_mib: int | None


def this_machine() -> Machine:
    """The machine that runs this process."""
    cores = os.cpu_count() or 1
    affinity = getattr(os, "sched_getaffinity", None)
    kibibytes = _number_in(_text_of(_PROC / "meminfo"), "MemTotal")
    return Machine(
        processor=_processor(),
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        cores=cores,
        usable_cores=cores if affinity is None else len(affinity(0)),
        memory_mib=None if kibibytes is None else kibibytes // 1024,
    )


def versions() -> dict[str, str]:
    """The versions of this project, of Python, and of the packages that compute."""
    found = {"plc": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Memory:
    """What a process and its children hold, added up. Pages that they share count for each.

    Attributes:
        resident_mib: in memory now, mapped files included.
        peak_mib: the sum of the most that each of them held.
        anonymous_mib: of the resident ones, those that no file backs.
    """

    resident_mib: float
    peak_mib: float
    anonymous_mib: float


def memory_of(process: int) -> Memory | None:
    """The memory of a process and all its children; None where the system does not say."""
    texts = [_text_of(_PROC / str(each) / "status") for each in tree_of(process)]
    sums = []
    for key in ("VmRSS", "VmHWM", "RssAnon"):
        numbers = [_number_in(text, key) for text in texts]
        sums.append(sum(number for number in numbers if number is not None) * 1024 / _MIB)
    return Memory(*sums) if sums[0] else None


def tree_of(process: int) -> list[int]:
    """A process and all its children that live, as ids."""
    found, left = [], [process]
    while left:
        each = left.pop()
        found.append(each)
        left += _children_of(each)
    return found


def _children_of(process: int) -> Iterator[int]:
    for task in (_PROC / str(process) / "task").glob("*/children"):
        yield from map(int, _text_of(task).split())


class Watch:
    """How much of the machine's processors others use, from now on.

    Args:
        processes: that do not count as others, with their children.
    """

    def __init__(self, *processes: int) -> None:
        self._processes = processes
        self._before = self._ticks()

    def others(self) -> float | None:
        """The share of all processors' time that other processes took; None if it is not known."""
        now, before = self._ticks(), self._before
        if now is None or before is None or now[0] <= before[0]:
            return None
        total, busy, own = (after - earlier for after, earlier in zip(now, before, strict=True))
        return min(1.0, max(0.0, (busy - own) / total))

    def _ticks(self) -> tuple[int, int, int] | None:
        """Ticks of all processors, of those the busy ones, and of the busy ones ours."""
        text = _text_of(_PROC / "stat")
        if not text:
            return None
        # user, nice, system, idle, iowait, irq, softirq, steal: guests are part of user.
        ticks = [int(each) for each in text.split("\n", 1)[0].split()[1:9]]
        own = 0
        for process in {each for root in self._processes for each in tree_of(root)}:
            fields = _text_of(_PROC / str(process) / "stat").rpartition(")")[2].split()
            own += sum(int(each) for each in fields[11:13])  # utime and stime
        return sum(ticks), sum(ticks) - ticks[3] - ticks[4], own


def _processor() -> str:
    for line in _text_of(_PROC / "cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor()


def _text_of(path: Path) -> str:
    """What a file of the system holds; empty where it is not there, or no more."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number_in(text: str, key: str) -> int | None:
    """The number of a line `key: number unit`."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0])
    return None
