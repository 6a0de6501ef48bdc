"""The table of targets, and what follows from it."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from pl_compile.config.build import BuildOptions
from pl_compile.config.targets import PROVIDERS, TARGETS, Target
from pl_compile.errors import ExportError
from pl_compile.exporters import exporter_for
from pl_compile.exporters.options import check_options

HOME = Path(__file__).parents[2]
EVERY = pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))


@EVERY
def test_every_target_has_an_exporter_of_its_name(target: Target) -> None:
    assert exporter_for(target.name).target == target.name


@EVERY
def test_every_target_has_an_engine(target: Target) -> None:
    assert find_spec(f"pl_compile.runtime.engines.{target.runner}.engine") is not None


@EVERY
def test_what_a_target_needs_can_be_installed(target: Target) -> None:
    extras = (HOME / "setup.cfg").read_text(encoding="utf-8").partition("extras_require]")[2]

    for extra in {target.extra, target.checked_with} - {""}:
        assert f"\n{extra} =\n" in extras


@EVERY
def test_a_provider_is_named_where_onnx_runtime_is_the_runner(target: Target) -> None:
    assert (target.provider in PROVIDERS) is (target.runner == "onnxruntime")


@EVERY
def test_a_target_refuses_what_its_row_does_not_have(target: Target) -> None:
    refused = {
        BuildOptions(dtype=dtype): dtype not in target.dtypes
        for dtype in ("float32", "float16", "bfloat16")
    }
    refused |= {
        BuildOptions(max_batch=4): not target.has_plan,
        BuildOptions(ranks=2): not target.ranks,
    }

    for options, is_refused in refused.items():
        if not is_refused:
            check_options(target.name, options)
            continue
        with pytest.raises(ExportError, match=rf"building for {target.name}: .*\."):
            check_options(target.name, options)


def test_what_is_refused_names_the_targets_that_take_it() -> None:
    with pytest.raises(ExportError, match="or use --target tensorrt-rtx or tensorrt"):
        check_options("onnx-cpu", BuildOptions(max_batch=4))
    with pytest.raises(ExportError, match="or --target tensorrt-rtx or tensorrt"):
        check_options("onnx-cuda", BuildOptions(dtype="bfloat16"))
