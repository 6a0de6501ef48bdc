"""Prefixes that the kernels hold: in memory once, for all rows that begin with them."""

import ctypes
import weakref

import numpy as np

from pl_compile.artifact.mapped_file import untouch
from pl_compile.config.contract import PrefixBits
from pl_compile.errors import RequestError
from pl_compile.runtime import kernels
from pl_compile.runtime.engines.engine import PrefixKv


class HeldPrefixes:
    """Numbers by which a graph names prefixes.

    A prefix is held as long as its array lives: whoever uses its number keeps the array, too.

    Args:
        bits: of each number: 32 uses the array's own memory; 8 makes codes of all whole chunks of
            128 entries but the first, where heads are a multiple of 32 wide.
    """

    def __init__(self, bits: PrefixBits = 32) -> None:
        self.bits = bits
        path = kernels.library_path()
        assert path is not None
        library = kernels.loaded(path)
        self._hold, self._drop = library.plc_prefix_hold, library.plc_prefix_drop
        self._hold.restype = ctypes.c_int64
        self._hold.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 5]
        self._drop.argtypes = [ctypes.c_int64]
        self._drop.restype = None
        self._numbers: dict[int, int] = {}  # by the array's id

    def number(self, prefix_kv: PrefixKv) -> int:
        """The number of a prefix, which is held from now on.

        Args:
            prefix_kv: float32 `[layers, 2, kv_heads, prefix, head_dim]`, contiguous. Its numbers
                must not change.

        Raises:
            RequestError: there is no memory.
        """
        known = self._numbers.get(id(prefix_kv))
        if known is not None:
            return known
        assert prefix_kv.flags.c_contiguous
        assert prefix_kv.dtype == np.float32
        layers, _, kv_heads, length, head_dim = prefix_kv.shape
        sizes = layers, kv_heads, length, head_dim
        found: int = self._hold(prefix_kv.ctypes.data, *sizes, self.bits)
        if not found:
            raise RequestError("holding a prefix", found="no memory for it")
        if self.bits == 8:
            untouch(prefix_kv)  # what became codes is not read again
        self._numbers[id(prefix_kv)] = found
        weakref.finalize(prefix_kv, self._forget, id(prefix_kv), found)
        return found

    def _forget(self, key: int, number: int) -> None:
        del self._numbers[key]
        self._drop(number)

    def __len__(self) -> int:
        """How many are held."""
        return len(self._numbers)
