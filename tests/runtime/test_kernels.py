"""The C++ kernels: each instruction set beside numpy, and beside the bodies in standard operators.

Where no compiler was there when the package was installed, the kernels are missing and these tests
are skipped; `test_bodies_compute_the_same` and tests/export/test_native_cpu.py still check what the
calls mean.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from pl_compile.errors import KernelsError, RankError
from pl_compile.exporters.native.cpu import LIBRARY
from pl_compile.graph.builder import GraphBuilder
from pl_compile.graph.operators import PLC_DOMAIN
from pl_compile.passes.link_functions import LinkFunctions
from pl_compile.passes.pipeline import run_passes
from pl_compile.passes.use_own_products import packed_codes, packed_grid
from pl_compile.runtime import kernels
from pl_compile.runtime.kernels import instruction_sets, library_path, rank_sums

Arrays = dict[str, np.ndarray]
RunOn = Callable[..., list[list[np.ndarray]]]
built = pytest.mark.skipif(
    library_path() is None,
    reason="needs the C++ kernels (g++ or Clang); without them: test_bodies_compute_the_same",
)

INPUTS, COLUMNS, ROWS = 192, 96, 37
VARIANTS = [
    (4, True, False),
    (4, True, True),
    (4, False, False),
    (8, False, False),
    (8, False, True),
]


def run_body(model: Path, inputs: Arrays) -> list[np.ndarray]:
    """The outputs that ONNX Runtime computes without the kernels."""
    found: list[np.ndarray] = onnxruntime.InferenceSession(str(model)).run(None, inputs)
    return found


class Weight:
    """Random codes and what they stand for."""

    def __init__(self, bits: int, block: int, *, lows: bool, columns: int = COLUMNS) -> None:
        generator = np.random.default_rng(0)
        self.bits, self.block, self.columns = bits, block, columns
        half = 2 ** (bits - 1)
        self.codes = generator.integers(-half, half, (INPUTS, columns)).astype(np.int8)
        shape = (INPUTS // block, columns)
        self.scales = generator.uniform(0.01, 0.02, shape).astype(np.float16).astype(np.float32)
        self.lows = None
        if lows:
            given = generator.normal(scale=0.02, size=shape)
            self.lows = given.astype(np.float16).astype(np.float32)

    def floats(self) -> np.ndarray:
        values = self.codes * np.repeat(self.scales, self.block, 0)
        return values if self.lows is None else values + np.repeat(self.lows, self.block, 0)

    def initializers(self, g: GraphBuilder) -> list[ir.Value | None]:
        arrays: list[np.ndarray] = [packed_codes(self.codes, self.bits), packed_grid(self.scales)]
        if self.lows is not None:
            arrays.append(packed_grid(self.lows))
        names = ("codes", "steps", "lows")
        return [g.initializer(n, a) for n, a in zip(names, arrays, strict=False)]

    @property
    def attributes(self) -> dict[str, Any]:
        return {"bits": self.bits, "block": self.block, "columns": self.columns}


def write(folder: Path, build: Callable[[GraphBuilder], None]) -> Path:
    """A model with the bodies of all calls."""
    g = GraphBuilder({})
    build(g)
    model = g.model("probe")
    run_passes(model, [LinkFunctions(LIBRARY)])
    path = folder / "model.onnx"
    ir.save(model, path)
    return path


def product_model(folder: Path, weight: Weight, *, gated: int, tiles: bool = False) -> Path:
    def build(g: GraphBuilder) -> None:
        x = g.input("x", ir.DataType.FLOAT, ["rows", INPUTS])
        inputs = [x, *weight.initializers(g)]
        if tiles:
            inputs += [None] * (4 - len(inputs))
            inputs.append(g.input("tiles", ir.DataType.INT64, ["tiles"]))
        y = g.op(
            "BlockProduct",
            inputs,
            "product",
            domain=PLC_DOMAIN,
            gated=int(gated),
            **weight.attributes,
        )
        g.output(y, "y", ir.DataType.FLOAT, ["rows", weight.columns // (2 if gated else 1)])

    return write(folder, build)


def expected_product(x: np.ndarray, weight: Weight, *, gated: int, rounded: bool) -> np.ndarray:
    if rounded:  # to 8 bits, each block of a row by its own scale
        blocks = x.reshape(len(x), INPUTS // weight.block, weight.block)
        scales = np.abs(blocks).max(-1, keepdims=True) / 127
        x = (np.rint(blocks / np.maximum(scales, 1e-30)) * scales).reshape(x.shape)
    y: np.ndarray = x @ weight.floats()
    if not gated:
        return y
    tiles = y.reshape(len(y), -1, 2, 16)
    gate, up = (tiles[:, :, part].reshape(len(y), -1) for part in (0, 1))
    # The tanh form of GELU is x * sigmoid(slope) too.
    slope = gate if gated == 1 else np.sqrt(8 / np.pi) * (gate + 0.044715 * gate**3)
    with np.errstate(over="ignore"):  # far below 0
        product: np.ndarray = gate / (1 + np.exp(-slope)) * up
    return product


def activations(rows: int = ROWS) -> np.ndarray:
    x = np.random.default_rng(3).normal(size=(rows, INPUTS)).astype(np.float32)
    x[1] = 0  # a row without a scale
    return x


@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize(("bits", "lows", "gated"), VARIANTS)
def test_products_are_those_of_rounded_activations(
    kind: str, bits: int, lows: bool, gated: bool, block: int, run_on: RunOn, tmp_path: Path
) -> None:
    weight, x = Weight(bits, block, lows=lows), activations()
    model = product_model(tmp_path, weight, gated=gated)

    ((y,),) = run_on(kind, model, {"x": x})

    expected = expected_product(x, weight, gated=gated, rounded=True)
    assert np.abs(y - expected).max() < 3e-6 * np.abs(expected).max()


@pytest.mark.parametrize(("bits", "lows"), [(4, True), (4, False), (8, False)])
def test_a_gate_of_gelu_is_that_of_numpy_for_any_number_of_rows(
    kind: str, bits: int, lows: bool, run_on: RunOn, tmp_path: Path
) -> None:
    weight, x = Weight(bits, 32, lows=lows), activations()
    model = product_model(tmp_path, weight, gated=2)

    (y,), (few,), (one,) = run_on(kind, model, {"x": x}, {"x": x[5:20]}, {"x": x[5:6]})

    expected = expected_product(x, weight, gated=2, rounded=True)
    assert np.abs(y - expected).max() < 3e-6 * np.abs(expected).max()
    assert np.array_equal(few, y[5:20])
    assert np.array_equal(one, y[5:6])


@built
def test_a_gate_of_another_number_is_refused(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))
    model = product_model(tmp_path, Weight(4, 32, lows=False), gated=3)

    with pytest.raises(Exception, match="BlockProduct: gated must be 0, 1 or 2"):
        onnxruntime.InferenceSession(str(model), options)


@built
def test_onnxruntime_calls_the_kernel_where_one_is_registered_and_else_the_body(
    tmp_path: Path,
) -> None:
    weight, x = Weight(8, 32, lows=False), activations()
    model = ir.load(product_model(tmp_path, weight, gated=False))
    (body,) = model.functions.values()
    (product,) = [node for node in body if node.op_type == "MatMul"]
    product.op_type = "Sub"  # of shapes that do not fit: a body that cannot run
    path = tmp_path / "broken.onnx"
    ir.save(model, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match="Sub"):
        onnxruntime.InferenceSession(str(path), options).run(None, {"x": x})

    options.register_custom_ops_library(str(library_path()))
    (y,) = onnxruntime.InferenceSession(str(path), options).run(None, {"x": x})

    expected = expected_product(x, weight, gated=False, rounded=True)
    assert np.abs(y - expected).max() < 3e-6 * np.abs(expected).max()


@pytest.mark.parametrize(("bits", "lows", "gated"), VARIANTS)
def test_a_row_does_not_depend_on_how_many_there_are(
    kind: str, bits: int, lows: bool, gated: bool, run_on: RunOn, tmp_path: Path
) -> None:
    x = activations()
    model = product_model(tmp_path, Weight(bits, 32, lows=lows), gated=gated)
    parts = ((0, ROWS), (0, 1), (5, 7), (0, 4), (20, 29), (3, 20))

    runs = run_on(kind, model, *({"x": x[first:last]} for first, last in parts))

    ((together,), *others) = runs
    for (first, last), (alone,) in zip(parts[1:], others, strict=True):
        assert np.array_equal(alone, together[first:last])


def test_columns_need_not_fill_the_last_tile(kind: str, run_on: RunOn, tmp_path: Path) -> None:
    for bits, lows in ((4, True), (8, False)):
        weight = Weight(bits, 32, lows=lows, columns=100)
        model = product_model(tmp_path, weight, gated=False)
        given = [activations()[:rows] for rows in (2, 0, 37)]

        runs = run_on(kind, model, *({"x": x} for x in given))

        for x, (y,) in zip(given, runs, strict=True):
            expected = expected_product(x, weight, gated=False, rounded=True)
            np.testing.assert_allclose(y, expected, atol=1e-4)


# Of 100 columns the last tile has 4; gated, two tiles make one of the result.
CHOSEN = [[], [0], [6], [0, 6], [2, 3, 4], [0, 2, 3, 5], [0, 1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize(("bits", "lows", "gated"), VARIANTS)
def test_tiles_that_are_chosen_have_the_bits_of_all_and_others_are_minus_infinity(
    kind: str, bits: int, lows: bool, gated: bool, run_on: RunOn, tmp_path: Path
) -> None:
    weight = Weight(bits, 32, lows=lows, columns=192 if gated else 100)
    model = product_model(tmp_path, weight, gated=gated, tiles=True)
    last = 5 if gated else 6
    given = [
        {"x": activations()[:rows], "tiles": np.asarray([t for t in chosen if t <= last], np.int64)}
        for rows in (37, 1, 2, 3)
        for chosen in CHOSEN
    ]

    runs = run_on(kind, model, *given)

    all_rows = runs[0][0]
    assert np.isfinite(all_rows).all()
    for inputs, (y,) in zip(given, runs, strict=True):
        whole = all_rows[: len(y)]
        computed = np.isin(np.arange(y.shape[1]) // 16, inputs["tiles"])
        computed |= not len(inputs["tiles"])
        assert np.array_equal(y[:, computed], whole[:, computed])
        assert (y[:, ~computed] == -np.inf).all()


@built
@pytest.mark.parametrize(
    ("tiles", "said"),
    [
        ([6], "a tile that the result does not have"),
        ([-1, 2], "a tile that the result does not have"),
        ([2, 1], "tiles that are not in ascending order"),
        ([1, 1], "tiles that are not in ascending order"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(tiles: list[int], said: str, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))
    model = product_model(tmp_path, Weight(8, 32, lows=False), gated=False, tiles=True)
    session = onnxruntime.InferenceSession(str(model), options)

    with pytest.raises(Exception, match=said):
        session.run(None, {"x": activations(), "tiles": np.asarray(tiles)})


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(
    kind: str, broken: float, run_on: RunOn, tmp_path: Path
) -> None:
    """In its row, and nowhere else: a corrupt state must not become a fluent answer."""
    for gated in (False, True):
        model = product_model(tmp_path, Weight(4, 32, lows=True), gated=gated)
        x = activations()
        x[7, 40] = broken
        ((y,),) = run_on(kind, model, {"x": x})
        assert np.isnan(y[7]).all()
        assert np.isfinite(np.delete(y, 7, 0)).all()
    inputs = attention_inputs(5)
    inputs["qkv"][1, 2, 3] = np.nan  # a query of the first head
    ((y, *_),) = run_on(kind, attention_model(tmp_path, rotary=True), inputs)
    assert np.isnan(y[1, 2, :DIM]).all()
    assert np.isfinite(np.delete(y, 1, 0)).all()


@built
def test_all_sets_but_the_portable_one_make_the_same_bits(run_on: RunOn, tmp_path: Path) -> None:
    """Here from operator to operator; test_kernels_in_cpp.py tries many more shapes."""
    sets = [kind for kind in instruction_sets() if kind != "portable"]
    if len(sets) < 2:
        pytest.skip("needs a processor with two sets; emulated: test_kernels_in_cpp.py")
    folders = [tmp_path / "product", tmp_path / "attention"]
    for folder in folders:
        folder.mkdir()
    models = [
        (product_model(folders[0], Weight(4, 32, lows=True), gated=True), {"x": activations()}),
        (attention_model(folders[1], rotary=True), attention_inputs(1)),
    ]
    for model, inputs in models:
        first, *others = (run_on(kind, model, inputs) for kind in sets)
        for other in others:
            for ours, theirs in zip(first[0], other[0], strict=True):
                assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(("bits", "lows", "gated"), VARIANTS)
def test_bodies_compute_the_same(bits: int, lows: bool, gated: bool, tmp_path: Path) -> None:
    weight, x = Weight(bits, 32, lows=lows), activations()

    (y,) = run_body(product_model(tmp_path, weight, gated=gated), {"x": x})

    expected = expected_product(x, weight, gated=gated, rounded=False)
    assert np.abs(y - expected).max() < 3e-6 * np.abs(expected).max()


def test_the_body_of_a_product_computes_all_tiles(tmp_path: Path) -> None:
    weight, x = Weight(4, 32, lows=True), activations()
    model = product_model(tmp_path, weight, gated=False, tiles=True)

    (y,) = run_body(model, {"x": x, "tiles": np.asarray([3])})

    expected = expected_product(x, weight, gated=False, rounded=False)
    assert np.abs(y - expected).max() < 3e-6 * np.abs(expected).max()


def lookup_model(folder: Path, weight: Weight) -> Path:
    def build(g: GraphBuilder) -> None:
        ids = g.input("ids", ir.DataType.INT64, ["batch", "seq"])
        inputs = weight.initializers(g)
        inputs.insert(2, ids)
        rows = g.op("BlockLookup", inputs, "lookup", domain=PLC_DOMAIN, **weight.attributes)
        g.output(rows, "rows", ir.DataType.FLOAT, ["batch", "seq", INPUTS])

    return write(folder, build)


TABLE_IDS = np.asarray([[0, 95, 17], [31, 16, 15]])


@pytest.mark.parametrize(("bits", "lows"), [(4, True), (8, False)])
def test_rows_of_a_table_are_what_its_codes_stand_for(
    kind: str, bits: int, lows: bool, run_on: RunOn, tmp_path: Path
) -> None:
    weight = Weight(bits, 32, lows=lows)

    ((rows,),) = run_on(kind, lookup_model(tmp_path, weight), {"ids": TABLE_IDS})

    np.testing.assert_allclose(rows, weight.floats().T[TABLE_IDS], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("bits", "lows"), [(4, True), (8, False)])
def test_the_body_of_a_lookup_computes_the_same(bits: int, lows: bool, tmp_path: Path) -> None:
    weight = Weight(bits, 32, lows=lows)

    (rows,) = run_body(lookup_model(tmp_path, weight), {"ids": TABLE_IDS})

    np.testing.assert_allclose(rows, weight.floats().T[TABLE_IDS], rtol=1e-6, atol=1e-7)


HEADS, KV_HEADS, DIM, CAPACITY = 6, 2, 48, 400


def attention_model(folder: Path, *, rotary: bool) -> Path:
    width = (HEADS + 2 * KV_HEADS) * DIM
    angles = np.outer(np.arange(CAPACITY), 10000.0 ** -(np.arange(0, DIM, 2) / DIM))

    def build(g: GraphBuilder) -> None:
        qkv = g.input("qkv", ir.DataType.FLOAT, ["batch", "seq", width])
        shape: list[int | str] = ["batch", KV_HEADS, CAPACITY, DIM]
        caches = [g.input(name, ir.DataType.FLOAT, shape) for name in ("past_key", "past_value")]
        past = g.input("past_lengths", ir.DataType.INT64, ["batch"])
        tables = {"cos": np.cos(angles), "sin": np.sin(angles)} if rotary else {}
        turned = [g.initializer(n, table.astype(np.float32)) for n, table in tables.items()]
        outputs = g.ops(
            "PackedAttention",
            [qkv, *caches, past, *turned],
            "attention",
            domain=PLC_DOMAIN,
            outputs=3,
            heads=HEADS,
            kv_heads=KV_HEADS,
        )
        g.output(outputs[0], "y", ir.DataType.FLOAT, ["batch", "seq", HEADS * DIM])
        for value, name in zip(outputs[1:], ("present_key", "present_value"), strict=True):
            g.output(value, name, ir.DataType.FLOAT, shape)

    return write(folder, build)


def attention_inputs(seq: int) -> Arrays:
    generator = np.random.default_rng(seq)
    past = np.asarray([0, 61, 290])  # more than two chunks of keys
    cache = generator.normal(size=(2, 3, KV_HEADS, CAPACITY, DIM)).astype(np.float32)
    qkv = generator.normal(size=(3, seq, (HEADS + 2 * KV_HEADS) * DIM)).astype(np.float32)
    return {"qkv": qkv, "past_key": cache[0], "past_value": cache[1], "past_lengths": past}


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("seq", [1, 5, 70])
def test_attention_is_that_of_standard_operators(
    kind: str, seq: int, rotary: bool, run_on: RunOn, tmp_path: Path
) -> None:
    model, inputs = attention_model(tmp_path, rotary=rotary), attention_inputs(seq)

    (found,) = run_on(kind, model, inputs)

    for ours, theirs in zip(found, run_body(model, inputs), strict=True):
        assert np.abs(ours - theirs).max() < 2e-6 * np.abs(theirs).max()


def test_attention_of_a_row_is_the_same_alone_and_in_pieces(
    kind: str, run_on: RunOn, tmp_path: Path
) -> None:
    model, inputs = attention_model(tmp_path, rotary=True), attention_inputs(70)
    row = {name: array[1:2] for name, array in inputs.items()}
    (y, key, _), (alone, *_) = run_on(kind, model, inputs, row)
    pieces = []
    for first, last in ((0, 37), (37, 38), (38, 70)):
        piece = {
            **row,
            "qkv": row["qkv"][:, first:last],
            "past_lengths": row["past_lengths"] + first,
        }
        ((part, row["past_key"], row["past_value"]),) = run_on(kind, model, piece)
        pieces.append(part)

    assert np.array_equal(alone, y[1:2])
    assert np.array_equal(np.concatenate(pieces, 1), y[1:2])
    assert np.array_equal(row["past_key"], key[1:2])


def test_a_row_among_many_attends_as_alone(kind: str, run_on: RunOn, tmp_path: Path) -> None:
    """Alone, threads share its cache in chunks; among many rows, each head is one thread's."""
    model, few = attention_model(tmp_path, rotary=True), attention_inputs(1)
    many = {name: np.concatenate([array] * 4) for name, array in few.items()}
    assert len(many["qkv"]) * KV_HEADS >= 16
    row = {name: array[2:3] for name, array in few.items()}

    (together, *_), (alone, *_) = run_on(kind, model, many, row)

    for copy in range(4):
        assert np.array_equal(together[3 * copy + 2 : 3 * copy + 3], alone)


