"""The benchmark of continuous batching answers the same in both of its ways."""

import mmap
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.runtime import kernels
from pl_compile.runtime.engines.memory import zeros_as_touched
from pl_compile.testing import random_table, write_tiny_base

HOME = Path(__file__).parents[2]


@pytest.fixture
def batching(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with short texts: the tiny tokenizer has many tokens for a word."""
    monkeypatch.syspath_prepend(str(HOME / "benchmarks"))
    import batching

    monkeypatch.setattr(batching, "INPUT", 2)
    monkeypatch.setattr(batching, "WRITTEN", 5)
    return batching


@pytest.mark.skipif(
    kernels.library_path() is None,
    reason="needs the C++ kernels (g++ or Clang); without them: "
    "test_memory_is_counted_by_pages_that_were_touched",
)
def test_both_ways_write_the_same_and_are_timed(batching: ModuleType, tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base", "llama", blocks=True)
    table = random_table(base, tmp_path / "table.safetensors")
    options = BuildOptions("int8")
    request = ExportRequest(
        table, base, tmp_path / "bundle", target="native-cpu", options=options, measure_parity=False
    )
    bundle = export_bundle(request).bundle

    found = batching.speed(bundle, rows=3, groups=2, rounds=2)

    assert found["rows"] == 3
    assert min(found.values()) > 0


def test_memory_is_counted_by_pages_that_were_touched(batching: ModuleType) -> None:
    array = zeros_as_touched((8, mmap.PAGESIZE), np.uint8)
    before = batching.resident_bytes(array)

    array[2:5] = 1

    assert (before, batching.resident_bytes(array)) == (0, 3 * mmap.PAGESIZE)
