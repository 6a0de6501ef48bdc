"""What TensorRT makes of the graphs, on a machine without a GPU: parsed, interpreted, built.

Skipped by name where `tensorrt_rtx` is not installed; test_tensorrt_guards.py checks guards and
interpreter there, on layers made by hand.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from pl_compile.checkpoints.checkpoint import open_checkpoint
from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.errors import ExportError
from pl_compile.exporters.exporter import Exporter, PassInputs
from pl_compile.exporters.onnx.cpu import OnnxCpuExporter
from pl_compile.exporters.tensorrt import api as trt_module
from pl_compile.exporters.tensorrt.api import PlanOptions, build_plan, parse
from pl_compile.exporters.tensorrt.exporter import TensorRtExporter
from pl_compile.exporters.tensorrt.interpreter import Interpreter
from pl_compile.families.read import read_decoder_config
from pl_compile.families.registry import FAMILIES
from pl_compile.graph.decoder import build_decoder
from pl_compile.passes.pipeline import run_passes
from pl_compile.testing import write_tiny_base
from pl_compile.weights.load import load_weights

pytest.importorskip(
    "tensorrt_rtx",
    reason="needs tensorrt_rtx (pip install tensorrt-rtx-cu13); without it: "
    "test_tensorrt_guards.py",
)

CAPACITY, SEQ = 40, 7
KINDS: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
# Of the largest logit: what rounding does to a tiny random base, measured, with room.
CASES = [
    (BuildOptions("none"), 3e-6),
    (BuildOptions("none", dtype="float16"), 6e-3),
    (BuildOptions("none", dtype="bfloat16"), 5e-2),
    (BuildOptions("int8", dtype="float16"), 0.1),
    (BuildOptions("int4", dtype="float16"), 0.5),
]
Step = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def block_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("trt-bases")
    return {f: write_tiny_base(root / f, f, blocks=True) for f in FAMILIES}


def contract_of(config: DecoderConfig) -> GraphContract:
    sizes = {n: getattr(config, n) for n in ("layers", "kv_heads", "head_dim", "hidden", "vocab")}
    return GraphContract(**sizes, capacity=CAPACITY, prompts="input")


def built(exporter: Exporter, base: Path, folder: Path, options: BuildOptions) -> GraphContract:
    folder.mkdir()
    config = read_decoder_config(base)
    contract = contract_of(config)
    model = build_decoder(config, contract, load_weights(open_checkpoint(base), config))
    run_passes(model, exporter.passes(PassInputs(config, contract, options)).all)
    exporter.build(model, folder, contract, options)
    return contract


def interpreter_of(model: Path) -> Interpreter:
    values = ir.load(model).graph.initializers.values()
    constants = {str(v.name): v.const_value.numpy() for v in values if v.const_value is not None}
    return Interpreter(parse(model, "tensorrt-rtx"), constants)


def generate(step: Step, contract: GraphContract, kind: Any) -> np.ndarray:
    """Logits of a prompt of two rows and of four tokens after it, given the same tokens."""
    generator = np.random.default_rng(0)
    ids = generator.integers(0, contract.vocab, (2, SEQ))
    ids[0, 2] = contract.vocab + 1  # a virtual token
    prompts = generator.normal(scale=0.1, size=(2, 3, contract.hidden)).astype(np.float32)
    shape = (2, contract.kv_heads, CAPACITY, contract.head_dim)
    caches = {past: np.zeros(shape, kind) for past, _ in contract.cache_names}
    past, seen = np.zeros(2, np.int64), []
    last = np.asarray([SEQ - 1, SEQ - 3])
    for _ in range(5):
        inputs = {"input_ids": ids, "past_lengths": past, "last_index": last}
        outputs = step({**inputs, "prompt_table": prompts, **caches})
        seen.append(outputs["logits"])
        caches = {a: outputs[b] for a, b in contract.cache_names}
        past = past + last + 1
        ids = generator.integers(0, contract.vocab, (2, 1))
        last = np.zeros(2, np.int64)
    return np.stack(seen)


def by_onnxruntime(model: Path) -> Step:
    session = onnxruntime.InferenceSession(str(model))
    names = [output.name for output in session.get_outputs()]

    def step(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = [
            session.run(None, {name: array[row : row + 1] for name, array in inputs.items()})
            for row in range(2)
        ]
        return {n: np.concatenate(parts) for n, *parts in zip(names, *rows, strict=True)}

    return step


@pytest.mark.parametrize(("options", "limit"), CASES, ids=["fp32", "fp16", "bf16", "int8", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_parsed_computes_what_onnxruntime_does(
    block_bases: dict[str, Path], tmp_path: Path, family: str, options: BuildOptions, limit: float
) -> None:
    base = block_bases[family]
    contract = built(OnnxCpuExporter(), base, tmp_path / "cpu", BuildOptions("none"))
    expected = generate(by_onnxruntime(tmp_path / "cpu" / "model.onnx"), contract, np.float32)

    built(TensorRtExporter("tensorrt-rtx"), base, tmp_path / "trt", options)

    interpreter = interpreter_of(tmp_path / "trt" / "model.onnx")
    found = generate(interpreter.run, contract, KINDS[options.dtype])
    assert np.abs(found - expected).max() < limit * np.abs(expected).max()
    assert (tmp_path / "trt" / "model.plan").stat().st_size > 10_000


def planted(base: Path, folder: Path, **attributes: Any) -> Path:
    """The graph for ONNX Runtime's Attention, which TensorRT takes and makes something else of."""
    from pl_compile.exporters.bodies import attend_to_longest, library_of
    from pl_compile.exporters.onnx.files import save
    from pl_compile.passes.link_functions import LinkFunctions
    from pl_compile.passes.name_functions import NameFunctions

    config = read_decoder_config(base)
    model = build_decoder(config, contract_of(config), load_weights(open_checkpoint(base), config))
    run_passes(model, [LinkFunctions(library_of(attend_to_longest)), NameFunctions()])
    for node in model.functions[("plc", "Attention_body_1", "")]:
        if node.op_type == "Attention":
            for name, value in attributes.items():
                node.attributes[name] = ir.AttrInt64(name, value)
    save(model, folder)
    return folder / "model.onnx"


