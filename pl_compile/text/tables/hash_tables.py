"""Tables with open addressing and linear probing, made by numpy.

An entry stands at the place that its hash says, or at the first free one behind it; the place
behind the last is the first. A search ends at an empty place, so some place is always empty.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

EMPTY = 0xFFFFFFFF

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FNV_START, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_HALF = np.uint64(32)

UInt64 = NDArray[np.uint64]


def merge_table(merges: Mapping[tuple[int, int], tuple[int, int]]) -> bytes:
    """Rank and merged id by a pair of ids; uint32 [capacity, 4]: left, right, rank, merged."""
    rows = np.array([(*pair, *found) for pair, found in merges.items()], np.uint64).reshape(-1, 4)
    keys = (rows[:, 0] << _HALF | rows[:, 1]) * _GOLDEN
    table = np.full((_capacity(len(rows)), 4), EMPTY, "<u4")
    table[_places(keys ^ keys >> _HALF, len(table))] = rows
    return table.tobytes()


def id_table(ids: Mapping[bytes, int]) -> bytes:
    """Ids by the bytes of their tokens; uint32 [capacity], empty bytes for no ids at all."""
    if not ids:
        return b""
    table = np.full(_capacity(len(ids)), EMPTY, "<u4")
    table[_places(_fnv(list(ids)), len(table))] = list(ids.values())
    return table.tobytes()


def _capacity(entries: int) -> int:
    """A power of two, and at least twice as many as there are entries."""
    return max(16, 1 << (2 * entries - 1).bit_length())


def _places(hashes: UInt64, capacity: int) -> NDArray[np.int64]:
    """A place of its own for each hash; [entries] each.

    All entries try their place at once. Of those that want the same free place the first one gets
    it, and the others try the next one.
    """
    places = (hashes & np.uint64(capacity - 1)).astype(np.int64)
    taken = np.zeros(capacity, np.bool_)
    waiting = np.arange(len(places))
    while len(waiting):
        wanted = places[waiting]
        firsts = np.unique(wanted, return_index=True)[1]
        got = firsts[~taken[wanted[firsts]]]
        taken[wanted[got]] = True
        waiting = np.delete(waiting, got)
        places[waiting] = (places[waiting] + 1) % capacity
    return places


def _fnv(texts: list[bytes]) -> UInt64:
    """64-bit FNV-1a of each text, folded; [texts]."""
    lengths = np.array([len(text) for text in texts])
    starts = np.cumsum(lengths) - lengths
    content = np.frombuffer(b"".join(texts), np.uint8).astype(np.uint64)
    hashes = np.full(len(texts), _FNV_START)
    going_on = np.arange(len(texts))
    for place in range(lengths.max()):
        going_on = going_on[lengths[going_on] > place]
        read = content[starts[going_on] + place]
        hashes[going_on] = (hashes[going_on] ^ read) * _FNV_PRIME
    found: UInt64 = hashes ^ hashes >> _HALF
    return found
