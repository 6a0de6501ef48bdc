"""What caches cost: the pages that rows in use lie on, and no others."""

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from pl_compile.config.contract import GraphContract
from pl_compile.errors import RequestError
from pl_compile.runtime.engines import memory
from pl_compile.runtime.engines.caches import HostCaches
from pl_compile.runtime.engines.memory import give_back, zeros_as_touched

PAGEMAP = Path("/proc/self/pagemap")
IN_MEMORY = 0b11 << 62  # in a word of the page map: present, or swapped out

# Keys and values of 3 heads of 64, as the default base has them; with room for 64 pages of each
# head's, and between 5 and 6 of them in use, whatever a page is on this machine.
ON_A_PAGE = mmap.PAGESIZE // (4 * 64)
ENTRIES = 5 * ON_A_PAGE + ON_A_PAGE // 2
CONTRACT = GraphContract(
    layers=2,
    kv_heads=3,
    head_dim=64,
    hidden=192,
    vocab=32,
    capacity=64 * ON_A_PAGE,
    prompts="input",
)

needs_page_map = pytest.mark.skipif(
    not PAGEMAP.exists(),
    reason="needs /proc/self/pagemap of Linux; what the arrays hold, anywhere: "
    "test_other_systems_get_arrays_of_numpy",
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


def filled(rows: int, *, max_batch: int) -> tuple[HostCaches, int]:
    """Caches with `ENTRIES` in so many rows, and the bytes of these entries."""
    caches = HostCaches(CONTRACT, max_batch)
    c = CONTRACT
    prefix = np.ones((c.layers, 2, c.kv_heads, ENTRIES, c.head_dim), np.float32)
    for row in range(rows):
        caches.place(row, prefix)
    return caches, rows * prefix.nbytes


def a_page_each(rows: int) -> int:
    """A page per head and row, in the keys and in the values of each layer."""
    return mmap.PAGESIZE * CONTRACT.layers * 2 * CONTRACT.kv_heads * rows


@needs_page_map
@pytest.mark.parametrize(("rows", "max_batch"), [(16, 16), (5, 32)])
def test_caches_hold_the_entries_in_use_and_at_most_a_page_per_head_and_row(
    rows: int, max_batch: int
) -> None:
    caches, in_use = filled(rows, max_batch=max_batch)

    held = sum(bytes_held(array) for array in caches.arrays)

    assert in_use <= held <= in_use + a_page_each(rows)


@needs_page_map
def test_rows_that_are_copied_take_the_pages_of_their_entries() -> None:
    caches, in_use = filled(7, max_batch=16)

    caches.copy(5, 7, ENTRIES)

    held = sum(bytes_held(array) for array in caches.arrays)
    assert held <= in_use / 7 * 8 + a_page_each(8)
    np.testing.assert_array_equal(caches.arrays[1][7, :, :ENTRIES], 1)


@needs_page_map
def test_an_array_that_was_never_written_to_takes_no_memory() -> None:
    array = zeros_as_touched((16, 3, 1024, 64), np.float32)

    assert array.ctypes.data % mmap.PAGESIZE == 0
    assert bytes_held(array) == 0
    array[7, 1, 100] = 1
    assert bytes_held(array) == mmap.PAGESIZE


@needs_page_map
def test_what_is_given_back_takes_no_memory_and_the_rest_stays() -> None:
    # Two pages and a half for each of its parts.
    array = zeros_as_touched((8, 5 * mmap.PAGESIZE // 2), np.uint8)
    array[:] = 7

    give_back(array, 1, 4)

    # The parts begin at 2.5 pages and end at 10: of the page that the first one shares, all stays.
    assert bytes_held(array) == (20 - 7) * mmap.PAGESIZE
    assert (array[0] == 7).all()
    assert (array[4:] == 7).all()
    assert (array[2:4] == 0).all()
    array[3] = 1
    assert (array[3] == 1).all()


def test_what_numpy_holds_is_not_given_back() -> None:
    array = np.ones((4, 3 * mmap.PAGESIZE), np.uint8)

    give_back(array, 1, 3)

    assert (array == 1).all()


def test_other_systems_get_arrays_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(memory, "mmap", None)

    array = zeros_as_touched((2, 3), np.float16)

    np.testing.assert_array_equal(array, np.zeros((2, 3), np.float16), strict=True)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 3)])
def test_an_array_without_numbers_is_empty(shape: tuple[int, ...]) -> None:
    array = zeros_as_touched(shape, np.float32)

    np.testing.assert_array_equal(array, np.zeros(shape, np.float32), strict=True)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="needs Linux; elsewhere: test_other_systems_get_arrays_of_numpy",
)
def test_memory_that_is_not_there_is_told_with_what_needs_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refused)

    with pytest.raises(RequestError) as error:
        zeros_as_touched((3, 1000), np.float32)

    assert str(error.value) == (
        "taking memory for the rows of a batch: 12000 bytes, which the system refuses; expected as "
        "many as it has left. Lower --batch (max_batch) or --context-mib, or export with a smaller "
        "--capacity."
    )


@pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="needs Linux; elsewhere: test_other_systems_get_arrays_of_numpy",
)
def test_a_kernel_without_large_pages_is_no_hindrance(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutAdvice(mmap.mmap):
        def madvise(self, *_: object) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", WithoutAdvice)

    array = zeros_as_touched((2, 3), np.float32)
    array[1] = 5

    assert array.tolist() == [[0, 0, 0], [5, 5, 5]]
