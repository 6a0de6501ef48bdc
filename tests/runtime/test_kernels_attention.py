"""Attention of other families than Llama's in the C++ kernels, beside numpy in double precision.

Windows, bounds on scores, scales, norms of queries and keys: each alone, and several together.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from pl_compile.graph.builder import GraphBuilder
from pl_compile.graph.operators import PLC_DOMAIN
from pl_compile.runtime.kernels import library_path

Arrays = dict[str, np.ndarray]
RunOn = Callable[..., list[list[np.ndarray]]]
CAPACITY = 400
PAST = np.asarray([0, 61, 290])  # in the first, the first and the third chunk of 128 keys


@dataclass(frozen=True)
class Shape:
    """Of a base's attention."""

    heads: int
    kv_heads: int
    dim: int

    @property
    def width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.dim


@dataclass(frozen=True)
class Call:
    """What a call of `plc::PackedAttention` asks for; None leaves an attribute out."""

    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    epsilon: float | None = None
    rotary: bool = False
    q_norm: bool = False
    k_norm: bool = False

    def attributes(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)[:4]}
        return {name: value for name, value in values.items() if value is not None}


GROUPED, ONE_KEY_HEAD, EACH_ITS_KEY = Shape(6, 2, 48), Shape(4, 1, 16), Shape(2, 2, 112)
ALL = Call(97, 8.0, 0.2, 1e-5, rotary=True, q_norm=True, k_norm=True)
CALLS = (
    Call(),
    Call(window=1),
    Call(window=20),
    Call(window=128),
    Call(window=200),  # of several chunks
    Call(window=1000),  # more than the cache holds
    Call(window=0, softcap=0.0),
    Call(softcap=2.0),
    Call(scale=0.3),
    Call(q_norm=True),
    Call(k_norm=True, epsilon=0.5),
    Call(rotary=True, q_norm=True, k_norm=True),  # Qwen 3, Gemma 3
    Call(50, 50.0, 1 / 16, rotary=True),  # Gemma 2
    ALL,
)


def attention_model(folder: Path, shape: Shape, *calls: Call, **others: Any) -> Path:
    """Every call on the same inputs, without bodies in standard operators.

    Args:
        folder: where the model is written.
        shape: of the heads.
        calls: outputs y, present_key and present_value of each follow one another.
        others: attributes that all calls have in the place of their own.
    """
    g = GraphBuilder({})
    qkv = g.input("qkv", ir.DataType.FLOAT, ["batch", "seq", shape.width])
    sizes: list[int | str] = ["batch", shape.kv_heads, CAPACITY, shape.dim]
    caches = [g.input(name, ir.DataType.FLOAT, sizes) for name in ("past_key", "past_value")]
    past = g.input("past_lengths", ir.DataType.INT64, ["batch"])
    stored = {name: g.initializer(name, array) for name, array in constants(shape).items()}
    for number, call in enumerate(calls):
        outputs = g.ops(
            "PackedAttention",
            [
                *(qkv, *caches, past),
                *((stored["cos"], stored["sin"]) if call.rotary else (None, None)),
                stored["q_norm"] if call.q_norm else None,
                stored["k_norm"] if call.k_norm else None,
            ],
            f"attention.{number}",
            domain=PLC_DOMAIN,
            outputs=3,
            **{"heads": shape.heads, "kv_heads": shape.kv_heads, **call.attributes(), **others},
        )
        width = shape.heads * shape.dim
        g.output(outputs[0], f"y.{number}", ir.DataType.FLOAT, ["batch", "seq", width])
        for name, value in zip(("key", "value"), outputs[1:], strict=True):
            g.output(value, f"{name}.{number}", ir.DataType.FLOAT, sizes)
    path = folder / "model.onnx"
    ir.save(g.model("probe"), path)
    return path


