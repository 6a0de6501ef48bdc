"""Keys and values of all slots, in the memory that steps read and write in place."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pl_compile.config.contract import GraphContract
from pl_compile.runtime.engines.engine import PrefixKv, Prompt, prefix_length
from pl_compile.runtime.engines.memory import zeros_as_touched


class Caches(Protocol):
    """One array `[max_batch, kv_heads, capacity, head_dim]` for each of the contract's caches."""

    def place(self, slot: int, prefix_kv: PrefixKv) -> None:
        """Writes a prefix `[layers, 2, kv_heads, prefix, head_dim]` at the start of a slot."""

    def copy(self, source: int, target: int, entries: int) -> None:
        """Copies the first entries of a slot over those of another one."""

    def clear(self, slots: Sequence[int]) -> None:
        """Sets slots to zero; see `Rows.clear`."""

    def read(self, slot: int, length: int) -> PrefixKv:
        """The first entries of a slot; see `Rows.cached`."""

    def address(self, index: int, slot: int) -> int:
        """Where a slot of an array begins, in the device's memory."""


class HostCaches:
    """Caches in the process's own memory.

    Slots and entries that were never used take no memory. Memory that was used stays with the
    object, for the next batch.

    Args:
        contract: of the graph, or of the rank's.
        max_batch: slots.
        dtype: of keys and values.
    """

    def __init__(self, contract: GraphContract, max_batch: int, dtype: Any = np.float32) -> None:
        self._contract = contract
        shape = (max_batch, contract.kv_heads, contract.capacity, contract.head_dim)
        self.arrays: list[NDArray[Any]] = [
            zeros_as_touched(shape, dtype) for _ in contract.cache_names
        ]

    def place(self, slot: int, prefix_kv: PrefixKv) -> None:
        """See `Caches.place`."""
        # The arrays are in the order of the prefix: each layer's keys, then its values.
        parts = prefix_kv.reshape(-1, *prefix_kv.shape[2:])
        for array, part in zip(self.arrays, parts, strict=True):
            array[slot, :, : part.shape[1]] = part

    def copy(self, source: int, target: int, entries: int) -> None:
        """See `Caches.copy`."""
        for array in self.arrays:
            array[target, :, :entries] = array[source, :, :entries]

    def clear(self, slots: Sequence[int]) -> None:
        """See `Caches.clear`."""
        for array in self.arrays:
            array[list(slots)] = 0

    def read(self, slot: int, length: int) -> PrefixKv:
        """See `Caches.read`."""
        c = self._contract
        parts = np.stack([array[slot, :, :length].astype(np.float32) for array in self.arrays])
        return parts.reshape(c.layers, 2, c.kv_heads, length, c.head_dim)

    def address(self, index: int, slot: int) -> int:
        """See `Caches.address`."""
        found: int = self.arrays[index][slot:].ctypes.data
        return found


def place_prefix(caches: Caches, slot: int, prompt: Prompt, capacity: int) -> int:
    """Begins a slot; see `PaddedEngine.admit`."""
    length = prefix_length(prompt)
    assert length < capacity
    if prompt.prefix_kv is not None:
        caches.place(slot, prompt.prefix_kv)
    return length
