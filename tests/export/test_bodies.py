"""The bodies of attention and gates beside numpy, for every option and combination.

On ONNX Runtime on CPU: the bodies of `onnx-cpu`, `onnx-cuda` and `native-cpu`, and its kernel
`GroupQueryAttention`. For TensorRT: what its parser makes of the body, interpreted.
"""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from pl_compile.artifact.plan_record import AttentionForm
from pl_compile.exporters.bodies import attend_to_lengths, attend_to_longest, library_of
from pl_compile.exporters.function_body import FunctionBody
from pl_compile.exporters.native.cpu import LIBRARY
from pl_compile.exporters.tensorrt.exporter import attend_masked
from pl_compile.graph.blocks import Padded, Rotary, attention, token_positions
from pl_compile.graph.builder import GraphBuilder
from pl_compile.graph.operators import GEGLU, PLC_DOMAIN, SWIGLU, AttentionSettings
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.link_functions import LinkFunctions
from pl_compile.passes.merge_products import MergeProducts
from pl_compile.passes.name_functions import NameFunctions
from pl_compile.passes.pipeline import run_passes
from pl_compile.passes.set_precision import SetPrecision
from pl_compile.passes.use_grouped_attention import UseGroupedAttention
from pl_compile.passes.use_lower_right import UseLowerRight, masked_attentions
from pl_compile.passes.use_packed_attention import UsePackedAttention

Arrays = dict[str, np.ndarray]
HEADS, KV_HEADS, DIM, CAPACITY, HIDDEN = 6, 2, 16, 80, 24
EPSILON = 1e-5


def test_two_constants_of_one_name_with_other_numbers_are_a_mistake() -> None:
    body = FunctionBody(ir.node("SwiGlu", [ir.val("x")], domain=PLC_DOMAIN), ["x"])
    first = body.constant("three", np.asarray(3))

    assert body.constant("three", np.asarray(3)) is first
    with pytest.raises(AssertionError, match="two constants are called 'three'"):
        body.constant("three", np.asarray(4))


def drawn(*sizes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *sizes]).normal(size=sizes).astype(np.float32)


WEIGHTS = {
    "a.q.weight": drawn(HIDDEN, HEADS * DIM) / 3,
    "a.k.weight": drawn(HIDDEN, KV_HEADS * DIM) / 3,
    "a.v.weight": drawn(HIDDEN, KV_HEADS * DIM, seed=1) / 3,
    "a.q_norm.weight": drawn(DIM),
    "a.k_norm.weight": drawn(DIM, seed=1),
}
ANGLES = np.outer(np.arange(CAPACITY), 10000.0 ** -(np.arange(0, DIM, 2) / DIM))
WEIGHTS |= {"cos": np.cos(ANGLES).astype(np.float32), "sin": np.sin(ANGLES).astype(np.float32)}
# Cached tokens of each row, and the step's tokens: prompts, one token, and rows past 64 entries.
STEPS = [((0, 0, 0), 7), ((3, 70, 20), 1), ((9, 0, 66), 5)]
CHANGES: list[dict[str, Any]] = [
    *({}, {"scale": 0.3}, {"softcap": 5.0}),
    *({"window": 4}, {"window": 1}, {"window": 66}),
    {"scale": 0.3, "window": 3, "softcap": 5.0},
]
OPTIONS = list(product(CHANGES, [True, False], [True, False]))
every_option = pytest.mark.parametrize(
    ("changes", "rotary", "norms"),
    OPTIONS,
    ids=[
        "-".join([*map(str, changes), "rotary" * rotary, "norms" * norms]).strip("-") or "plain"
        for changes, rotary, norms in OPTIONS
    ],
)


def settings_of(changes: dict[str, Any], *, norms: bool) -> AttentionSettings:
    usual = {"scale": DIM**-0.5, "epsilon": EPSILON if norms else 0.0}
    return AttentionSettings(HEADS, KV_HEADS, **{**usual, **changes})


