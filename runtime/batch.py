"""Rows of different lengths as one array."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


def pad_right(rows: Sequence[Int64]) -> tuple[Int64, Int64]:
    """Rows padded with 0 on the right, and their lengths.

    Args:
        rows: int64 `[seq]` each, at least one.

    Returns:
        int64 `[batch, longest]` and int64 `[batch]`.
    """
    lengths = np.asarray([len(row) for row in rows], np.int64)
    padded = np.zeros((len(rows), int(lengths.max())), np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded, lengths
