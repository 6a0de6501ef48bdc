"""Bundles with rounded weights: right kernels, stated errors, batches that are bit-equal."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from pl_compile.artifact.bundle import read_bundle
from pl_compile.artifact.prompt_table import read_prompt_table
from pl_compile.checkpoints.checkpoint import open_checkpoint
from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import ExportResult, export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import ConfigError, DataError, ExportError
from pl_compile.families.registry import FAMILIES
from pl_compile.graph.decoder import build_decoder
from pl_compile.passes.pipeline import run_passes
from pl_compile.passes.quantize_weights import QuantizeWeights
from pl_compile.quantize.scheme import Scheme, round_to_nearest
from pl_compile.runtime.engines.onnxruntime.engine import OnnxRuntimeEngine
from pl_compile.runtime.served_task import ServedTask
from pl_compile.runtime.session import Session
from pl_compile.runtime.stepping import Batch
from pl_compile.testing import Told, random_table, tiny_examples, write_jsonl, write_tiny_base
from pl_compile.text.examples import Example, read_examples
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.weights.load import load_weights

Exported = Callable[..., ExportResult]


@pytest.fixture(scope="module")
def block_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("block-bases")
    return {f: write_tiny_base(root / f, f, blocks=True) for f in FAMILIES}


@pytest.fixture
def exported(block_bases: dict[str, Path], tmp_path: Path) -> Exported:
    def export(family: str = "llama", **changes: Any) -> ExportResult:
        base = block_bases[family]
        table = tmp_path / f"{family}.safetensors"
        if not table.exists():
            random_table(base, table, prefix=True)
        given = {"target": "onnx-cpu", **changes}
        return export_bundle(ExportRequest(table, base, tmp_path / "bundle", **given))

    return export


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_rounded_and_its_error_is_stated(
    exported: Exported, family: str, quantize: Any
) -> None:
    result = exported(family, options=BuildOptions(quantize, block=16))

    report = json.loads((result.bundle / "report.json").read_text())
    errors = {error["weight"]: error for error in report["weight_errors"]}
    layers = 2 if family == "llama" else 3
    assert len(errors) == 1 + 4 * layers
    assert errors["embedding.weight"]["bits"] == 8
    bits = {error["bits"] for name, error in errors.items() if name != "embedding.weight"}
    assert bits == {8 if quantize == "int8" else 4}
    largest = max(error["relative_error"] for error in errors.values())
    assert 0 < largest < (0.01 if quantize == "int8" else 0.12)
    assert report["precision"]["quantization"] == quantize
    # The file holds integers: a quarter or an eighth of the floats, and the scales.
    floats = 4 * report["cost"]["parameters"]
    assert (result.bundle / "base" / "model.onnx.data").stat().st_size < 0.6 * floats


@pytest.mark.parametrize("family", FAMILIES)
def test_eight_bits_stay_near_torch(exported: Exported, family: str) -> None:
    result = exported(family, options=BuildOptions("int8", block=16))

    assert result.verdict == "passed"
    assert max(parity.relative_difference for parity in result.parity) < 0.06


@pytest.mark.parametrize(
    "options", [BuildOptions("int4", block=16), BuildOptions("int8", block=16)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_is_bit_equal_to_each_row_alone(
    exported: Exported, family: str, options: BuildOptions
) -> None:
    result = exported(family, options=options)

    report = json.loads((result.bundle / "report.json").read_text())
    assert [row["max_abs_difference"] for row in report["checks"]["alone"]] == [0.0, 0.0, 0.0]
    assert [row["max_abs_difference"] for row in report["checks"]["folded"]] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernels_compute_what_the_codes_stand_for(
    exported: Exported, block_bases: dict[str, Path], tmp_path: Path, family: str
) -> None:
    """Beside the same graph with the dequantised weights as floats: activations are rounded."""
    from pl_compile.exporters import exporter_for
    from pl_compile.exporters.exporter import PassInputs
    from pl_compile.families.read import read_decoder_config

    result = exported(family, options=BuildOptions("int4", block=16))
    bundle = read_bundle(result.bundle)
    config = read_decoder_config(block_bases[family])
    weights = load_weights(open_checkpoint(block_bases[family]), config)
    four, eight = Scheme(4, 16, negative_scales=True), Scheme(8, 16)
    for name, array in weights.items():
        if name == "embedding.weight":
            weights[name] = round_to_nearest(array.T, eight).dequantized().T.copy()
        elif array.ndim == 2 and name.startswith("layers."):
            weights[name] = round_to_nearest(array, four).dequantized()
    exporter = exporter_for("onnx-cpu")
    model = build_decoder(config, bundle.manifest.graph, weights)
    inputs = PassInputs(config, bundle.manifest.graph, BuildOptions("none"))
    run_passes(model, exporter.passes(inputs).all)
    exporter.build(model, tmp_path, bundle.manifest.graph, BuildOptions("none"))
    tokenizer = Tokenizer.from_folder(result.bundle)
    prompt = ServedTask.of(bundle.entry("tone"), tokenizer)
    ids = np.random.default_rng(0).integers(0, 390, 24)
    logits = []
    for path in (result.bundle / "base" / "model.onnx", tmp_path / "model.onnx"):
        batch = Batch(OnnxRuntimeEngine(path, bundle.manifest.graph))
        batch.admit(0, prompt)
        logits.append(batch.feed({0: ids})[0].logits)

    assert np.abs(logits[0] - logits[1]).max() < 0.03 * np.abs(logits[1]).max()


@pytest.mark.parametrize(("target", "negative"), [("onnx-cpu", True), ("native-cpu", False)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_that_was_published_with_negative_scales_loses_nothing(
    tmp_path: Path, family: str, target: str, negative: bool
) -> None:
    """As llama.cpp's Q4_0: what is compiled stands for the same numbers as the floats."""
    base = write_tiny_base(tmp_path / "base", family, blocks=True, published="q4_0")
    table = random_table(base, tmp_path / "table.safetensors")
    request = ExportRequest(
        table, base, tmp_path / "bundle", target=target, options=BuildOptions("int4")
    )

    result = export_bundle(request)

    report = json.loads((result.bundle / "report.json").read_text())
    layers = [error for error in report["weight_errors"] if error["bits"] == 4]
    assert len(layers) >= 8
    assert {error["largest_block_error"] for error in layers} == {0.0}
    assert result.verdict == "passed"
    scales = [
        tensor.numpy()
        for name, value in ir.load(result.bundle / "base/model.onnx").graph.initializers.items()
        if "scales" in name and (tensor := value.const_value) is not None
    ]
    assert any((each < 0).any() for each in scales) == negative