def constants(shape: Shape) -> Arrays:
    generator = np.random.default_rng(7)
    angles = np.outer(np.arange(CAPACITY), 100.0 ** -(np.arange(0, shape.dim, 2) / shape.dim))
    norms = {
        name: generator.normal(1, 0.5, shape.dim).astype(np.float32)
        for name in ("q_norm", "k_norm")
    }
    turns = {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    return turns | norms


def attention_inputs(shape: Shape, seq: int) -> Arrays:
    generator = np.random.default_rng(seq)
    rows = len(PAST)
    cache = generator.normal(size=(2, rows, shape.kv_heads, CAPACITY, shape.dim))
    qkv = generator.normal(size=(rows, seq, shape.width))
    return {
        "qkv": qkv.astype(np.float32),
        "past_key": cache[0].astype(np.float32),
        "past_value": cache[1].astype(np.float32),
        "past_lengths": PAST,
    }


def expected_attention(call: Call, shape: Shape, inputs: Arrays) -> list[np.ndarray]:
    """y, the keys and the values after the step, in double precision."""
    qkv, past = inputs["qkv"].astype(float), inputs["past_lengths"]
    keys, values = (inputs[name].astype(float) for name in ("past_key", "past_value"))
    rows, seq, _ = qkv.shape
    heads = qkv.reshape(rows, seq, -1, shape.dim)
    ends = (shape.heads, shape.heads + shape.kv_heads)
    q, k, v = np.split(heads, ends, axis=2)
    y = np.zeros((rows, seq, shape.heads, shape.dim))
    for row in range(rows):
        position = past[row] + np.arange(seq)
        turned_q = prepared(call, q[row], "q_norm", position, shape)
        keys[row][:, position] = prepared(call, k[row], "k_norm", position, shape).swapaxes(0, 1)
        values[row][:, position] = v[row].swapaxes(0, 1)
        first = np.maximum(0, position - (call.window or CAPACITY) + 1)
        entries = np.arange(CAPACITY)
        seen = (entries >= first[:, None]) & (entries <= position[:, None])
        for head in range(shape.heads):
            kv_head = head // (shape.heads // shape.kv_heads)
            scores = turned_q[:, head] @ keys[row, kv_head].T
            scores *= shape.dim**-0.5 if call.scale is None else call.scale
            if call.softcap:
                scores = call.softcap * np.tanh(scores / call.softcap)
            scores = np.where(seen, scores, -np.inf)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            y[row, :, head] = weights / weights.sum(1, keepdims=True) @ values[row, kv_head]
    return [y.reshape(rows, seq, -1), keys, values]


def prepared(
    call: Call, x: np.ndarray, norm: str, position: np.ndarray, shape: Shape
) -> np.ndarray:
    """Heads `[seq, heads, dim]` after their norm, and at their positions."""
    stored = constants(shape)
    if getattr(call, norm):
        epsilon = 1e-6 if call.epsilon is None else call.epsilon
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * stored[norm]
    if not call.rotary:
        return x
    cos, sin = (stored[name][position][:, None] for name in ("cos", "sin"))
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], -1)


@pytest.mark.parametrize("shape", [GROUPED, ONE_KEY_HEAD, EACH_ITS_KEY])
def test_each_option_and_several_together_are_those_of_numpy(
    kind: str, shape: Shape, run_on: RunOn, tmp_path: Path
) -> None:
    steps = [attention_inputs(shape, seq) for seq in (1, 5, 70)]  # decoding, and two prompts

    runs = run_on(kind, attention_model(tmp_path, shape, *CALLS), *steps)

    for inputs, outputs in zip(steps, runs, strict=True):
        for number, call in enumerate(CALLS):
            expected = expected_attention(call, shape, inputs)
            for found, wanted in zip(outputs[3 * number :][:3], expected, strict=True):
                largest = np.abs(wanted).max()
                np.testing.assert_allclose(found, wanted, atol=4e-6 * largest, err_msg=str(call))


def test_defaults_are_the_bits_of_what_they_stand_for(
    kind: str, run_on: RunOn, tmp_path: Path
) -> None:
    shape = ONE_KEY_HEAD  # whose scale, 1/4, is exact
    calls = (
        Call(q_norm=True),
        Call(window=0, softcap=0.0, scale=0.25, epsilon=1e-6, q_norm=True),
        Call(window=CAPACITY, q_norm=True),
    )

    (outputs,) = run_on(kind, attention_model(tmp_path, shape, *calls), attention_inputs(shape, 40))

    for other in (3, 6):
        for found, wanted in zip(outputs[other : other + 3], outputs[:3], strict=True):
            assert np.array_equal(found, wanted)


@pytest.mark.parametrize("call", [ALL, Call(window=20), Call(softcap=2.0, rotary=True)])
def test_a_row_alone_and_a_prompt_in_pieces_have_the_same_bits(
    kind: str, call: Call, run_on: RunOn, tmp_path: Path
) -> None:
    model, inputs = attention_model(tmp_path, GROUPED, call), attention_inputs(GROUPED, 70)
    row = {name: array[1:2] for name, array in inputs.items()}
    (y, key, value), (alone, *_) = run_on(kind, model, inputs, row)
    parts = []
    for first, last in ((0, 37), (37, 38), (38, 70)):
        piece = {
            **row,
            "qkv": row["qkv"][:, first:last],
            "past_lengths": row["past_lengths"] + first,
        }
        ((part, row["past_key"], row["past_value"]),) = run_on(kind, model, piece)
        parts.append(part)

    assert np.array_equal(alone, y[1:2])
    assert np.array_equal(np.concatenate(parts, 1), y[1:2])
    assert np.array_equal(row["past_key"], key[1:2])
    assert np.array_equal(row["past_value"], value[1:2])


def test_threads_that_share_a_window_make_the_bits_of_one(
    kind: str, run_on: RunOn, tmp_path: Path
) -> None:
    """Alone, threads share a row's cache in chunks; among many rows, each head is one thread's."""
    calls = (ALL, Call(window=200), Call(window=129), Call(softcap=3.0))
    model, few = attention_model(tmp_path, GROUPED, *calls), attention_inputs(GROUPED, 1)
    many = {name: np.concatenate([array] * 4) for name, array in few.items()}
    assert len(many["qkv"]) * GROUPED.kv_heads >= 16
    row = {name: array[2:3] for name, array in few.items()}

    together, three, alone = run_on(kind, model, many, few, row)

    for number in range(0, 3 * len(calls), 3):
        assert np.array_equal(together[number][2:3], alone[number])
        assert np.array_equal(three[number], together[number][:3])


