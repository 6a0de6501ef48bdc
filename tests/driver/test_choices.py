"""What `--target auto` and `--quantize auto` come to, and where an export says it."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from pl_compile.artifact.bundle import read_bundle
from pl_compile.config.build import AUTO, BuildOptions, Choice
from pl_compile.driver import choose
from pl_compile.driver.export import ExportPlan, ExportRequest, export_bundle, plan_export
from pl_compile.errors import BaseModelError, ExportError
from pl_compile.quantize.scheme import LOSSLESS
from pl_compile.runtime import kernels
from pl_compile.testing import random_table, write_tiny_base
from pl_compile.weights.bases import DEFAULT_BASE, cached_base_folder
from pl_compile.weights.names import load_weight

Published = Literal["floats", "q4_1", "q8_0"]
Planned = Callable[..., ExportPlan]

BASES: dict[str, tuple[str, Published]] = {
    f"{family}-{published}": (family, published)
    for family in ("llama", "gpt2")
    for published in ("floats", "q4_1", "q8_0")
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bases that the kernels of `native-cpu` take, in each form that one is published in."""
    root = tmp_path_factory.mktemp("published")
    return {
        name: write_tiny_base(root / name, family, blocks=True, published=published)
        for name, (family, published) in BASES.items()
    }


@pytest.fixture
def request_for(tmp_path: Path) -> Callable[..., ExportRequest]:
    def request(base: Path, **changes: Any) -> ExportRequest:
        table = tmp_path / f"{base.name}.safetensors"
        if not table.exists():
            random_table(base, table)
        return ExportRequest(table, base, tmp_path / "bundle", **changes)

    return request