def test_tables_can_stay_floats_or_take_four_bits(exported: Exported) -> None:
    sizes = {}
    for bits in (0, 8, 4):
        result = exported(options=BuildOptions("int4", block=16, table_bits=bits))
        report = json.loads((result.bundle / "report.json").read_text())
        named = [e["bits"] for e in report["weight_errors"] if e["weight"] == "embedding.weight"]
        assert named == ([] if bits == 0 else [bits])
        sizes[bits] = (result.bundle / "base" / "model.onnx.data").stat().st_size
    assert sizes[0] > sizes[8] > sizes[4]


def test_a_scale_for_each_channel_is_stored_as_dequantizelinear(exported: Exported) -> None:
    result = exported(options=BuildOptions("int8", block=0))

    assert result.verdict == "passed"
    report = json.loads((result.bundle / "report.json").read_text())
    assert report["precision"]["block"] == 0


# Calibration


def test_gptq_moves_products_less_than_the_nearest_codes_do(
    exported: Exported, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "examples.jsonl", tiny_examples(40))
    options = BuildOptions("int4", block=16)

    exported(options=options, calibrate=(data,), tasks=("tone", "ask"))
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())

    assert report["precision"]["method"].startswith("GPTQ on ")
    measured = [e for e in report["weight_errors"] if e["relative_output_error"] is not None]
    assert len(measured) == 8
    better = [e for e in measured if e["relative_output_error"] < e["relative_error"]]
    assert len(better) >= 7