def model_of(settings: AttentionSettings, *, rotary: bool, norms: bool) -> ir.Model:
    """One layer's attention of products of `x`."""
    g = GraphBuilder(WEIGHTS)
    ids = g.input("input_ids", ir.DataType.INT64, ["batch", "seq"])
    past_lengths = g.input("past_lengths", ir.DataType.INT64, ["batch"])
    x = g.input("x", ir.DataType.FLOAT, ["batch", "seq", HIDDEN])
    shape: list[int | str] = ["batch", KV_HEADS, CAPACITY, DIM]
    past_key, past_value = (
        g.input(f"past_{name}", ir.DataType.FLOAT, shape) for name in ("key", "value")
    )
    positions = token_positions(g, ids, past_lengths)
    turned = Rotary(g.weight("cos"), g.weight("sin")) if rotary else None
    parts = [g.op("MatMul", [x, g.weight(f"a.{part}.weight")], f"a.{part}") for part in "qkv"]
    y, presents = attention(
        g,
        settings,
        parts,
        (past_key, past_value),
        Padded(past_lengths, past_lengths),
        positions,
        "a",
        rotary=turned,
        norms=[g.weight(f"a.{part}_norm.weight") for part in "qk" if norms],
    )
    g.output(y, "y", ir.DataType.FLOAT, ["batch", "seq", HEADS * DIM])
    for value, name in zip(presents, ("present_key", "present_value"), strict=True):
        g.output(value, name, ir.DataType.FLOAT, shape)
    return g.model("attention")


def inputs_of(past: Sequence[int], seq: int) -> Arrays:
    rows = len(past)
    return {
        "input_ids": np.zeros((rows, seq), np.int64),
        "past_lengths": np.asarray(past, np.int64),
        "x": drawn(rows, seq, HIDDEN),
        "past_key": drawn(rows, KV_HEADS, CAPACITY, DIM),
        "past_value": drawn(rows, KV_HEADS, CAPACITY, DIM, seed=1),
    }


