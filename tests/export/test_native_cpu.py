"""Target `native-cpu`: near torch, rows bit-equal, and the same where the kernels are missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from pl_compile.artifact.bundle import read_bundle
from pl_compile.checkpoints.checkpoint import open_checkpoint
from pl_compile.checks.arithmetic import kernels_of
from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import ExportResult, export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.verify import verify_bundle
from pl_compile.errors import ArtifactError, ExportError
from pl_compile.exporters.native.cpu import kernels_needed
from pl_compile.families.registry import FAMILIES
from pl_compile.quantize.scheme import Scheme, round_to_nearest
from pl_compile.runtime import kernels
from pl_compile.runtime.requests import Request
from pl_compile.runtime.session import Session
from pl_compile.testing import random_table, write_tiny_base
from pl_compile.weights.bases import DEFAULT_BASE, cached_base_folder

Exported = Callable[..., ExportResult]
OPTIONS = [
    BuildOptions("none"),
    BuildOptions("int8"),
    BuildOptions("int4"),
    BuildOptions("int4", 32, 4),
    BuildOptions("int8", cache_bits=16),
]


@pytest.fixture(scope="module")
def block_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("native-bases")
    # Random weights with which most tokens agree in 4 bits: not all do.
    return {f: write_tiny_base(root / f, f, seed=8, blocks=True) for f in FAMILIES}


@pytest.fixture
def exported(block_bases: dict[str, Path], tmp_path: Path) -> Exported:
    def export(family: str = "llama", name: str = "bundle", **changes: Any) -> ExportResult:
        base = block_bases[family]
        table = tmp_path / f"{family}.safetensors"
        if not table.exists():
            random_table(base, table, prefix=True)
        request = ExportRequest(table, base, tmp_path / name, target="native-cpu", **changes)
        return export_bundle(request)

    return export


@pytest.mark.parametrize("options", OPTIONS, ids=["none", "int8", "int4", "int4-table", "cache-16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bundles_are_near_torch_and_rows_are_themselves_to_the_last_bit(
    exported: Exported, family: str, options: BuildOptions
) -> None:
    result = exported(family, options=options)

    assert result.verdict == "passed"
    limit = {"none": 1e-4, "int8": 0.05, "int4": 0.5}[options.quantization]
    assert max(parity.relative_difference for parity in result.parity) < limit
    report = json.loads((result.bundle / "report.json").read_text())
    for kind in ("alone", "folded"):
        assert [row["max_abs_difference"] for row in report["checks"][kind]] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("prompts", "cache_bits"), [("input", 32), ("baked", 32), ("input", 16)])
def test_a_bundle_answers_the_same_where_the_kernels_are_missing(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, prompts: Any, cache_bits: Any
) -> None:
    """With float weights nothing is rounded, so that the bodies' answers are the kernels'."""
    bundle = exported(prompts=prompts, options=BuildOptions("none", cache_bits=cache_bits)).bundle
    request = {"sentence": "who was there at all?"}
    with_kernels = Session.open(bundle)
    (first,) = with_kernels.generate([Request("tone", request)])
    monkeypatch.setattr(kernels, "library_path", lambda: None)

    (second,) = Session.open(bundle).generate([Request("tone", request)])

    assert second == first


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bodies_stay_near_the_kernels(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, family: str, quantize: Any
) -> None:
    """Kernels round activations to 8 bits, bodies do not: the self-tests allow for that."""
    bundle = exported(family, options=BuildOptions(quantize)).bundle
    monkeypatch.setattr(kernels, "library_path", lambda: None)

    verified = verify_bundle(bundle)

    assert verified.passed
    assert max(test.relative_difference for test in verified.selftests) < 0.05


@pytest.mark.parametrize(("quantize", "limit"), [("int8", 0.1), ("int4", 0.2), ("none", 1e-3)])
def test_self_tests_that_other_kernels_computed_have_a_limit_of_their_own(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, quantize: Any, limit: float
) -> None:
    bundle = exported(options=BuildOptions(quantize)).bundle
    tight = {"int8": 0.05, "int4": 0.05, "none": 1e-3}[quantize]

    def limits() -> set[float]:
        return {result.tolerance for result in verify_bundle(bundle).selftests}

    assert read_bundle(bundle).manifest.toolchain["kernels"] == kernels.arithmetic()
    assert limits() == {tight}

    monkeypatch.setattr("pl_compile.checks.arithmetic.arithmetic", lambda: "another")

    assert limits() == {limit}
    assert kernels_of("onnx-cpu") == {}


def test_what_older_kernels_would_leave_out_is_in_the_manifest_and_nothing_else_is(
    exported: Exported,
) -> None:
    """Releases with older kernels know no such key: they refuse it."""

    def said(family: str, ranks: int, quantize: Any = "none") -> dict[str, Any]:
        options, name = BuildOptions(quantize, ranks=ranks), f"{family}-{ranks}-{quantize}"
        bundle = exported(family, name, options=options, measure_parity=False).bundle
        content: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
        assert read_bundle(bundle).manifest.kernels == content.get("kernels", 2)
        return content

    assert said("llama", 1, "int8")["kernels"] == kernels.INTERFACE
    assert said("llama", 1)["kernels"] == 4
    assert said("gemma3_text", 2)["kernels"] == 3
    assert "kernels" not in said("llama", 2)


@pytest.mark.parametrize(
    ("attributes", "inputs", "interface"),
    [
        ({}, 6, 2),
        ({}, 7, 3),
        ({"scale": 0.5}, 6, 3),
        ({"window": 4}, 6, 3),
        ({"softcap": 5.0}, 4, 3),
    ],
)
def test_each_part_of_an_attention_that_older_kernels_pass_over_needs_newer_ones(
    attributes: dict[str, Any], inputs: int, interface: int
) -> None:
    assert kernels_needed(_model_of("PackedAttention", inputs, heads=2, **attributes)) == interface
    assert kernels_needed(_model_of("PagedAttention", inputs + 4, heads=2, **attributes)) == 4
    assert kernels_needed(_model_of("PagedAttention16", inputs + 4, heads=2, **attributes)) == 5


@pytest.mark.parametrize(("gated", "interface"), [(0, 2), (1, 2), (2, 3)])
def test_a_gate_that_older_kernels_take_for_another_needs_newer_ones(
    gated: int, interface: int
) -> None:
    assert kernels_needed(_model_of("BlockProduct", 3, gated=gated)) == interface


@pytest.mark.parametrize(("inputs", "interface"), [(4, 2), (5, 5)])
def test_tiles_that_older_kernels_do_not_take_need_newer_ones(inputs: int, interface: int) -> None:
    assert kernels_needed(_model_of("BlockProduct", inputs, gated=0)) == interface


def _model_of(op_type: str, inputs: int, **attributes: Any) -> ir.Model:
    given = [ir.val(str(index)) for index in range(inputs)]
    call = ir.node(op_type, given, attributes, domain="plc")
    return ir.Model(ir.Graph(given, call.outputs, nodes=[call]), ir_version=10)


def test_a_bundle_for_newer_kernels_than_ours_is_refused(exported: Exported) -> None:
    bundle = exported(options=BuildOptions("none"), measure_parity=False).bundle
    path = bundle / "manifest.json"
    newer = {**json.loads(path.read_text()), "kernels": kernels.INTERFACE + 1}
    path.write_text(json.dumps(newer))

    with pytest.raises(ArtifactError, match="for kernels of interface 6; expected at most 5"):
        Session.open(bundle)


def test_what_computes_has_a_name_for_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise OSError("file too short")

    names = []
    for found in (lambda: "avx2", lambda: "neon", lambda: "portable", lambda: None, broken):
        monkeypatch.setattr(kernels, "instruction_set", found)
        names.append(kernels.arithmetic())

    assert names == ["2", "2", "2 portable", "standard operators", "standard operators"]


def test_equal_inputs_give_equal_bytes(exported: Exported) -> None:
    options = BuildOptions("int4")
    first, second = (exported(name=name, options=options).bundle for name in ("a", "b"))

    for name in ("model.onnx", "model.onnx.data"):
        assert (first / "base" / name).read_bytes() == (second / "base" / name).read_bytes()


def test_sampling_in_the_graph_and_labels_work_alike(exported: Exported) -> None:
    options = BuildOptions("int4", sampling="graph", candidates=20)

    result = exported(options=options)

    assert result.verdict == "passed"
    assert read_bundle(result.bundle).manifest.graph.candidates == 20


def test_heads_that_the_kernels_do_not_take_are_refused(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_bases["llama"]
    table = random_table(base, tmp_path / "table.safetensors")

    with pytest.raises(ExportError) as error:
        export_bundle(ExportRequest(table, base, tmp_path / "bundle", target="native-cpu"))

    assert str(error.value) == (
        "choosing this project's kernels: heads of 8; expected a multiple of 16. "
        "Use --target onnx-cpu."
    )


def test_a_base_that_blocks_do_not_divide_is_sent_to_a_target_that_takes_others(
    exported: Exported,
) -> None:
    """Not to a scale for each channel, which the kernels do not take."""
    with pytest.raises(ExportError) as error:
        exported(options=BuildOptions("int4", 64))

    assert "96 inputs, blocks of 64; expected a block that divides" in str(error.value)
    assert str(error.value).endswith("Use --target onnx-cpu, which takes other blocks.")


@pytest.mark.parametrize("block", [0, 16, 128])
def test_blocks_that_the_kernels_do_not_take_are_refused(exported: Exported, block: int) -> None:
    with pytest.raises(ExportError) as error:
        exported(options=BuildOptions("int4", block))

    assert str(error.value) == (
        f"choosing this project's kernels: blocks of {block}; expected 32 or 64. "
        "Choose another --block, or --target onnx-cpu."
    )


@pytest.mark.real
def test_the_default_base_loses_nothing_in_four_bits() -> None:
    """It was published as Q4_1; tests/quantize checks the same on made weights."""
    base = cached_base_folder(DEFAULT_BASE)
    if not (base / "config.json").is_file():
        pytest.skip(
            f"needs the base {DEFAULT_BASE} (plc fetch {DEFAULT_BASE}); on made weights: "
            "tests/quantize/test_rounding.py"
        )
    weight = open_checkpoint(base).tensor("model.layers.3.mlp.up_proj.weight").T
    weight = np.ascontiguousarray(weight, np.float32)

    kept = round_to_nearest(weight, Scheme(4, 32, offset=True, half=True)).dequantized()
    lost = round_to_nearest(weight, Scheme(4, 32)).dequantized()

    whole = float(np.linalg.norm(weight))
    assert np.linalg.norm(kept - weight) < 1e-3 * whole
    assert np.linalg.norm(lost - weight) > 0.05 * whole
