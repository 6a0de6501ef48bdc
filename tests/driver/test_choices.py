"""What `--target auto` and `--quantize auto` come to, and where an export says it."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pl_compile.artifact.bundle import NOTHING_LOST, read_bundle
from pl_compile.config.build import AUTO, BuildOptions, Choice
from pl_compile.driver import choose, train
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.forecast import Forecast, forecast_export
from pl_compile.driver.verify import verify_bundle
from pl_compile.errors import BaseModelError, ExportError
from pl_compile.quantize.scheme import LOSSLESS
from pl_compile.runtime import kernels
from pl_compile.testing import random_table, tiny_run, write_tiny_base
from pl_compile.training.run import Helpers
from pl_compile.weights.bases import DEFAULT_BASE, cached_base_folder
from pl_compile.weights.load import load_weight

Published = Literal["floats", "q4_0", "q4_1", "q8_0"]
Forecasts = Callable[..., Forecast]

BASES: dict[str, tuple[str, Published]] = {
    f"{family}-{published}": (family, published)
    for family in ("llama", "gpt2")
    for published in ("floats", "q4_0", "q4_1", "q8_0")
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
def forecast(request_for: Callable[..., ExportRequest]) -> Forecasts:
    def found(base: Path, **changes: Any) -> Forecast:
        return forecast_export(request_for(base, **changes))

    return found


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that run on instructions of their own, wherever the test runs."""
    monkeypatch.setattr(choose, "instruction_set", lambda: "avx2")


# The target


@pytest.mark.usefixtures("fast")
def test_the_kernels_of_native_cpu_are_taken_where_they_are_fast(
    bases: dict[str, Path], forecast: Forecasts
) -> None:
    found = forecast(bases["llama-floats"])

    assert found.target == "native-cpu"
    assert found.choices["target"] == Choice(AUTO, "native-cpu", "its kernels run here, on avx2")
    assert "use-packed-attention" in found.passes


def with_tensor(base: Path, folder: Path, name: str, change: Callable[[np.ndarray], None]) -> Path:
    """A copy of a base with one tensor changed."""
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def not_loading() -> str:
    raise OSError("_kernels.so: undefined symbol")


@pytest.mark.parametrize(
    ("instructions", "reason"),
    [
        (lambda: None, "the kernels of native-cpu are not built: see plc doctor"),
        (lambda: "portable", "native-cpu would run on its portable kernels, which are slow"),
        (
            not_loading,
            "the kernels of native-cpu do not load: _kernels.so: undefined symbol",
        ),
    ],
)
def test_onnx_cpu_is_taken_where_the_kernels_are_missing_or_slow(
    bases: dict[str, Path],
    forecast: Forecasts,
    monkeypatch: pytest.MonkeyPatch,
    instructions: Callable[[], str | None],
    reason: str,
) -> None:
    monkeypatch.delenv("PLC_KERNELS", raising=False)
    monkeypatch.setattr(choose, "instruction_set", instructions)

    found = forecast(bases["llama-q4_1"])

    assert found.choices["target"] == Choice(AUTO, "onnx-cpu", reason)
    assert found.target == "onnx-cpu"


@pytest.mark.usefixtures("fast")
def test_onnx_cpu_is_taken_where_the_kernels_do_not_take_the_base_or_the_blocks(
    tiny_bases: dict[str, Path], bases: dict[str, Path], forecast: Forecasts
) -> None:
    heads = forecast(tiny_bases["llama"])
    blocks = forecast(bases["llama-floats"], options=BuildOptions("int4", block=16))

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
    bases: dict[str, Path], forecast: Forecasts
) -> None:
    with pytest.raises(ExportError) as error:
        forecast(bases["llama-floats"], options=BuildOptions(dtype="float16"))

    assert str(error.value) == (
        "building for onnx-cpu: dtype float16; expected float32. Weights can be made smaller with "
        "--quantize; --target names one for a GPU."
    )


def test_an_unknown_target_lists_auto_among_the_known_ones(
    bases: dict[str, Path], forecast: Forecasts
) -> None:
    with pytest.raises(ExportError) as error:
        forecast(bases["llama-floats"], target="native")

    assert str(error.value) == (
        "choosing the target 'native': target 'native' does not exist. Did you mean 'native-cpu'? "
        "Known targets: auto, onnx-cpu, native-cpu, openvino, onnx-cuda, "
        "tensorrt-rtx, tensorrt."
    )


