"""What caches cost: the pages that rows in use lie on, and no others."""

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from pl_compile.config.contract import GraphContract
from pl_compile.runtime.engines import memory
from pl_compile.runtime.engines.caches import HostCaches
from pl_compile.runtime.engines.memory import zeros_as_touched

PAGEMAP = Path("/proc/self/pagemap")
IN_MEMORY = 0b11 << 62  # in a word of the page map: present, or swapped out

# Keys and values of 3 heads of 64, as the default base has them.
CONTRACT = GraphContract(
    layers=2, kv_heads=3, head_dim=64, hidden=192, vocab=32, capacity=1024, prompts="input"
)

needs_page_map = pytest.mark.skipif(
    not PAGEMAP.exists(), reason="no /proc/self/pagemap, which only Linux has: pages are not listed"
)


def bytes_held(array: np.ndarray) -> int:
    """What the pages of an array take that were ever written to."""
    page = mmap.PAGESIZE
    first, end = array.ctypes.data // page, -(-(array.ctypes.data + array.nbytes) // page)
    with PAGEMAP.open("rb") as words:
        words.seek(8 * first)
        pages = np.frombuffer(words.read(8 * (end - first)), np.uint64)
    assert len(pages) == end - first
    return page * int(np.count_nonzero(pages & np.uint64(IN_MEMORY)))


def filled(rows: int, entries: int, *, max_batch: int) -> tuple[HostCaches, int]:
    """Caches with so many entries in so many rows, and the bytes of these entries."""
    caches = HostCaches(CONTRACT, max_batch)
    c = CONTRACT
    prefix = np.ones((c.layers, 2, c.kv_heads, entries, c.head_dim), np.float32)
    for row in range(rows):
        caches.place(row, prefix)
    return caches, rows * prefix.nbytes


@needs_page_map
@pytest.mark.parametrize(("rows", "max_batch"), [(16, 16), (5, 32)])
def test_caches_hold_at_most_a_fifth_more_than_the_entries_in_use(
    rows: int, max_batch: int
) -> None:
    caches, in_use = filled(rows, 90, max_batch=max_batch)

    held = sum(bytes_held(block) for block in caches.blocks)

    assert in_use <= held <= 1.2 * in_use


@needs_page_map
def test_rows_that_move_up_or_are_copied_take_the_pages_of_their_entries() -> None:
    caches, in_use = filled(8, 90, max_batch=16)

    caches.keep([5, 7, 7], 90)

    assert sum(bytes_held(block) for block in caches.blocks) <= 1.2 * in_use
    np.testing.assert_array_equal(caches.blocks[1][1, :, :90], 1)


@needs_page_map
def test_an_array_that_nobody_wrote_to_takes_no_memory() -> None:
    array = zeros_as_touched((16, 3, 1024, 64), np.float32)

    assert array.ctypes.data % mmap.PAGESIZE == 0
    assert bytes_held(array) == 0
    array[7, 1, 100] = 1
    assert bytes_held(array) == mmap.PAGESIZE


def test_other_systems_get_arrays_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(memory, "mmap", None)

    array = zeros_as_touched((2, 3), np.float16)

    np.testing.assert_array_equal(array, np.zeros((2, 3), np.float16), strict=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the advice is Linux's")
def test_a_kernel_without_large_pages_is_no_hindrance(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutAdvice(mmap.mmap):
        def madvise(self, *_: object) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", WithoutAdvice)

    array = zeros_as_touched((2, 3), np.float32)
    array[1] = 5

    assert array.tolist() == [[0, 0, 0], [5, 5, 5]]
