"""Medians with their spread, and percentiles."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """A figure that was measured several times.

    Attributes:
        median: of the samples.
        least: the smallest of them.
        most: the largest.
        samples: all of them, in the order in which they were measured.
    """

    median: float
    least: float
    most: float
    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """The spread of at least one sample."""
        ordered = sorted(samples)
        return cls(float(np.median(ordered)), ordered[0], ordered[-1], tuple(samples))


@dataclass(frozen=True)
class Percentiles:
    """What half, 95 % and 99 % of some times do not exceed; between two of them, interpolated.

    Attributes:
        count: how many times there are.
        mean: of all of them.
        p50: half of them are at most this.
        p95: 95 % of them.
        p99: 99 % of them.
        most: the longest.
    """

    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    most: float

    @classmethod
    def of(cls, times: Sequence[float]) -> "Percentiles | None":
        """The percentiles of some times; None where there are none."""
        if not times:
            return None
        p50, p95, p99, most = (float(each) for each in np.quantile(times, (0.5, 0.95, 0.99, 1)))
        return cls(len(times), float(np.mean(times)), p50, p95, p99, most)