def expected(
    inputs: Arrays, settings: AttentionSettings, *, rotary: bool, norms: bool
) -> list[np.ndarray]:
    """What `pl_compile/graph/operators.py` says, in float64: y and both caches."""
    past, x = inputs["past_lengths"], inputs["x"].astype(np.float64)
    rows, seq, _ = x.shape
    heads = []
    for part, count in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
        value = (x @ WEIGHTS[f"a.{part}.weight"]).reshape(rows, seq, count, DIM)
        if norms and part != "v":
            mean = (value**2).mean(-1, keepdims=True)
            value = value / np.sqrt(mean + settings.epsilon) * WEIGHTS[f"a.{part}_norm.weight"]
        value = value.swapaxes(1, 2)
        if rotary and part != "v":
            at = past[:, None] + np.arange(seq)
            cos, sin = np.cos(ANGLES)[at][:, None], np.sin(ANGLES)[at][:, None]
            a, b = value[..., : DIM // 2], value[..., DIM // 2 :]
            value = np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
        heads.append(value)
    query, *new = heads
    caches = [inputs["past_key"].astype(np.float64), inputs["past_value"].astype(np.float64)]
    y = np.empty((rows, seq, HEADS, DIM))
    for row in range(rows):
        for cache, part in zip(caches, new, strict=True):
            cache[row, :, past[row] : past[row] + seq] = part[row]
        for head in range(HEADS):
            for token in range(seq):
                end = past[row] + token + 1
                seen = slice(max(0, end - settings.window) if settings.window else 0, end)
                keys, values = (cache[row, head * KV_HEADS // HEADS, seen] for cache in caches)
                scores = keys @ query[row, head, token] * settings.scale
                if settings.softcap:
                    scores = settings.softcap * np.tanh(scores / settings.softcap)
                shares = np.exp(scores - scores.max())
                y[row, token, head] = shares / shares.sum() @ values
    return [y.reshape(rows, seq, -1), *caches]


def session_of(model: ir.Model, folder: Path) -> Callable[[Arrays], list[np.ndarray]]:
    ir.save(model, folder / "model.onnx")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    known = {given.name for given in session.get_inputs()}
    return lambda inputs: session.run(None, {n: a for n, a in inputs.items() if n in known})


def assert_near(found: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> None:
    for ours, theirs in zip(found, right, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


ON_CPU: dict[str, list[GraphPass]] = {
    "onnx-cpu": [LinkFunctions(library_of(attend_to_longest))],
    "onnx-cuda": [LinkFunctions(library_of(attend_to_lengths))],
    "packed": [MergeProducts(), LinkFunctions(library_of(attend_to_longest))],
    "native-cpu": [MergeProducts(), UsePackedAttention(), LinkFunctions(LIBRARY)],
}


@every_option
@pytest.mark.parametrize("body", ON_CPU)
def test_bodies_on_onnxruntime_compute_what_the_call_says(
    body: str, changes: dict[str, Any], rotary: bool, norms: bool, tmp_path: Path
) -> None:
    settings = settings_of(changes, norms=norms)
    model = model_of(settings, rotary=rotary, norms=norms)
    run_passes(model, ON_CPU[body])
    run = session_of(model, tmp_path)

    for past, seq in STEPS:
        inputs = inputs_of(past, seq)
        assert_near(run(inputs), expected(inputs, settings, rotary=rotary, norms=norms))


@every_option
def test_the_grouped_kernel_computes_what_the_call_says(
    changes: dict[str, Any], rotary: bool, norms: bool, tmp_path: Path
) -> None:
    """Row by row: it takes several tokens after a filled cache for one row at a time only.

    Entries after a row's last are not copied where the caches are not one memory.
    """
    settings = settings_of(changes, norms=norms)
    model = model_of(settings, rotary=rotary, norms=norms)
    grouped = [MergeProducts(), UseGroupedAttention()]
    run_passes(model, [*grouped, LinkFunctions(library_of(attend_to_longest))])
    assert any(node.op_type == "GroupQueryAttention" for node in model.graph) != norms
    run = session_of(model, tmp_path)

    for past, seq in STEPS:
        inputs = inputs_of(past, seq)
        right = expected(inputs, settings, rotary=rotary, norms=norms)
        for row, before in enumerate(past):
            y, *caches = run({name: array[row : row + 1] for name, array in inputs.items()})
            live = [cache[0, :, : before + seq] for cache in caches]
            assert_near(
                [y[0], *live], [right[0][row], *(c[row, :, : before + seq] for c in right[1:])]
            )


@every_option
@pytest.mark.parametrize("form", ["mask", "lower_right"])
def test_what_tensorrt_parses_computes_what_the_call_says(
    form: AttentionForm, changes: dict[str, Any], rotary: bool, norms: bool, tmp_path: Path
) -> None:
    """Causal from the lower right, a window keeps its mask, and a softcap is spelled out."""
    pytest.importorskip(
        "tensorrt_rtx",
        reason="needs tensorrt_rtx (pip install tensorrt-rtx-cu13); without it: "
        "test_bodies_on_onnxruntime_compute_what_the_call_says",
    )
    from pl_compile.exporters.tensorrt.api import parse
    from pl_compile.exporters.tensorrt.interpreter import Interpreter

    settings = settings_of(changes, norms=norms)
    model = model_of(settings, rotary=rotary, norms=norms)
    passes: list[GraphPass] = [LinkFunctions(library_of(attend_masked)), NameFunctions()]
    run_passes(model, [*passes, *([UseLowerRight()] if form == "lower_right" else [])])
    ir.save(model, tmp_path / "model.onnx")
    parsed = parse(
        tmp_path / "model.onnx", "tensorrt-rtx", attention=form, masks=masked_attentions(model)
    )
    interpreter = Interpreter(parsed, WEIGHTS)
    kinds = [layer.attention.causal_kind.name for layer in attentions_of(parsed)]
    of_form = [] if settings.softcap else ["NONE"]
    if form == "lower_right" and not (settings.window or settings.softcap):
        of_form = ["LOWER_RIGHT"]
    assert kinds == of_form

    for past, seq in STEPS:
        inputs = inputs_of(past, seq)
        found = interpreter.run(inputs)
        right = expected(inputs, settings, rotary=rotary, norms=norms)
        assert_near([found[name] for name in ("y", "present_key", "present_value")], right)


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("changes", CHANGES[2:4], ids=str)
def test_softcaps_and_windows_build_as_plans(
    changes: dict[str, Any], dtype: Any, tmp_path: Path
) -> None:
    pytest.importorskip(
        "tensorrt_rtx",
        reason="needs tensorrt_rtx (pip install tensorrt-rtx-cu13); without it: "
        "test_bodies_on_onnxruntime_compute_what_the_call_says",
    )
    from pl_compile.exporters.tensorrt.api import PlanOptions, build_plan, parse

    model = model_of(settings_of(changes, norms=True), rotary=True, norms=True)
    precision: list[GraphPass] = [] if dtype is None else [SetPrecision(dtype)]
    run_passes(model, [*precision, LinkFunctions(library_of(attend_masked)), NameFunctions()])
    ir.save(model, tmp_path / "model.onnx")

    plan = build_plan(parse(tmp_path / "model.onnx", "tensorrt-rtx"), PlanOptions(4, CAPACITY))

    assert len(plan.data) > 10_000
    assert ("SOFTMAX" in plan.layers) == ("softcap" in changes)


def attentions_of(parsed: Any) -> list[Any]:
    from pl_compile.exporters.tensorrt.api import layers_of, typed

    layers = [layer for layer in layers_of(parsed) if layer.type.name == "ATTENTION_INPUT"]
    return [typed(parsed.trt, layer) for layer in layers]


@every_option
def test_a_row_computes_the_same_bits_beside_longer_rows(
    changes: dict[str, Any], rotary: bool, norms: bool, tmp_path: Path
) -> None:
    model = model_of(settings_of(changes, norms=norms), rotary=rotary, norms=norms)
    run_passes(model, ON_CPU["packed"])
    run = session_of(model, tmp_path)
    inputs = inputs_of((3, 70, 20), 1)

    together, *_ = run(inputs)
    alone, *_ = run({name: array[:1] for name, array in inputs.items()})

    assert np.array_equal(together[:1], alone)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("gate", [SWIGLU, GEGLU])
def test_gates_compute_what_the_paper_says(gate: str, packed: bool, tmp_path: Path) -> None:
    """silu and the tanh form of gelu: arXiv:2002.05202, arXiv:1606.08415."""
    g = GraphBuilder({})
    x = g.input("x", ir.DataType.FLOAT, ["batch", "seq", 24])
    parts = [x] if packed else [x, x]
    width = 12 if packed else 24
    y = g.op(gate, parts, "gate", domain=PLC_DOMAIN)
    g.output(y, "y", ir.DataType.FLOAT, ["batch", "seq", width])
    model = g.model("gate")
    run_passes(model, [LinkFunctions(library_of(attend_to_longest))])
    given = drawn(2, 3, 24)
    opened, up = (given[..., :width], given[..., -width:])
    if gate == SWIGLU:
        opened = opened / (1 + np.exp(-opened))
    else:
        inner = np.sqrt(2 / np.pi) * (opened + 0.044715 * opened**3)
        opened = 0.5 * opened * (1 + np.tanh(inner))

    (found,) = session_of(model, tmp_path)({"x": given})

    np.testing.assert_allclose(found, opened * up, rtol=1e-5, atol=1e-6)