@pytest.mark.parametrize(
    ("is_causal", "said"), [(1, "causal kind UPPER_LEFT and no mask"), (0, "NONE and no mask")]
)
def test_an_attention_that_would_be_miscompiled_is_refused(
    block_bases: dict[str, Path], tmp_path: Path, is_causal: int, said: str
) -> None:
    model = planted(block_bases["llama"], tmp_path, is_causal=is_causal)

    with pytest.raises(ExportError, match=said):
        parse(model, "tensorrt-rtx")


def test_a_build_that_is_stopped_ends(
    block_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C reaches the main thread alone, and TensorRT's monitor must hear of it."""
    options = BuildOptions("none", defer_build=True)
    built(TensorRtExporter("tensorrt-rtx"), block_bases["llama"], tmp_path / "a", options)
    parsed = parse(tmp_path / "a" / "model.onnx", "tensorrt-rtx")
    monitors: list[Any] = []
    monitor = trt_module._monitor

    def noted(trt: Any, said: Any, stopped: Any) -> Any:
        monitors.append(stopped)
        return monitor(trt, said, stopped)

    monkeypatch.setattr(trt_module, "_monitor", noted)
    phases: list[str] = []

    def interrupting(phase: str) -> None:
        phases.append(phase)
        if len(phases) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    # A process that was started in the background ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_plan(parsed, PlanOptions(4, CAPACITY), said=interrupting)
    finally:
        signal.signal(signal.SIGINT, before)

    assert monitors[0].is_set()


def changed_model(base: Path, folder: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """The graph for TensorRT after a change that no export of ours makes."""
    built(TensorRtExporter("tensorrt-rtx"), base, folder, BuildOptions("none", defer_build=True))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    change(model)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def _dynamic(model: onnx.ModelProto) -> None:
    for value in [*model.graph.input, *model.graph.output]:
        if "_key." in value.name or "_value." in value.name:
            value.type.tensor_type.shape.dim[2].dim_param = "capacity"


def _uint4(model: onnx.ModelProto) -> None:
    numbers = onnx.helper.make_tensor("four", onnx.TensorProto.UINT4, [2, 2], [1, 2, 3, 4])
    model.graph.initializer.append(numbers)
    scale = onnx.helper.make_tensor("step", onnx.TensorProto.FLOAT, [], [0.5])
    model.graph.initializer.append(scale)
    node = onnx.helper.make_node("DequantizeLinear", ["four", "step"], ["two"], name="two")
    model.graph.node.append(node)
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("two", onnx.TensorProto.FLOAT, [2, 2])
    )


@pytest.mark.parametrize("change", [_dynamic, _uint4])
def test_a_dynamic_capacity_and_uint4_do_not_get_past_the_parser(
    block_bases: dict[str, Path], tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    model = changed_model(block_bases["llama"], tmp_path / "b", change)

    with pytest.raises(ExportError, match="TensorRT"):
        parse(model, "tensorrt-rtx")


@pytest.mark.parametrize("is_causal", [1, 0])
def test_the_interpreter_sees_the_miscompilation_itself(
    block_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_causal: int
) -> None:
    """Were the guard not there: what ONNX Runtime makes of the very same file, TensorRT does not.

    Causal, it is aligned elsewhere: decode is wrong, and only decode. Else `nonpad_kv_seqlen` is
    dropped, and all of the cache is seen.
    """
    base = block_bases["llama"]
    contract = contract_of(read_decoder_config(base))
    model = planted(base, tmp_path, is_causal=is_causal)
    expected = generate(by_onnxruntime(model), contract, np.float32)
    monkeypatch.setattr("pl_compile.exporters.tensorrt.api.check_network", lambda *_, **__: None)

    interpreter = interpreter_of(model)

    found = generate(interpreter.run, contract, np.float32)
    wrong = np.abs(found - expected).max((1, 2)) / np.abs(expected).max()
    assert (wrong[0] < 3e-6) == bool(is_causal)
    assert wrong[1:].min() > 1e-2


@pytest.mark.parametrize(
    ("capability", "said"), [("8.6", None), ("3.0", "'3\\.0'; expected 7\\.5, 8\\.0, .*12\\.0")]
)
def test_plans_are_for_the_processors_that_were_named(
    block_bases: dict[str, Path], tmp_path: Path, capability: str, said: str | None
) -> None:
    built(
        TensorRtExporter("tensorrt-rtx"), block_bases["llama"], tmp_path / "a", BuildOptions("none")
    )
    parsed = parse(tmp_path / "a" / "model.onnx", "tensorrt-rtx")
    phases: list[str] = []
    options = PlanOptions(4, CAPACITY, (capability,))

    if said is None:
        plan = build_plan(parsed, options, said=phases.append)
        assert len(plan.data) > 10_000
        assert plan.layers["KV_CACHE_UPDATE"] == 4
        assert phases
    else:
        with pytest.raises(ExportError, match=said):
            build_plan(parsed, options)