def test_moments_are_those_of_what_enters_each_product(
    block_bases: dict[str, Path], tmp_path: Path
) -> None:
    from pl_compile.artifact.prompt_table import read_prompt_table
    from pl_compile.config.contract import GraphContract
    from pl_compile.driver.calibrate import measure_moments
    from pl_compile.exporters import exporter_for
    from pl_compile.families.read import read_decoder_config
    from pl_compile.training.base_model import FrozenBase

    base = block_bases["llama"]
    config = read_decoder_config(base)
    sizes = {n: getattr(config, n) for n in ("layers", "kv_heads", "head_dim", "hidden", "vocab")}
    contract = GraphContract(**sizes, capacity=40, prompts="input")
    table = read_prompt_table(random_table(base, tmp_path / "table.safetensors"))
    prompt = ServedTask.of(table.entry("ask"), Tokenizer.from_folder(base))
    ids = np.random.default_rng(0).integers(0, 390, 17)
    seen: list[Any] = []
    torch_base = FrozenBase(base, as_is=True)
    layer = torch_base.model.model.layers[1].mlp.down_proj
    layer.register_forward_hook(lambda _, given, __: seen.append(given[0].detach().numpy()[0]))
    import torch

    with torch.no_grad():
        torch_base.model(torch.from_numpy(ids)[None])

    moments = measure_moments(
        exporter_for("onnx-cpu"),
        config,
        contract,
        load_weights(open_checkpoint(base), config),
        [(prompt, ids)],
    )

    assert moments.tokens == 17
    assert set(moments.by_weight) == {
        f"layers.{i}.{part}.weight"
        for i in (0, 1)
        for part in ("attention.q_k_v", "attention.o", "mlp.gate_up", "mlp.down")
    }
    expected = seen[0].T @ seen[0]
    found = moments.by_weight["layers.1.mlp.down.weight"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_calibration_data_of_unknown_tasks_is_refused(exported: Exported, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "examples.jsonl", [{"taskname": "tune", "sentence": "a"}])

    with pytest.raises(DataError, match="Did you mean 'tone'"):
        exported(options=BuildOptions("int4", block=16), calibrate=(data,))
    assert not (tmp_path / "bundle").exists()


def test_the_effect_on_the_task_is_in_the_report(exported: Exported, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "examples.jsonl", tiny_examples(12))

    result = exported(options=BuildOptions("int4", block=16), evaluate=(data,))

    report = json.loads((result.bundle / "report.json").read_text())
    assert [effect["task"] for effect in report["effect"]] == ["tone", "ask"]
    for effect in report["effect"]:
        assert effect["examples"] == 6
        assert effect["stored"] == "int4"
        assert set(effect["float32"]) == set(effect["scores"])
        assert 0 <= effect["same_answers"] <= 100
    assert report["effect"] == [asdict(each) for each in result.effect]
    page = (result.bundle / "report.html").read_text()
    assert "<th>int4</th><th>float32</th><th>same answers</th>" in page


def test_a_bundle_of_floats_is_scored_once(exported: Exported, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "examples.jsonl", tiny_examples(12))

    result = exported(options=BuildOptions("none"), evaluate=(data,))

    assert [effect.stored for effect in result.effect] == ["float32", "float32"]
    assert all(effect.scores for effect in result.effect)
    assert {(effect.float32, effect.same_answers) for effect in result.effect} == {(None, None)}
    page = (result.bundle / "report.html").read_text()
    assert "<h2>Scores of the tasks</h2>" in page
    assert "same answers" not in page


# What cannot be


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"quantize": "none", "block": 16}, "block 16, and nothing is quantised"),
        ({"quantize": "none", "table_bits": 4}, "table_bits 4, and nothing is quantised"),
        ({"block": 16}, "block 16, and quantize auto, which sets it itself: name int4 or int8"),
        (
            {"table_bits": 4},
            "table_bits 4, and quantize auto, which sets it itself: name int4 or int8",
        ),
        ({"quantize": "int4", "block": -1}, "block -1, expected 0 or more"),
        ({"quantize": "int4", "table_bits": 5}, "table_bits 5, expected 0, 4 or 8"),
        (
            {"candidates": 9},
            "candidates 9, and the host samples: ask for sampling graph, or leave candidates out",
        ),
        ({"sampling": "graph", "candidates": 0}, "candidates 0, expected 1 or more"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: dict[str, Any], found: str
) -> None:
    with pytest.raises(ConfigError) as error:
        BuildOptions(**options)

    assert str(error.value) == f"reading the build options: {found}."


@pytest.mark.parametrize(
    ("quantize", "why"),
    [
        ("none", "nothing is quantised"),
        ("auto", "quantize auto, which leaves no error that examples could weigh"),
    ],
)
def test_calibration_where_no_error_is_left_is_refused(
    tmp_path: Path, quantize: Any, why: str
) -> None:
    with pytest.raises(ConfigError) as error:
        ExportRequest(
            *(tmp_path, tmp_path, tmp_path),
            options=BuildOptions(quantize),
            calibrate=(tmp_path / "d.jsonl",),
        )

    assert str(error.value) == (
        f"reading the build options: data to calibrate on, and {why}. "
        "Add --quantize int4 or int8, or leave it out."
    )


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (64, "96 inputs, blocks of 64; expected a block that divides the inputs"),
        (24, "blocks of 24; expected a power of 2, at least 16"),
        (8, "blocks of 8; expected a power of 2, at least 16"),
    ],
)
@pytest.mark.parametrize("target", ["onnx-cpu", "openvino"])
def test_blocks_that_do_not_fit_leave_nothing_behind(
    exported: Exported, tmp_path: Path, target: str, block: int, said: str
) -> None:
    with pytest.raises(ExportError) as error:
        exported(target=target, options=BuildOptions("int4", block=block))

    assert said in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["llama.safetensors"]


