"""Bundles for TensorRT, from the prompt table to the plan, checked on a machine without a GPU.

Skipped by name where `tensorrt_rtx` is not installed; test_tensorrt_targets.py has what runs there.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from pl_compile.artifact.bundle import read_bundle
from pl_compile.artifact.plan_record import read_plan_record
from pl_compile.checks.interpreted_engine import InterpretedPlan, interpreted_engine
from pl_compile.config.build import BuildOptions
from pl_compile.config.sampling import Sampling
from pl_compile.driver.build_plans import build_bundle
from pl_compile.driver.describe import describe
from pl_compile.driver.export import ExportResult, export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.forecast import forecast_export
from pl_compile.driver.probe_attention import choose_attention, compare_forms
from pl_compile.driver.verify import verify_bundle
from pl_compile.errors import ArtifactError, ExportError
from pl_compile.exporters.tensorrt.api import ParsedNetwork, layers_of, parse, typed
from pl_compile.exporters.tensorrt.interpreter import Interpreter
from pl_compile.families.registry import FAMILIES
from pl_compile.runtime.engines.engine import Engine
from pl_compile.runtime.engines.tensorrt.engine import TensorRtEngine, check_bindings
from pl_compile.runtime.requests import Request
from pl_compile.runtime.served_task import tasks_of_bundle
from pl_compile.runtime.session import Session
from pl_compile.runtime.stepping import Batch
from pl_compile.testing import random_table, sign_bundle, write_tiny_base
from pl_compile.text.tokenizer import Tokenizer

pytest.importorskip(
    "tensorrt_rtx",
    reason="needs tensorrt_rtx (pip install tensorrt-rtx-cu13); without it: "
    "test_tensorrt_targets.py",
)

RTX = "tensorrt-rtx"
REQUESTS = [
    Request("tone", {"sentence": "who was there at all?"}, max_tokens=6),
    Request("ask", {"question": "who", "place": "the fox"}, max_tokens=6),
    Request("order", {"request": "lights off"}, max_tokens=6),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("plan-bases")
    return {
        # Random weights with which most tokens agree in 4 bits: not all do.
        "llama": write_tiny_base(root / "llama", "llama", seed=8, blocks=True),
        "groups": write_tiny_base(root / "groups", "llama", blocks=True, kv_heads=3),
        "gpt2": write_tiny_base(root / "gpt2", "gpt2", blocks=True),
        "gemma3_text": write_tiny_base(root / "gemma3_text", "gemma3_text", blocks=True),
    }


def exported(base: Path, folder: Path, name: str = "bundle", **changes: Any) -> ExportResult:
    table = folder / f"{base.name}.safetensors"
    if not table.exists():
        random_table(base, table, prefix=True)
    request = ExportRequest(table, base, folder / name, **{"target": RTX, **changes})
    return export_bundle(request)


@pytest.fixture(scope="module")
def plain(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in float32 whose plan is built, for what is done to bundles."""
    return exported(bases["llama"], tmp_path_factory.mktemp("plain"), capacity=64).bundle


def session_on(bundle: Path, *, max_batch: int = 4) -> Session:
    """A session on what TensorRT understood."""
    checked = read_bundle(bundle)
    manifest = checked.manifest
    engine = interpreted_engine(
        checked.base_folder,
        RTX,
        manifest.graph,
        max_batch=max_batch,
        dtype=manifest.precision.dtype,
    )
    tokenizer = Tokenizer.from_folder(bundle)
    return Session(tokenizer, tasks_of_bundle(checked, tokenizer), engine)


CASES = [
    (BuildOptions(), 1e-5),
    (BuildOptions(dtype="float16"), 0.02),
    (BuildOptions(dtype="bfloat16"), 0.1),
    (BuildOptions("int8", dtype="float16"), 0.1),
    (BuildOptions("int4", dtype="float16"), 0.5),
]