@built
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))

    def session(path: Path) -> Any:
        return onnxruntime.InferenceSession(str(path), options)

    table = session(lookup_model(tmp_path, Weight(8, 32, lows=False)))
    with pytest.raises(Exception, match="BlockLookup: an id outside the table"):
        table.run(None, {"ids": np.asarray([[96]])})
    attention = session(attention_model(tmp_path, rotary=True))
    late = attention_inputs(5) | {"past_lengths": np.asarray([0, 396, 1])}
    with pytest.raises(Exception, match="PackedAttention: a row that ends after its cache"):
        attention.run(None, late)


def test_slots_have_the_numbers_of_the_header(tmp_path: Path) -> None:
    """The tests above call through every slot; this one says which is wrong, given the header."""
    folder = os.environ.get("ORT_INCLUDE_DIR")
    if folder is None or shutil.which("g++") is None:
        pytest.skip(
            "needs g++, and ONNX Runtime's header in ORT_INCLUDE_DIR; without them: the tests "
            "above, which call through every slot"
        )
    names = {
        "kCreateStatus": "CreateStatus",
        "kCreateDomain": "CreateCustomOpDomain",
        "kDomainAdd": "CustomOpDomain_Add",
        "kAddDomain": "AddCustomOpDomain",
        "kTensorData": "GetTensorMutableData",
        "kDimensionsCount": "GetDimensionsCount",
        "kDimensions": "GetDimensions",
        "kTensorShape": "GetTensorTypeAndShape",
        "kAttributeFloat": "KernelInfoGetAttribute_float",
        "kAttributeInt": "KernelInfoGetAttribute_int64",
        "kAttributeText": "KernelInfoGetAttribute_string",
        "kStream": "KernelContext_GetGPUComputeStream",
        "kInputCount": "KernelContext_GetInputCount",
        "kGetInput": "KernelContext_GetInput",
        "kGetOutput": "KernelContext_GetOutput",
        "kReleaseStatus": "ReleaseStatus",
        "kReleaseShape": "ReleaseTensorTypeAndShapeInfo",
        "kParallelFor": "KernelContext_ParallelFor",
    }
    checks = "".join(
        f"static_assert(offsetof(OrtApi, {theirs}) == plc::ort::{ours} * sizeof(void*));\n"
        for ours, theirs in names.items()
    )
    fields = {"name": "GetName", "compute_v2": "KernelComputeV2", "end_version": "GetEndVersion"}
    checks += "".join(
        f"static_assert(offsetof(OrtCustomOp, {theirs}) == offsetof(plc::ort::CustomOp, {ours}));\n"
        for ours, theirs in fields.items()
    )
    source = tmp_path / "slots.cc"
    source.write_text(
        '#include <cstddef>\n#include "onnxruntime_c_api.h"\n#include "onnxruntime_abi.h"\n'
        + checks
    )
    ours = Path(__file__).parents[2] / "runtime" / "kernels"
    command = ["g++", "-std=c++17", "-w", "-fsyntax-only", f"-I{folder}", f"-I{ours}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


@built
def test_the_best_set_of_the_processor_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLC_KERNELS", raising=False)
    command = "from pl_compile.runtime.kernels import instruction_set; print(instruction_set())"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, check=True, text=True
    )
    assert done.stdout.strip() == instruction_sets()[0]