@pytest.mark.parametrize("seq", [1, 5, 40])
def test_what_lies_outside_of_the_window_changes_no_bit(
    kind: str, seq: int, run_on: RunOn, tmp_path: Path
) -> None:
    """Not even if it is NaN: so it is not multiplied by a weight of 0 either."""
    window = 23
    model = attention_model(tmp_path, GROUPED, Call(window=window, softcap=5.0))
    inputs = attention_inputs(GROUPED, seq)
    spoilt = {name: array.copy() for name, array in inputs.items()}
    for row, past in enumerate(PAST):
        for name in ("past_key", "past_value"):
            spoilt[name][row, :, : max(0, past + 1 - window)] = np.nan
            spoilt[name][row, :, past + seq :] = np.nan

    (whole, *_), (found, *_) = run_on(kind, model, inputs, spoilt)

    assert np.array_equal(found, whole)


def test_a_head_that_is_nan_stays_nan_after_its_norm(
    kind: str, run_on: RunOn, tmp_path: Path
) -> None:
    inputs = attention_inputs(GROUPED, 5)
    inputs["qkv"][1, 2, 3] = np.nan  # a query of the first head

    ((y, *_),) = run_on(kind, attention_model(tmp_path, GROUPED, ALL), inputs)

    assert np.isnan(y[1, 2, : GROUPED.dim]).all()
    assert np.isfinite(np.delete(y, 1, 0)).all()


built = pytest.mark.skipif(
    library_path() is None,
    reason="needs the C++ kernels (g++ or Clang); without them: tests/export/test_bodies.py",
)


def session(model: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))
    return onnxruntime.InferenceSession(str(model), options)


@built
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"window": -1}, "window must not be negative"),
        ({"window": 4.0}, "window must be an integer"),
        ({"scale": 0.0}, "scale must be above 0 and finite"),
        ({"scale": -0.5}, "scale must be above 0 and finite"),
        ({"scale": float("nan")}, "scale must be above 0 and finite"),
        ({"scale": 1}, "scale must be a float"),
        ({"softcap": -1.0}, "softcap must be 0, or above it and finite"),
        ({"softcap": float("inf")}, "softcap must be 0, or above it and finite"),
        ({"softcap": 1e-40}, "softcap must be 0, or above it and finite"),
        ({"softcap": 50}, "softcap must be a float"),
        ({"epsilon": -1e-6}, "epsilon must be 0, or above it and finite"),
        ({"epsilon": float("nan")}, "epsilon must be 0, or above it and finite"),
        ({"heads": 0}, "heads must be 1 to 65536"),
        ({"heads": 2**60 + 6}, "heads must be 1 to 65536"),
        ({"kv_heads": 0}, "kv_heads must divide heads"),
        ({"kv_heads": 4}, "kv_heads must divide heads"),
    ],
)
def test_attributes_out_of_range_are_refused_as_the_model_loads(
    wrong: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = attention_model(tmp_path, GROUPED, Call(), **wrong)

    with pytest.raises(Exception, match=f"PackedAttention: {said}"):
        session(model)


@built
@pytest.mark.parametrize("name", ["q_norm", "k_norm"])
@pytest.mark.parametrize("sizes", [[47], [49], [1, 48], [], [0]])
def test_a_norm_of_another_shape_than_a_head_is_refused(
    name: str, sizes: list[int], tmp_path: Path
) -> None:
    model = ir.load(attention_model(tmp_path, GROUPED, ALL))
    model.graph.initializers[name].const_value = ir.tensor(np.ones(sizes, np.float32))
    ir.save(model, tmp_path / "other.onnx")

    with pytest.raises(Exception, match="q_norm and k_norm must have one axis, as wide as a head"):
        session(tmp_path / "other.onnx").run(None, attention_inputs(GROUPED, 5))


@built
@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([], "cos and sin must be half as wide as a head"),
        ([CAPACITY, 23], "cos and sin must be half as wide as a head"),
        ([0, 24], "fewer rotary positions than entries"),
        ([CAPACITY - 1, 24], "fewer rotary positions than entries"),
    ],
)
def test_rotary_tables_that_do_not_reach_are_refused(
    sizes: list[int], said: str, tmp_path: Path
) -> None:
    model = ir.load(attention_model(tmp_path, GROUPED, ALL))
    for name in ("cos", "sin"):
        model.graph.initializers[name].const_value = ir.tensor(np.ones(sizes, np.float32))
    ir.save(model, tmp_path / "other.onnx")

    with pytest.raises(Exception, match=said):
        session(tmp_path / "other.onnx").run(None, attention_inputs(GROUPED, 5))


@built
def test_a_row_that_ends_after_its_cache_is_refused_with_a_window_too(tmp_path: Path) -> None:
    late = attention_inputs(GROUPED, 5) | {"past_lengths": np.asarray([0, CAPACITY - 4, 1])}

    with pytest.raises(Exception, match="PackedAttention: a row that ends after its cache"):
        session(attention_model(tmp_path, GROUPED, ALL)).run(None, late)