def test_only_products_and_tables_are_rounded(block_bases: dict[str, Path]) -> None:
    from pl_compile.config.contract import GraphContract
    from pl_compile.families.read import read_decoder_config

    base = block_bases["gpt2"]
    config = read_decoder_config(base)
    sizes = {n: getattr(config, n) for n in ("layers", "kv_heads", "head_dim", "hidden", "vocab")}
    contract = GraphContract(**sizes, capacity=40, prompts="baked", baked_tasks=("a",))
    weights = load_weights(open_checkpoint(base), config)
    model = build_decoder(config, contract, weights, np.ones((1, 3, config.hidden), np.float32))

    run_passes(model, [QuantizeWeights(Scheme(4, 16), Scheme(8, 16))])

    floats = {
        name: value.const_value.shape.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.dtype == 1
    }
    assert floats["prompts.baked"] == (3, config.hidden)
    assert floats["positions.weight"] == (config.positions, config.hidden)
    assert not [name for name, shape in floats.items() if name.endswith("up.weight")]


def test_a_session_serves_rounded_weights(exported: Exported) -> None:
    from pl_compile.runtime import Request

    result = exported(options=BuildOptions("int4", block=16))

    answer = Session.open(result.bundle).generate([Request("tone", {"sentence": "cold"})])[0]

    assert answer.text in ("positive", "negative", "neutral")


@pytest.mark.parametrize("quantize", ["int4", "int8"])
def test_a_bundle_that_disagrees_with_torch_within_its_limit_verifies(
    exported: Exported, quantize: Any
) -> None:
    from pl_compile.driver.verify import verify_bundle

    result = exported(options=BuildOptions(quantize, block=16))
    assert result.verdict == "passed"
    if quantize == "int4":
        assert any(parity.equal_tokens < parity.rows * parity.steps for parity in result.parity)

    verified = verify_bundle(result.bundle)

    assert verified.passed
    assert [test.max_abs_difference for test in verified.selftests] == [0.0, 0.0, 0.0]


@pytest.fixture
def learned(block_bases: dict[str, Path], tmp_path: Path) -> dict[str, ServedTask]:
    """The tasks of a random table, by name."""
    base = block_bases["llama"]
    table = read_prompt_table(random_table(base, tmp_path / "table.safetensors"))
    tokenizer = Tokenizer.from_folder(base)
    return {name: ServedTask.of(entry, tokenizer) for name, entry in table.entries.items()}


def examples_of(paths: list[Path], learned: dict[str, ServedTask]) -> list[Example]:
    templates = {name: prompt.renderer.template for name, prompt in learned.items()}
    return read_examples(paths, templates, answers=False)


def test_calibration_spreads_over_all_files_and_takes_questions_without_an_answer(
    learned: dict[str, ServedTask], tmp_path: Path
) -> None:
    from pl_compile.driver.calibrate import MOST_EXAMPLES, calibration_prompts

    tone = [{"taskname": "tone", "sentence": "a", "label": "positive"}] * MOST_EXAMPLES
    ask: list[dict[str, Any]] = [
        {"taskname": "ask", "question": "why?", "place": "b", "answer": answer}
        for answer in ([], ["cold", "a bill"], "cold")
    ]
    paths = [write_jsonl(tmp_path / "tone.jsonl", tone), write_jsonl(tmp_path / "ask.jsonl", ask)]

    rows = calibration_prompts(examples_of(paths, learned), learned, capacity=90, vocab=397)

    asked = [ids for prompt, ids in rows if prompt is learned["ask"]]
    assert len(rows) == MOST_EXAMPLES
    assert len(asked) >= 2
    alone = examples_of(paths[1:], learned)
    short, long = (
        calibration_prompts(alone, learned, capacity=90, vocab=397)[n][1] for n in (0, 1)
    )
    assert len(short) < len(long)


def test_calibration_says_which_examples_it_cuts(
    learned: dict[str, ServedTask], tmp_path: Path
) -> None:
    from pl_compile.driver.calibrate import calibration_prompts

    rows = [
        {"taskname": "ask", "question": question, "place": "b", "answer": "cold"}
        for question in ("why?", "cold " * 90)
    ]
    path, told = write_jsonl(tmp_path / "ask.jsonl", rows), Told()

    calibration_prompts(
        examples_of([path], learned), learned, capacity=60, vocab=397, progress=told
    )

    (line,) = told.lines
    assert re.fullmatch(
        r"calibrating: cut 1 of 2 to fit 60 tokens, by up to \d+ \(.*ask\.jsonl:2\)", line
    )


def test_calibration_names_the_example_that_does_not_fit(
    exported: Exported, tmp_path: Path
) -> None:
    rows = [{"taskname": "tone", "sentence": "cold " * 90, "label": "positive"}]
    data = write_jsonl(tmp_path / "examples.jsonl", rows)

    with pytest.raises(DataError, match=r"calibrating on .*examples\.jsonl:1"):
        exported(options=BuildOptions("int4", block=16), calibrate=(data,))