@pytest.mark.parametrize(("options", "limit"), CASES, ids=["fp32", "fp16", "bf16", "int8", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_precision_is_built_and_near_torch(
    bases: dict[str, Path], tmp_path: Path, family: str, options: BuildOptions, limit: float
) -> None:
    result = exported(bases[family], tmp_path, options=options)

    assert result.verdict == "passed", result.failures
    assert max(parity.relative_difference for parity in result.parity) < limit
    (record,) = result.plans
    assert record == read_plan_record(result.bundle / "base")
    assert (result.bundle / "base" / "model.plan").stat().st_size == record.plan_bytes > 10_000
    assert record.seconds > 0
    config = json.loads((bases[family] / "config.json").read_text())
    layers = config.get("num_hidden_layers") or config["n_layer"]
    assert record.layers["ATTENTION_INPUT"] == layers
    assert record.layers["KV_CACHE_UPDATE"] == 2 * layers
    manifest = read_bundle(result.bundle).manifest
    assert manifest.precision.dtype == options.dtype
    assert manifest.graph.baked_tasks == ("tone", "ask", "order")  # the default of engines
    assert manifest.toolchain[RTX] == record.version
    assert "<h2>Plans</h2>" in (result.bundle / "report.html").read_text()
    assert verify_bundle(result.bundle).passed


@pytest.mark.parametrize("prompts", ["input", "baked"])
def test_its_answers_are_those_of_onnx_runtime(
    bases: dict[str, Path], tmp_path: Path, prompts: Any
) -> None:
    """Mixed tasks, folded openings, learned prefixes, labels: all on the engine of plans."""
    plan = exported(bases["llama"], tmp_path, prompts=prompts, measure_parity=False)
    onnx_cpu = exported(
        bases["llama"], tmp_path, "cpu", target="onnx-cpu", prompts=prompts, measure_parity=False
    )

    found, expected = session_on(plan.bundle), Session.open(onnx_cpu.bundle)

    assert found.generate(REQUESTS) == expected.generate(REQUESTS)
    ours, theirs = (session.score(REQUESTS[:1])[0] for session in (found, expected))
    assert [s.label for s in ours] == [s.label for s in theirs]
    np.testing.assert_allclose([s.probability for s in ours], [s.probability for s in theirs], 1e-4)


def test_its_graph_draws_what_the_host_would(bases: dict[str, Path], tmp_path: Path) -> None:
    drawn = [replace(request, sampling=Sampling(0.9, 8, 0.8, seed=5)) for request in REQUESTS]
    graph = exported(
        bases["llama"],
        tmp_path,
        options=BuildOptions(sampling="graph", candidates=16),
        measure_parity=False,
    )
    host = exported(bases["llama"], tmp_path, "host", target="onnx-cpu", measure_parity=False)

    assert session_on(graph.bundle).generate(drawn) == Session.open(host.bundle).generate(drawn)


@pytest.mark.parametrize(("family", "ranks"), [("groups", 2), ("groups", 3), ("gpt2", 2)])
def test_ranks_are_built_one_plan_each_and_compute_the_whole(
    bases: dict[str, Path], tmp_path: Path, family: str, ranks: int
) -> None:
    result = exported(bases[family], tmp_path, options=BuildOptions(ranks=ranks))

    assert result.verdict == "passed", result.failures
    assert max(parity.relative_difference for parity in result.parity) < 1e-5
    assert [record.ranks for record in result.plans] == [ranks] * ranks
    assert all(record.layers["DIST_COLLECTIVE"] > 0 for record in result.plans)
    for rank in range(ranks):
        assert (result.bundle / "base" / f"rank{rank}" / "model.plan").is_file()
    assert verify_bundle(result.bundle).passed


def test_a_rank_that_fails_ends_the_others(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In threads too: nobody waits in a sum for one that has raised."""
    result = exported(bases["llama"], tmp_path, options=BuildOptions(ranks=2), capacity=64)
    session = session_on(result.bundle)
    run = InterpretedPlan.run
    calls = []

    def failing(self: InterpretedPlan, *arguments: Any) -> Any:
        calls.append(self)
        if len(calls) == 2:
            raise ExportError("computing", found="a rank that fails")
        return run(self, *arguments)

    monkeypatch.setattr(InterpretedPlan, "run", failing)

    with pytest.raises(ExportError, match="a rank that fails"):
        session.generate(REQUESTS[:1])


def test_a_collective_whose_ranks_are_misspelt_is_refused(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    """TensorRT takes it for a collective of one rank, and says nothing."""
    options = BuildOptions(ranks=2, defer_build=True)
    result = exported(bases["llama"], tmp_path, options=options, measure_parity=False)
    path = result.bundle / "base" / "rank0" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "nb_rank":
                attribute.name = "nb_ranks"
    onnx.save(model, path)

    with pytest.raises(ExportError, match="a collective of 1 ranks; expected 2"):
        parse(path, RTX, ranks=2)


def test_ranks_without_a_collective_are_refused(plain: Path) -> None:
    with pytest.raises(ExportError, match="no collective, and 2 ranks"):
        parse(plain / "base" / "model.onnx", RTX, ranks=2)


@pytest.mark.parametrize("target", [RTX, "tensorrt"])
def test_a_deferred_build_is_finished_by_plc_build(
    bases: dict[str, Path], tmp_path: Path, target: str
) -> None:
    result = exported(
        bases["llama"], tmp_path, target=target, options=BuildOptions(defer_build=True, ranks=2)
    )
    bundle = result.bundle
    assert result.verdict == "passed"  # what the parser made was compared, here
    assert result.plans == ()
    assert not list(bundle.rglob("model.plan"))
    if target == "tensorrt":
        with pytest.raises(ExportError, match=r"tensorrt'?; expected the package tensorrt"):
            build_bundle(bundle)
        assert verify_bundle(bundle, flavour=RTX).passed
        return
    kept = {p: p.read_bytes() for p in bundle.rglob("*.safetensors")}

    built = build_bundle(bundle, max_batch=3)

    assert [record.max_batch for record in built.plans] == [3, 3]
    report = json.loads((bundle / "report.json").read_text())
    assert [plan["max_batch"] for plan in report["plans"]] == [3, 3]
    assert built.attention.startswith("mask: no GPU to ask")
    for rank, record in enumerate(built.plans):
        assert read_plan_record(bundle / "base" / f"rank{rank}") == record
    assert {p: p.read_bytes() for p in bundle.rglob("*.safetensors")} == kept
    # Folded prefixes still belong to it: a plan computes what its ONNX file says.
    assert verify_bundle(bundle).passed
    again = build_bundle(bundle)
    assert [record.max_batch for record in again.plans] == [3, 3]  # its profile is kept


def test_a_bundle_without_plans_is_not_built(bases: dict[str, Path], tmp_path: Path) -> None:
    bundle = exported(bases["llama"], tmp_path, target="onnx-cpu", measure_parity=False).bundle

    with pytest.raises(ExportError, match=r"target 'onnx-cpu'; expected tensorrt-rtx or tensorrt"):
        build_bundle(bundle)


def test_a_build_that_fails_leaves_the_bundle_as_it_was(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shutil.copytree(plain, tmp_path / "bundle")
    before = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}

    def refusing(*_: Any, **__: Any) -> None:
        raise ExportError("building a TensorRT plan", found="no")

    monkeypatch.setattr("pl_compile.exporters.tensorrt.exporter.build_plan", refusing)
    with pytest.raises(ExportError, match="building a TensorRT plan"):
        build_bundle(bundle)

    assert {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_the_other_form_of_attention_is_built_where_it_is_asked_for(
    plain: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(plain, tmp_path / "bundle")
    model = (bundle / "base" / "model.onnx").read_bytes()

    built = build_bundle(bundle, attention="lower_right")

    assert [record.attention for record in built.plans] == ["lower_right"]
    assert (bundle / "base" / "model.onnx").read_bytes() == model
    # It is this form that is asked about, and it computes the same.
    assert verify_bundle(bundle).passed
    record = bundle / "base" / "plan.json"
    record.write_text(record.read_text().replace("lower_right", "mask"))
    sign_bundle(bundle)
    assert verify_bundle(bundle).passed


def _interpreted(parsed: ParsedNetwork) -> Callable[[Any], Any]:
    return Interpreter(parsed).run


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_probe_takes_the_other_form_only_where_it_is_the_same(dtype: str) -> None:
    form, why = compare_forms(RTX, 16, dtype, _interpreted)
    assert (form, "what the mask does" in why) == ("lower_right", True)

    def otherwise(parsed: ParsedNetwork) -> Callable[[Any], Any]:
        """A GPU on which lengths mean nothing: what the header does not rule out."""
        kind = parsed.trt.LayerType.ATTENTION_INPUT
        (layer,) = [typed(parsed.trt, each) for each in layers_of(parsed) if each.type == kind]
        run = _interpreted(parsed)
        if layer.attention.causal_kind.name == "NONE":
            return run
        return lambda inputs: run({**inputs, "past_lengths": inputs["past_lengths"] * 0 + 10})

    form, why = compare_forms(RTX, 16, dtype, otherwise)
    assert (form, "differs by" in why) == ("mask", True)

    def refusing(parsed: ParsedNetwork) -> Callable[[Any], Any]:
        raise ExportError("asking the GPU", found="TensorRT does not take the plan")

    form, why = compare_forms(RTX, 16, dtype, refusing)
    assert (form, "does not take the plan" in why) == ("mask", True)


@pytest.mark.parametrize(
    ("target", "wanted", "asked"),
    [
        ("tensorrt", (), True),
        (RTX, ("8.9",), True),
        (RTX, (), False),
        (RTX, ("8.6",), False),
        (RTX, ("8.6", "8.9"), False),
    ],
)
def test_a_gpu_is_asked_for_itself_alone(
    target: str, wanted: tuple[str, ...], asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = SimpleNamespace(compute_capability="8.9")
    monkeypatch.setattr("pl_compile.driver.probe_attention.Cuda", lambda: gpu)
    monkeypatch.setattr(
        "pl_compile.driver.probe_attention.compare_forms", lambda *_: ("lower_right", "it was")
    )

    form, why = choose_attention(target, 16, "float16", wanted)

    assert form == ("lower_right" if asked else "mask")
    assert asked or "for other GPUs than the one that could be asked (8.9)" in why


def test_a_plan_is_wrapped_for_onnx_runtime_where_it_is_asked_for(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    options = BuildOptions(ep_context=True, compute_capabilities=("8.6", "8.9"))
    result = exported(bases["llama"], tmp_path, options=options, measure_parity=False)
    base = result.bundle / "base"

    wrapped = onnx.load(base / "model_ctx.onnx")

    onnx.checker.check_model(wrapped)
    model = onnx.load(base / "model.onnx", load_external_data=False)
    for kind in ("input", "output"):
        ours, theirs = ([v.name for v in getattr(each.graph, kind)] for each in (wrapped, model))
        assert ours == theirs
    (node,) = wrapped.graph.node
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes["ep_cache_context"] == b"model.plan"
    assert attributes["hardware_architecture"] == b"80+"
    assert result.plans[0].compute_capabilities == ("8.6", "8.9")
    assert verify_bundle(result.bundle).passed
    # Built again, it is for the same GPUs and wrapped again.
    again = build_bundle(result.bundle)
    assert again.plans[0].compute_capabilities == ("8.6", "8.9")
    assert (base / "model_ctx.onnx").is_file()


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"version": "1.2.0"}, r"a plan: tensorrt-rtx 1\.2\.0; expected tensorrt-rtx 1\.\d[^;]*$"),
    ({"flavour": "tensorrt"}, r"a plan: tensorrt 1[^;]*; expected tensorrt-rtx"),
    ({"onnx": "0" * 64}, r"built from another model\.onnx"),
    ({"capacity": 9}, r"plan\.json with ranks 1, capacity 9; expected ranks 1, capacity "),
    ({"ranks": 2}, r"plan\.json with ranks 2, capacity "),
    ({"ranks": 10**15}, r"ranks 10+, expected 1 to 1024"),
    ({"max_batch": 0}, r"max_batch 0, expected 1 to 4096"),
    ({"max_batch": 10**15}, r"max_batch 10+, expected 1 to 4096"),
    ({"attention": "none"}, r"'attention' is 'none', expected one of mask, lower_right"),
    ({"seconds": "now"}, r"'seconds' is 'now', expected a number"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_a_plan_of_something_else_is_refused_before_the_driver_is_asked(
    plain: Path, tmp_path: Path, change: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shutil.copytree(plain, tmp_path / "bundle")
    path = bundle / "base" / "plan.json"
    built_for = {"compute_capabilities": ["8.6"]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **built_for, **change}))
    sign_bundle(bundle)

    def asked(*_: Any) -> None:
        raise AssertionError("the driver was asked")

    monkeypatch.setattr("pl_compile.runtime.engines.tensorrt.gpu_plan.Cuda", asked)

    with pytest.raises(ArtifactError, match=said):
        Session.open(bundle)


def test_plc_inspect_says_what_a_plan_was_built_with(plain: Path) -> None:
    (plan,) = describe(plain)["plans"]

    assert plan == describe(plain / "base" / "model.plan")
    assert (plan["flavour"], plan["capacity"], plan["profiles"]) == (RTX, 64, ("prompt", "token"))


def test_plans_of_ranks_are_refused_before_a_rank_is_started(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    options = BuildOptions(ranks=2)
    result = exported(bases["llama"], tmp_path, options=options, measure_parity=False)
    path = result.bundle / "base" / "rank1" / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": "1.2.0"}))
    sign_bundle(result.bundle)

    with pytest.raises(ArtifactError, match=r"a plan: tensorrt-rtx 1\.2\.0"):
        Session.open(result.bundle)


def test_more_rows_than_a_plan_takes_are_refused(plain: Path) -> None:
    with pytest.raises(ArtifactError, match="max_batch 17; expected at most 16"):
        Session.open(plain, max_batch=17)


def test_a_plan_with_slots_at_odd_addresses_is_refused(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier releases wrote them."""
    monkeypatch.setattr("pl_compile.config.contract.ALIGNED", 1 << 20)

    with pytest.raises(ArtifactError, match=r"capacity 64; .* again with another --capacity"):
        Session.open(plain)


def test_where_no_plan_was_built_the_command_that_builds_it_is_named(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    options = BuildOptions(defer_build=True)
    bundle = exported(bases["llama"], tmp_path, options=options, measure_parity=False).bundle

    with pytest.raises(ArtifactError, match=r"no plan was built yet.*plc build BUNDLE"):
        Session.open(bundle)


@pytest.mark.skipif(
    os.path.exists("/dev/nvidia0"),
    reason="needs a machine without a GPU (no /dev/nvidia0); with one: "
    "test_an_error_of_cuda_says_which_call_and_what_cuda_says",
)
def test_without_a_gpu_opening_a_plan_says_what_is_missing(plain: Path) -> None:
    """Its sibling where there is one: test_an_error_of_cuda_says_which_call_and_what_cuda_says."""
    with pytest.raises(ArtifactError, match=r"looking for NVIDIA's GPU 0.*plc verify"):
        Session.open(plain)


@pytest.mark.gpu
@pytest.mark.skipif(
    not os.path.exists("/dev/nvidia0"),
    reason="needs an NVIDIA GPU (/dev/nvidia0); without one: "
    "test_its_answers_are_those_of_onnx_runtime, tests/runtime/test_tensorrt_engine.py",
)
def test_on_a_gpu_a_plan_answers_as_onnx_runtime_does(
    plain: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    """Never run by this project. Its siblings without a GPU:
    test_its_answers_are_those_of_onnx_runtime, and tests/runtime/test_tensorrt_engine.py."""
    bundle = shutil.copytree(plain, tmp_path / "bundle")
    build_bundle(bundle)
    onnx_cpu = exported(bases["llama"], tmp_path, "cpu", target="onnx-cpu", capacity=64)

    assert Session.open(bundle).generate(REQUESTS) == Session.open(onnx_cpu.bundle).generate(
        REQUESTS
    )


def test_what_the_interface_does_not_say_is_refused(plain: Path) -> None:
    """A plan whose caches are not updated in place, or of another type, must not be served."""
    graph = read_bundle(plain).manifest.graph
    parsed = parse(plain / "base" / "model.onnx", RTX)
    good = InterpretedPlan(parsed, {}, graph, 2).bindings
    check_bindings(good, graph, "float32")

    present = good["present_key.1"]
    for name, binding in (
        ("present_key.1", replace(present, alias=None)),
        ("present_key.1", replace(present, alias="past_value.1")),
        ("past_value.0", replace(good["past_value.0"], dtype="float16")),
        ("logits", replace(good["logits"], shape=(-1, graph.vocab + 1))),
    ):
        with pytest.raises(ArtifactError, match=f"'{name}' Binding"):
            check_bindings({**good, name: binding}, graph, "float32")
    with pytest.raises(ArtifactError, match="'task_id' is not there"):
        check_bindings({k: v for k, v in good.items() if k != "task_id"}, graph, "float32")


def test_rows_may_not_end_after_their_caches(plain: Path) -> None:
    """TensorRT would drop what falls after the capacity, and say nothing."""
    session = session_on(plain)
    engine: Engine = session.engine
    assert isinstance(engine, TensorRtEngine)
    batch = Batch(engine)
    batch.admit(0, session.tasks["tone"])
    batch.feed({0: np.zeros(1, np.int64)})

    with pytest.raises(AssertionError):
        batch.feed({0: np.zeros(64, np.int64)})


def test_the_plan_of_an_export_says_what_plans_take(bases: dict[str, Path], tmp_path: Path) -> None:
    table = random_table(bases["llama"], tmp_path / "t.safetensors")
    costs = {}
    for options in (BuildOptions(), BuildOptions(defer_build=True), BuildOptions(dtype="float16")):
        request = ExportRequest(table, bases["llama"], tmp_path / "b", target=RTX, options=options)
        costs[options.defer_build, options.dtype] = forecast_export(request).base
    whole = costs[False, "float32"]
    assert whole.file_bytes == 2 * whole.weight_bytes
    assert costs[True, "float32"].file_bytes == whole.weight_bytes
    assert costs[False, "float16"].weight_bytes == whole.weight_bytes // 2