# How weights are stored


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("published", "stored"), [("q4_0", "int4"), ("q4_1", "int4"), ("q8_0", "int8")]
)
def test_a_base_is_stored_as_it_was_published(
    bases: dict[str, Path], request_for: Any, family: str, published: str, stored: str
) -> None:
    request = request_for(bases[f"{family}-{published}"])

    result = export_bundle(request)

    choice = result.forecast.choices["quantize"]
    assert (choice.asked, choice.chosen) == (AUTO, stored)
    said, then = (
        "the base was published so: no block of weights changes by more than ",
        " of its norm; activations are rounded to 8 bits inside products: --evaluate measures it, "
        "--quantize none avoids it",
    )
    assert choice.reason.startswith(said)
    assert choice.reason.endswith(then)
    largest = float(choice.reason.removeprefix(said).removesuffix(then))
    assert result.verdict == "passed"
    report = json.loads((result.bundle / "report.json").read_text())
    errors = [error["largest_block_error"] for error in report["weight_errors"]]
    # What was seen before is never less than what rounding did, nor is what is said of it.
    assert max(errors) <= largest <= LOSSLESS
    precision = read_bundle(result.bundle).manifest.precision
    assert (precision.quantization, precision.method) == (stored, NOTHING_LOST)
    # The limits are those of weights that lost nothing, also where they are compared later.
    assert {parity.tokens_needed for parity in result.parity} == {0.9}
    later = verify_bundle(result.bundle, reference=request.base)
    assert {(parity.tolerance, parity.tokens_needed) for parity in later.parity} == {
        (0.2 if stored == "int4" else 0.1, 0.9)
    }


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_base_of_floats_stays_floats_and_the_first_weight_says_why(
    bases: dict[str, Path], forecast: Forecasts, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    read: list[str] = []

    def noted(checkpoint: Any, config: Any, name: str) -> Any:
        read.append(name)
        return load_weight(checkpoint, config, name)

    monkeypatch.setattr(choose, "load_weight", noted)

    found = forecast(bases[f"{family}-floats"])

    choice = found.choices["quantize"]
    assert (choice.asked, choice.chosen) == (AUTO, "none")
    assert choice.reason.startswith("rounding would lose something: a block of layers.0.")
    assert " in 4 bits, a block of layers.0." in choice.reason
    assert len(read) == 2
    assert found.target == "native-cpu"


@pytest.mark.usefixtures("fast")
def test_one_weight_that_would_lose_something_keeps_all_of_them_floats(
    bases: dict[str, Path], tmp_path: Path, forecast: Forecasts
) -> None:
    def shift_one(last: np.ndarray) -> None:
        last[0, 3] += 0.3 * abs(last).max()

    name = "model.layers.1.mlp.down_proj.weight"
    changed = with_tensor(bases["llama-q4_1"], tmp_path / "changed", name, shift_one)

    choice = forecast(changed).choices["quantize"]

    assert choice.chosen == "none"
    assert "layers.1.mlp.down.weight would change by " in choice.reason


@pytest.mark.usefixtures("fast")
def test_a_block_of_large_weights_does_not_hide_what_all_others_lose(
    bases: dict[str, Path], tmp_path: Path, forecast: Forecasts
) -> None:
    def one_large_block(weight: np.ndarray) -> None:
        weight[0, :32] = np.where(np.arange(32) % 2, 3000, -3000)

    name = "model.layers.0.self_attn.q_proj.weight"
    changed = with_tensor(bases["llama-floats"], tmp_path / "changed", name, one_large_block)

    choice = forecast(changed).choices["quantize"]

    assert choice.chosen == "none"
    # The weight with that block is the first to be looked at, and settles both.
    name = r"layers\.0\.attention\.q\.weight"
    parts = re.findall(rf"{name} would change by ([\d.]+)%", choice.reason)
    assert [float(part) > 100 * LOSSLESS for part in parts] == [True, True]


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    ("tensor", "name"),
    [("model.embed_tokens.weight", "embedding.weight"), ("lm_head.weight", "head.weight")],
)
def test_a_table_that_would_lose_something_keeps_all_weights_floats(
    tmp_path: Path, forecast: Forecasts, tensor: str, name: str
) -> None:
    def as_floats(table: np.ndarray) -> None:
        table[7] = np.random.default_rng(0).normal(size=table.shape[1])

    base = write_tiny_base(tmp_path / "base", "llama", blocks=True, tied=False, published="q4_1")
    changed = with_tensor(base, tmp_path / "changed", tensor, as_floats)

    choice = forecast(changed).choices["quantize"]

    assert forecast(base).choices["quantize"].chosen == "int4"  # of two tables
    assert choice.chosen == "none"
    assert f"a block of {name} would change by " in choice.reason
    assert "in 8 bits" in choice.reason


@pytest.mark.parametrize(
    ("part", "said"), [(0.0, "0"), (1.24e-3, "0.002"), (2.5e-5, "3e-05"), (9.1e-4, "0.001")]
)
def test_the_change_that_is_said_is_not_less_than_the_one_found(part: float, said: str) -> None:
    assert choose._rounded_up(part) == said
    assert float(said) >= part


