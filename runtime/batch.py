"""Rows of different lengths as one array, and which rows may share one."""

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


def parts_that_fit(
    lengths: Sequence[int], prefixes: Sequence[int], *, capacity: int, max_batch: int
) -> list[slice]:
    """Consecutive rows that can step together.

    The first step writes as many entries behind every row's prefix as the longest row has tokens.
    So a long row and a row with a long prefix may have to step apart, though each of them fits.

    Args:
        lengths: tokens of each row's first step.
        prefixes: cache entries that each row holds before it; with the length at most `capacity`.
        capacity: cache entries of a row.
        max_batch: rows of the cache.
    """
    parts: list[slice] = []
    start = longest = prefix = 0
    for index, (length, entries) in enumerate(zip(lengths, prefixes, strict=True)):
        longest, prefix = max(longest, length), max(prefix, entries)
        if index - start == max_batch or longest + prefix > capacity:
            parts.append(slice(start, index))
            start, longest, prefix = index, length, entries
    if len(lengths):
        parts.append(slice(start, len(lengths)))
    return parts
