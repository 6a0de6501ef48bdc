"""What a part is given, and how it reports what it found."""

import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pl_compile.errors import MissingExtraError


class MissingError(Exception):
    """Something that a part needs and this machine does not have."""


class OutOfTimeError(Exception):
    """The time that a part has left is too short for its next step: the part ends."""


@dataclass(frozen=True)
class Job:
    """What a part is asked to do.

    Attributes:
        what: the text after the hyphen in the name of the part, such as "float16".
        device: "cuda", or "cpu" for stand-ins.
        seconds: the limit of the whole part.
        work: a folder for bases and bundles, shared by all parts.
        began: when this process started to work, by `time.monotonic`.
    """

    what: str
    device: str
    seconds: float
    work: Path
    began: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "work", Path(self.work))

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU."""
        return self.device == "cuda"

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return self.began + self.seconds - time.monotonic()


class Report:
    """Hands out results, each as soon as it is known.

    Args:
        write: takes a result: `name`, `value`, and, where something was expected, `expected` in
            words and `ok`.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self._write = write

    def figure(self, name: str, value: Any) -> None:
        """Reports something that was measured."""
        self._write({"name": name, "value": value})

    def expect(self, name: str, value: Any, expected: str, ok: bool) -> None:
        """Reports something that had to be so."""
        self._write({"name": name, "value": value, "expected": expected, "ok": bool(ok)})

    def at_most(self, name: str, value: float, limit: float) -> None:
        """Reports a number that must not exceed a limit; NaN counts as larger."""
        self.expect(name, value, f"at most {limit:.3g}", value <= limit)

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """What is inside may fail; the part goes on."""
        try:
            yield
        except OutOfTimeError:
            raise
        except Exception as error:
            if is_missing(error):
                self.figure(name, f"missing: {one_line(error)}")
            else:
                traceback.print_exc()
                self.expect(name, one_line(error), "no error", False)


def is_missing(error: Exception) -> bool:
    """Whether an error says only that this machine lacks something."""
    if isinstance(error, ModuleNotFoundError):
        # A missing name of ours, or one that moved inside an installed package, is a mistake.
        return (error.name or "").partition(".")[0] not in ("pl_compile", "gpu_parts")
    return isinstance(error, MissingError | MissingExtraError)


def one_line(error: BaseException) -> str:
    """An error as one line, with its cause."""
    text = " ".join(str(error).split())
    line = f"{type(error).__name__}: {text}"[:400] if text else type(error).__name__
    return line if error.__cause__ is None else f"{line} (because of {one_line(error.__cause__)})"


def median_seconds(work: Callable[[], object], repeats: int, wait: Callable[[], object]) -> float:
    """The median time of `work`, after one call that is not counted.

    Args:
        work: what is timed.
        repeats: how often.
        wait: returns when the device has finished its work.
    """
    times = []
    for _ in range(repeats + 1):
        wait()
        started = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def waiter(device: str) -> Callable[[], object]:
    """A function that waits for torch's work on a device."""
    import torch

    return torch.cuda.synchronize if device == "cuda" else (lambda: None)