@built
def test_a_set_that_the_processor_lacks_is_refused_with_those_that_it_has() -> None:
    command = "from pl_compile.runtime.kernels import register; register(None)"
    done = subprocess.run(
        [sys.executable, "-c", command],
        env={**os.environ, "PLC_KERNELS": "avx1024"},
        capture_output=True,
        check=False,
        text=True,
    )
    said = done.stderr.splitlines()[-1]
    assert "KernelsError: choosing kernels for this processor: PLC_KERNELS=avx1024" in said
    assert "was built with: " + ", ".join(instruction_sets()) in said


@pytest.mark.skipif(
    shutil.which("g++") is None,
    reason="needs g++ to make a library; without it: "
    "test_a_set_that_the_processor_lacks_is_refused_with_those_that_it_has",
)
@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('extern "C" int plc_kernels_interface() { return 99; }', "interface 99"),
        ('extern "C" const char* plc_kernels_name() { return "avx2"; }', "interface 1"),
    ],
)
def test_a_library_of_another_version_is_refused(
    source: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, library = tmp_path / "other.cc", tmp_path / "other.so"
    code.write_text(source)
    subprocess.run(["g++", "-shared", "-fPIC", str(code), "-o", str(library)], check=True)
    monkeypatch.setattr(kernels, "library_path", lambda: library)

    with pytest.raises(KernelsError, match=found) as caught:
        kernels.register(onnxruntime.SessionOptions())

    assert str(library) in caught.value.doing
    assert "Install pl-compile again" in caught.value.fix


@pytest.mark.parametrize("kept", [0, 3, 40, 63, 64, 5000, 0.5, 0.99])
def test_a_library_that_was_cut_short_is_said_and_not_loaded(
    kept: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = kernels.library_path()
    if whole is None or not sys.platform.startswith("linux"):
        pytest.skip(
            "needs the C++ kernels, on Linux; without them: "
            "test_onnxruntime_calls_the_kernel_where_one_is_registered_and_else_the_body"
        )
    data = whole.read_bytes()
    library = tmp_path / "cut.so"
    library.write_bytes(data[: int(kept if kept >= 1 else kept * len(data))])
    monkeypatch.setattr(kernels, "library_path", lambda: library)

    with pytest.warns(RuntimeWarning, match="do not load, so its bundles run slower: .*cut.so"):
        kernels.register(onnxruntime.SessionOptions())

    assert kernels.arithmetic() == "standard operators"
    with pytest.raises(RankError, match=r"the C\+\+ kernels do not load: .*cut.so"):
        rank_sums.group_bytes(2)
