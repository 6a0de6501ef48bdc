"""Prefixes of 8 bits and caches of 16: what an export records, and where they are refused."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pl_compile.artifact.bundle import Bundle, read_bundle
from pl_compile.checks.parity import limit_of, self_limit_of
from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import CacheBits
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import ConfigError, ExportError
from pl_compile.runtime import kernels
from pl_compile.runtime.engines.engine import Engine, Fed, Feed
from pl_compile.runtime.engines.onnxruntime.ragged import RaggedEngine
from pl_compile.runtime.engines.opening import open_engine
from pl_compile.runtime.kernels.prefixes import HeldPrefixes
from pl_compile.testing import random_table, write_tiny_base

built = pytest.mark.skipif(
    kernels.library_path() is None,
    reason="needs the C++ kernels (g++ or Clang); without them: "
    "test_an_export_records_the_bits_and_allows_what_they_change",
)


@dataclass(frozen=True)
class Ids:
    """A prompt that begins with a prefix, for rows of ids."""

    rows: Any
    prefix_kv: Any
    task_id: int = 0


def after_prefixes(engine: Engine, feeds: Sequence[Feed]) -> list[Fed]:
    """One step of rows that were just admitted."""
    rows = engine.rows()
    for feed in feeds:
        rows.admit(feed.slot, feed.prompt)
    found = rows.step(feeds)
    rows.retire([feed.slot for feed in feeds])
    return found


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    tmp_path = tmp_path_factory.mktemp("bits")
    base = write_tiny_base(tmp_path / "base", "llama", seed=8, blocks=True)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 900
    # Heads of 32 instead of 16, of the same weights: narrower ones are not held as codes.
    for name in ("num_attention_heads", "num_key_value_heads"):
        config[name] //= 2
    config["head_dim"] *= 2
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    table = random_table(base, tmp_path / "table.safetensors", prefix=True)
    options = BuildOptions("int8", prefix_bits=8)
    request = ExportRequest(
        table, base, tmp_path / "bundle", target="native-cpu", options=options, measure_parity=False
    )

    return read_bundle(export_bundle(request).bundle)


def test_an_export_records_the_bits_and_allows_what_they_change(bundle: Bundle) -> None:
    manifest = json.loads((bundle.folder / "manifest.json").read_text(encoding="utf-8"))

    precision = bundle.manifest.precision
    assert manifest["precision"]["prefix_bits"] == precision.prefix_bits == 8
    assert limit_of(precision).difference >= 0.1
    assert self_limit_of(precision).difference == 0.1


@built
def test_rows_after_codes_are_near_those_after_floats_and_the_same_alone_and_together(
    bundle: Bundle,
) -> None:
    engine = open_engine(bundle)
    assert isinstance(engine, RaggedEngine)
    assert engine.prefixes is not None
    assert engine.prefixes.bits == 8
    graph = bundle.manifest.graph
    assert graph.head_dim == 32
    shape = (graph.layers, 2, graph.kv_heads, 300, graph.head_dim)
    random = np.random.default_rng(0)
    prompt = Ids(np.zeros((0, graph.hidden), np.float32), random.standard_normal(shape, np.float32))
    feeds = [Feed(slot, random.integers(0, 50, 1 + 20 * slot), 300, prompt) for slot in range(3)]
    together = [logits.copy() for logits, _ in after_prefixes(engine, feeds)]
    alone = [after_prefixes(engine, [feed])[0][0].copy() for feed in feeds]
    assert all(np.array_equal(*pair) for pair in zip(together, alone, strict=True))
    precision = replace(bundle.manifest.precision, prefix_bits=32)
    exact = open_engine(replace(bundle, manifest=replace(bundle.manifest, precision=precision)))
    floats = [logits.copy() for logits, _ in after_prefixes(exact, feeds)]
    for rounded, logits in zip(together, floats, strict=True):
        largest = np.abs(rounded - logits).max() / np.abs(logits).max()
        assert largest < 0.1
        assert largest > 0


def test_an_export_records_the_bits_of_caches_and_the_engine_gets_them(
    tmp_path: Path,
) -> None:
    base = write_tiny_base(tmp_path / "base", "llama", blocks=True)
    table = random_table(base, tmp_path / "table.safetensors")

    def exported(bits: CacheBits) -> Bundle:
        request = ExportRequest(
            table,
            base,
            tmp_path / str(bits),
            target="native-cpu",
            options=BuildOptions("none", cache_bits=bits),
            measure_parity=False,
        )
        return read_bundle(export_bundle(request).bundle)

    halves, floats = exported(16), exported(32)

    manifest = json.loads((halves.folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["precision"]["cache_bits"] == 16
    assert halves.manifest.precision.cache_dtype == "float16"
    # What is rounded is not what torch computes.
    assert limit_of(halves.manifest.precision).difference == 0.02
    engines = [open_engine(each) for each in (halves, floats)]
    arrays = [each.caches.arrays for each in engines if isinstance(each, RaggedEngine)]
    assert [each[0].dtype for each in arrays] == [np.float16, np.float32]
    ids = np.arange(20)
    nothing = Ids(np.zeros((0, halves.manifest.graph.hidden), np.float32), None)
    rounded, exact = (
        after_prefixes(each, [Feed(0, ids, 0, nothing)])[0][0].copy() for each in engines
    )
    difference = np.abs(rounded - exact).max() / np.abs(exact).max()
    assert 0 < difference < 1e-3


@pytest.mark.parametrize("bits", [{"prefix_bits": 8}, {"cache_bits": 16}], ids=str)
@pytest.mark.parametrize(("target", "ranks"), [("onnx-cpu", 1), ("native-cpu", 2)])
def test_targets_without_ragged_rows_refuse(
    tiny_bases: dict[str, Path], tmp_path: Path, target: str, ranks: int, bits: dict[str, Any]
) -> None:
    base = tiny_bases["llama"]
    table = random_table(base, tmp_path / "table.safetensors")
    options = BuildOptions("none", ranks=ranks, **bits)

    with pytest.raises(ExportError, match=re.escape(" ".join(map(str, *bits.items())))):
        export_bundle(ExportRequest(table, base, tmp_path / "b", target=target, options=options))


@pytest.mark.parametrize("bits", [{"prefix_bits": 16}, {"cache_bits": 8}], ids=str)
def test_other_bits_are_refused(bits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=" ".join(map(str, *bits.items()))):
        BuildOptions(**bits)


@built
@pytest.mark.parametrize("shape", [(2, 2, 3, 300, 64), (1, 2, 1, 255, 64), (1, 2, 1, 300, 48)])
def test_prefixes_of_any_size_are_held(shape: tuple[int, ...]) -> None:
    held = HeldPrefixes(8)
    prefix = np.random.default_rng(0).standard_normal(shape, np.float32)

    number = held.number(prefix)

    assert number > 0
    assert held.number(prefix) == number
    del prefix
    assert not len(held)