def _but_for_folding(choices: Mapping[str, Choice]) -> dict[str, Choice]:
    return {name: choice for name, choice in choices.items() if name != "fold"}


@pytest.mark.parametrize("target", ["onnx-cpu", "onnx-cuda", "tensorrt-rtx"])
def test_other_targets_keep_floats_unless_they_are_told(
    bases: dict[str, Path], forecast: Forecasts, target: str
) -> None:
    asked = BuildOptions(defer_build=target.startswith("tensorrt"))

    left = forecast(bases["llama-q4_1"], target=target, options=asked)
    told = forecast(
        bases["llama-q4_1"], target=target, options=replace(asked, quantize="int8", block=32)
    )

    why = f"what {target} rounds loses something; --quantize int8 rounds it"
    assert _but_for_folding(left.choices) == {
        "target": Choice(target, target),
        "quantize": Choice(AUTO, "none", why),
    }
    assert told.choices["quantize"] == Choice("int8", "int8")


@pytest.mark.usefixtures("fast")
def test_what_is_asked_for_is_built_and_needs_no_reason(
    bases: dict[str, Path], forecast: Forecasts
) -> None:
    found = forecast(bases["llama-q4_1"], target="native-cpu", options=BuildOptions("none"))

    assert _but_for_folding(found.choices) == {
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
    tmp_path: Path, forecast: Forecasts, kv_heads: int, stored: str
) -> None:
    base = tmp_path / "base"
    write_tiny_base(base, "llama", blocks=True, kv_heads=kv_heads, published="q4_1")

    choice = forecast(base, options=BuildOptions(ranks=2)).choices["quantize"]

    assert choice.chosen == stored
    if stored == "none":
        assert choice.reason == (
            "blocks do not fit: 48 inputs, blocks of 32; expected a block that divides the inputs"
        )


@pytest.mark.usefixtures("fast")
def test_a_base_whose_weights_cannot_be_read_is_an_error_of_the_forecast(
    bases: dict[str, Path], tmp_path: Path, forecast: Forecasts
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(bases["llama-q4_1"], broken)
    forecast(broken)
    (broken / "model.safetensors").write_bytes(b"short")

    with pytest.raises(BaseModelError, match=r"model\.safetensors"):
        forecast(broken)


# Where it is said


@pytest.mark.usefixtures("fast")
def test_report_page_and_progress_say_what_was_chosen_and_why(
    bases: dict[str, Path], request_for: Any, told: Any
) -> None:
    request = request_for(bases["llama-q4_1"])
    found = forecast_export(request)

    result = export_bundle(request, progress=told)

    assert result.forecast.choices == found.choices
    plain = {name: asdict(choice) for name, choice in found.choices.items()}
    assert json.loads((result.bundle / "report.json").read_text())["choices"] == plain
    # Not in the manifest: readers of its version refuse keys that they do not know.
    assert "choices" not in json.loads((result.bundle / "manifest.json").read_text())
    page = (result.bundle / "report.html").read_text()
    for name, choice in found.choices.items():
        assert f"{name} {choice.chosen}: {choice.reason}" in told.lines
        assert f"{name} {choice.chosen} (auto): {choice.reason}" in page


@pytest.mark.usefixtures("fast")
def test_the_bundle_that_a_run_uploads_is_for_any_machine(
    bases: dict[str, Path], request_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_for(bases["llama-q4_1"])

    def uploading(*_: Any, helpers: Helpers, **__: Any) -> None:
        assert helpers.bundle is not None
        helpers.bundle(request.table, request.base, request.output)

    monkeypatch.setattr(train, "run_training", uploading)

    train.train_run(tiny_run(tmp_path / "run", request.base), tmp_path / "run")

    manifest = read_bundle(request.output).manifest
    assert (manifest.target, manifest.precision.stored) == ("onnx-cpu", "float32")


# The default base


@pytest.mark.real
@pytest.mark.skipif(
    not (cached_base_folder(DEFAULT_BASE) / "config.json").is_file(),
    reason="needs the default base (plc fetch smollm2-135m); on made bases: "
    "test_a_base_is_stored_as_it_was_published",
)
@pytest.mark.skipif(
    kernels.library_path() is None,
    reason="needs the C++ kernels (g++ or Clang); without them: "
    "test_onnx_cpu_is_taken_where_the_kernels_are_missing_or_slow",
)
def test_the_default_base_is_compiled_in_four_bits(forecast: Forecasts) -> None:
    """Its sibling on made bases: test_a_base_is_stored_as_it_was_published."""
    found = forecast(cached_base_folder(DEFAULT_BASE), target="native-cpu")

    assert found.choices["quantize"].chosen == "int4"
    assert "more than 0.002 of its norm" in found.choices["quantize"].reason
    assert found.disk_bytes < 110e6