@pytest.fixture
def planned(request_for: Callable[..., ExportRequest]) -> Planned:
    def plan(base: Path, **changes: Any) -> ExportPlan:
        return plan_export(request_for(base, **changes))

    return plan


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that run on instructions of their own, wherever the test runs."""
    monkeypatch.setattr(choose, "instruction_set", lambda: "avx2")


# The target


@pytest.mark.usefixtures("fast")
def test_the_kernels_of_native_cpu_are_taken_where_they_are_fast(
    bases: dict[str, Path], planned: Planned
) -> None:
    plan = planned(bases["llama-floats"])

    assert plan.target == "native-cpu"
    assert plan.choices["target"] == Choice(AUTO, "native-cpu", "its kernels run here, on avx2")
    assert "use-packed-attention" in plan.passes


def not_loading() -> str:
    raise OSError("_kernels.so: undefined symbol")


@pytest.mark.parametrize(
    ("instructions", "reason"),
    [
        (lambda: None, "the kernels of native-cpu are not built: see plc doctor"),
        (lambda: "portable", "the kernels of native-cpu have no fast instructions to use here"),
        (
            not_loading,
            "the kernels of native-cpu do not load: _kernels.so: undefined symbol",
        ),
    ],
)
def test_onnx_cpu_is_taken_where_the_kernels_are_missing_or_slow(
    bases: dict[str, Path],
    planned: Planned,
    monkeypatch: pytest.MonkeyPatch,
    instructions: Callable[[], str | None],
    reason: str,
) -> None:
    monkeypatch.setattr(choose, "instruction_set", instructions)

    plan = planned(bases["llama-q4_1"])

    assert plan.choices["target"] == Choice(AUTO, "onnx-cpu", reason)
    assert plan.target == "onnx-cpu"


@pytest.mark.usefixtures("fast")
def test_onnx_cpu_is_taken_where_the_kernels_do_not_take_the_base_or_the_blocks(
    tiny_bases: dict[str, Path], bases: dict[str, Path], planned: Planned
) -> None:
    heads = planned(tiny_bases["llama"])
    blocks = planned(bases["llama-floats"], options=BuildOptions("int4", block=16))

    assert heads.choices["target"] == Choice(
        AUTO,
        "onnx-cpu",
        "native-cpu does not take it: heads of 8; expected a multiple of 16",
    )
    assert blocks.choices["target"] == Choice(
        AUTO, "onnx-cpu", "native-cpu does not take it: blocks of 16; expected 32 or 64"
    )


@pytest.mark.usefixtures("fast")
def test_what_only_a_gpu_has_is_refused_with_the_option_that_names_one(
    bases: dict[str, Path], planned: Planned
) -> None:
    with pytest.raises(ExportError) as error:
        planned(bases["llama-floats"], options=BuildOptions(dtype="float16"))

    assert str(error.value) == (
        "building for onnx-cpu: dtype float16; expected float32. Weights can be made smaller with "
        "--quantize; --target names one for a GPU."
    )


def test_an_unknown_target_lists_auto_among_the_known_ones(
    bases: dict[str, Path], planned: Planned
) -> None:
    with pytest.raises(ExportError) as error:
        planned(bases["llama-floats"], target="native")

    assert str(error.value) == (
        "choosing the target 'native': target 'native' does not exist. Did you mean 'native-cpu'? "
        "Known targets: auto, onnx-cpu, native-cpu, onnx-cuda, tensorrt-rtx, tensorrt."
    )


# How weights are stored


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("published", "stored"), [("q4_1", "int4"), ("q8_0", "int8")])
def test_a_base_is_stored_as_it_was_published(
    bases: dict[str, Path], request_for: Any, family: str, published: str, stored: str
) -> None:
    request = request_for(bases[f"{family}-{published}"])

    result = export_bundle(request)

    choice = result.plan.choices["quantize"]
    assert (choice.asked, choice.chosen) == (AUTO, stored)
    said = "the base was published so: no weight changes by more than "
    assert choice.reason.startswith(said)
    assert choice.reason.endswith(" of its norm")
    largest = float(choice.reason.removeprefix(said).removesuffix(" of its norm"))
    assert result.passed == "passed"
    report = json.loads((result.bundle / "report.json").read_text())
    errors = [error["relative_error"] for error in report["weight_errors"]]
    # What was seen before is never less than what rounding did; the reason has one digit of it.
    assert max(errors) <= 1.1 * largest < LOSSLESS
    assert read_bundle(result.bundle).manifest.precision.quantization == stored


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_base_of_floats_stays_floats_and_the_first_weight_says_why(
    bases: dict[str, Path], planned: Planned, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    read: list[str] = []

    def noted(checkpoint: Any, config: Any, name: str) -> Any:
        read.append(name)
        return load_weight(checkpoint, config, name)

    monkeypatch.setattr(choose, "load_weight", noted)

    plan = planned(bases[f"{family}-floats"])

    choice = plan.choices["quantize"]
    assert (choice.asked, choice.chosen) == (AUTO, "none")
    assert choice.reason.startswith("rounding would lose something: layers.0.")
    assert " in 4 bits, layers.0." in choice.reason
    assert len(read) == 2
    assert plan.target == "native-cpu"


@pytest.mark.usefixtures("fast")
def test_one_weight_that_would_lose_something_keeps_all_of_them_floats(
    bases: dict[str, Path], tmp_path: Path, planned: Planned
) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    changed = tmp_path / "changed"
    shutil.copytree(bases["llama-q4_1"], changed)
    tensors = load_file(changed / "model.safetensors")
    last = tensors["model.layers.1.mlp.down_proj.weight"]
    last[0, 3] += 0.3 * abs(last).max()
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})

    choice = planned(changed).choices["quantize"]

    assert choice.chosen == "none"
    assert "layers.1.mlp.down.weight would change by " in choice.reason


@pytest.mark.parametrize("target", ["onnx-cpu", "onnx-cuda", "tensorrt-rtx"])
def test_other_targets_keep_floats_unless_they_are_told(
    bases: dict[str, Path], planned: Planned, target: str
) -> None:
    asked = BuildOptions(defer_build=target.startswith("tensorrt"))

    left = planned(bases["llama-q4_1"], target=target, options=asked)
    told = planned(
        bases["llama-q4_1"], target=target, options=replace(asked, quantize="int8", block=32)
    )

    assert left.choices == {
        "target": Choice(target, target),
        "quantize": Choice(AUTO, "none", "only native-cpu stores blocks as bases are published in"),
    }
    assert told.choices["quantize"] == Choice("int8", "int8")


@pytest.mark.usefixtures("fast")
def test_what_is_asked_for_is_built_and_needs_no_reason(
    bases: dict[str, Path], planned: Planned
) -> None:
    plan = planned(bases["llama-q4_1"], target="native-cpu", options=BuildOptions("none"))

    assert plan.choices == {
        "target": Choice("native-cpu", "native-cpu"),
        "quantize": Choice("none", "none"),
    }


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    ("kv_heads", "stored"),
    # Of o's inputs a rank has 6 heads of 16, three blocks of 32; or 3 heads, a block and a half.
    [(4, "int4"), (2, "none")],
)
def test_ranks_store_a_base_as_it_was_published_where_blocks_stay_whole(
    tmp_path: Path, planned: Planned, kv_heads: int, stored: str
) -> None:
    base = tmp_path / "base"
    write_tiny_base(base, "llama", blocks=True, kv_heads=kv_heads, published="q4_1")

    choice = planned(base, options=BuildOptions(ranks=2)).choices["quantize"]

    assert choice.chosen == stored
    if stored == "none":
        assert choice.reason == (
            "blocks do not fit: 48 inputs, blocks of 32; expected a block that divides the inputs"
        )


@pytest.mark.usefixtures("fast")
def test_a_base_whose_weights_cannot_be_read_is_an_error_of_the_plan(
    bases: dict[str, Path], tmp_path: Path, planned: Planned
) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(bases["llama-q4_1"], broken)
    planned(broken)
    (broken / "model.safetensors").write_bytes(b"short")

    with pytest.raises(BaseModelError, match=r"model\.safetensors"):
        planned(broken)


# Where it is said


@pytest.mark.usefixtures("fast")
def test_report_page_manifest_and_progress_say_what_was_chosen_and_why(
    bases: dict[str, Path], request_for: Any, told: Any
) -> None:
    request = request_for(bases["llama-q4_1"])
    plan = plan_export(request)

    result = export_bundle(request, progress=told)

    assert result.plan.choices == plan.choices
    plain = {name: asdict(choice) for name, choice in plan.choices.items()}
    assert json.loads((result.bundle / "report.json").read_text())["choices"] == plain
    assert json.loads((result.bundle / "manifest.json").read_text())["choices"] == plain
    assert read_bundle(result.bundle).manifest.choices == plan.choices
    page = (result.bundle / "report.html").read_text()
    for name, choice in plan.choices.items():
        assert f"{name} {choice.chosen}: {choice.reason}" in told.lines
        assert f"{name} {choice.chosen} (auto): {choice.reason}" in page


@pytest.mark.usefixtures("fast")
def test_a_manifest_that_notes_no_choices_is_read(bases: dict[str, Path], request_for: Any) -> None:
    bundle = export_bundle(request_for(bases["llama-floats"], measure_parity=False)).bundle
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["choices"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))

    assert read_bundle(bundle).manifest.choices == {}


# The default base


@pytest.mark.real
@pytest.mark.skipif(
    not (cached_base_folder(DEFAULT_BASE) / "config.json").is_file(),
    reason="the default base was not fetched: plc fetch smollm2-135m",
)
@pytest.mark.skipif(kernels.library_path() is None, reason="the kernels were not built")
def test_the_default_base_is_compiled_in_four_bits(planned: Planned) -> None:
    plan = planned(cached_base_folder(DEFAULT_BASE), target="native-cpu")

    assert plan.choices["quantize"].chosen == "int4"
    assert "2e-05" in plan.choices["quantize"].reason
    assert plan.disk_bytes < 110e6
