"""What targets for TensorRT refuse, and what they do where no TensorRT is: needs none itself."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pl_compile.artifact.bundle import read_bundle
from pl_compile.artifact.plan_record import read_plan_profile
from pl_compile.cli.main import plc
from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.driver.export import ExportResult, export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.verify import verify_bundle
from pl_compile.errors import ConfigError, ExportError
from pl_compile.exporters.tensorrt.exporter import TensorRtExporter
from pl_compile.families.read import read_decoder_config
from pl_compile.runtime.session import Session
from pl_compile.testing import random_table

DEFERRED = BuildOptions(defer_build=True)


@pytest.fixture(autouse=True)
def _no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, package, None)


def exported(base: Path, folder: Path, name: str = "bundle", **changes: Any) -> ExportResult:
    table = folder / "table.safetensors"
    if not table.exists():
        random_table(base, table, prefix=True)
    request = ExportRequest(table, base, folder / name, **{"target": "tensorrt-rtx", **changes})
    return export_bundle(request)


def sizes_of(base: Path) -> tuple[DecoderConfig, GraphContract]:
    config = read_decoder_config(base)
    names = ("layers", "kv_heads", "head_dim", "hidden", "vocab")
    sizes = {name: getattr(config, name) for name in names}
    return config, GraphContract(**sizes, capacity=64, prompts="baked")


def test_without_tensorrt_only_a_deferred_build_is_exported(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"tensorrt_rtx.*pl-compile\[tensorrt-rtx\].*--defer"):
        exported(tiny_bases["llama"], tmp_path)

    result = exported(tiny_bases["llama"], tmp_path, options=DEFERRED)

    assert result.verdict == "not measured"
    assert not list(result.bundle.rglob("folded_kv.safetensors"))
    assert all("no TensorRT is installed" in task.reason for task in result.forecast.tasks)
    with pytest.raises(ExportError, match=r"no TensorRT is installed to parse.*tensorrt-rtx\]"):
        verify_bundle(result.bundle)
    with pytest.raises(ExportError, match="with --fold always: no TensorRT"):
        exported(tiny_bases["llama"], tmp_path, "other", options=DEFERRED, fold="always")


def test_what_a_deferred_build_leaves_is_all_that_the_device_needs(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    options = replace(DEFERRED, max_batch=5, ranks=2)
    bundle = exported(tiny_bases["llama"], tmp_path, target="tensorrt", options=options).bundle

    manifest = read_bundle(bundle).manifest
    assert (manifest.target, manifest.graph.ranks) == ("tensorrt", 2)
    for rank in range(2):
        folder = bundle / "base" / f"rank{rank}"
        assert read_plan_profile(folder).max_batch == 5
        assert sorted(path.name for path in folder.iterdir()) == [
            "model.onnx",
            "model.onnx.data",
            "profile.json",
        ]
    result = CliRunner().invoke(plc, ["build", str(bundle)])
    assert "pl-compile[tensorrt]" in str(result.exception)
    with pytest.raises(Exception, match="no plan was built yet"):
        Session.open(bundle)


def test_heads_that_tensorrt_does_not_build_are_refused(tiny_bases: dict[str, Path]) -> None:
    config, contract = sizes_of(tiny_bases["llama"])
    odd = replace(config, head_dim=20), replace(contract, head_dim=20)

    with pytest.raises(ExportError, match="heads of 20; expected a multiple of 8"):
        TensorRtExporter("tensorrt-rtx").check(*odd, DEFERRED)


def test_more_candidates_than_tensorrt_sorts_are_refused(tiny_bases: dict[str, Path]) -> None:
    config, contract = sizes_of(tiny_bases["llama"])
    many = replace(contract, vocab=9000, candidates=3841)

    with pytest.raises(ExportError, match="3841 candidates; expected at most 3840"):
        TensorRtExporter("tensorrt").check(config, many, DEFERRED)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compute_capabilities": ("8.6",)}, "compute capabilities, and a build that is left"),
        ({"ep_context": True}, "a file around the plan, and a build that is left"),
        ({"max_batch": 0}, "max_batch 0, expected 1 to 4096"),
        ({"max_batch": 4097}, "max_batch 4097, expected 1 to 4096"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(DEFERRED, **options)


def test_a_file_around_a_plan_that_no_provider_loads_is_refused_first(
    tiny_bases: dict[str, Path],
) -> None:
    with pytest.raises(ExportError, match="a plan of tensorrt; expected tensorrt-rtx"):
        TensorRtExporter("tensorrt").check(
            *sizes_of(tiny_bases["llama"]), BuildOptions("none", ep_context=True)
        )


def test_slots_begin_at_addresses_that_tensorrt_takes(tiny_bases: dict[str, Path]) -> None:
    """A step may begin at any slot of the caches."""
    config, contract = sizes_of(tiny_bases["llama"])
    uneven = replace(contract, capacity=63)  # of 63 * 2 heads * 16 numbers

    with pytest.raises(ExportError, match=r"capacity 63; expected a multiple of 8: .* 256"):
        TensorRtExporter("tensorrt").check(config, uneven, BuildOptions("none", dtype="float16"))
    assert [uneven.capacity_unit(dtype) for dtype in ("float32", "float16")] == [4, 8]
    alone = replace(uneven, kv_heads=1, head_dim=8, capacity=5)  # 32 or 16 bytes an entry
    assert [alone.capacity_unit(dtype) for dtype in ("float32", "float16")] == [8, 16]


def test_the_default_capacity_is_one_that_tensorrt_takes(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_bases["llama"], base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 95}))
    table = random_table(base, tmp_path / "table.safetensors")

    result = export_bundle(
        ExportRequest(table, base, tmp_path / "bundle", target="tensorrt", options=DEFERRED)
    )

    assert read_bundle(result.bundle).manifest.graph.capacity == 88


def test_the_command_line_takes_them_all(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    random_table(tiny_bases["llama"], tmp_path / "table.safetensors")
    arguments = ["export", "--prompts", str(tmp_path / "table.safetensors")]
    arguments += ["--base", str(tiny_bases["llama"]), "--output", str(tmp_path / "bundle")]
    arguments += ["--target", "tensorrt", "--dtype", "bfloat16", "--tp-size", "2", "--json"]
    arguments += ["--defer-build", "--max-batch", "4", "--prompts-mode", "input"]

    result = CliRunner().invoke(plc, arguments)

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["passed"] == "not measured"
    manifest = read_bundle(tmp_path / "bundle").manifest
    assert manifest.precision.dtype == "bfloat16"
    assert (manifest.graph.ranks, manifest.graph.prompts) == (2, "input")
    unknown = CliRunner().invoke(plc, [*arguments, "--quantize", "uint4"])
    assert (unknown.exit_code, "'uint4' is not one of" in unknown.output) == (2, True)
