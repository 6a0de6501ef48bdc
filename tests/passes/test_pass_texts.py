"""Each pass on a small graph, before and after, as texts that a reviewer can read."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pl_compile.config.contract import LOGITS, GraphContract
from pl_compile.exporters.onnx.cpu import cached_attention_function
from pl_compile.exporters.openvino.exporter import attention_function
from pl_compile.graph.blocks import row_parallel, split_heads
from pl_compile.graph.builder import GraphBuilder
from pl_compile.passes.fuse_residual_norms import FuseResidualNorms
from pl_compile.passes.give_added_entries import GiveAddedEntries
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.inline_functions import InlineFunctions
from pl_compile.passes.link_functions import LinkFunctions
from pl_compile.passes.merge_products import MergeProducts
from pl_compile.passes.pipeline import model_text, run_passes
from pl_compile.passes.quantize_weights import QuantizeWeights
from pl_compile.passes.sample_in_graph import SampleInGraph
from pl_compile.passes.set_precision import SetPrecision
from pl_compile.passes.use_all_reduce_plugin import UseAllReducePlugin
from pl_compile.passes.use_block_kernels import UseBlockKernels
from pl_compile.passes.use_block_products import UseBlockProducts
from pl_compile.passes.use_grouped_attention import UseGroupedAttention
from pl_compile.passes.use_packed_attention import UsePackedAttention
from pl_compile.quantize.scheme import Scheme

GRAPHS: dict[str, Callable[[], ir.Model]] = {}


def graph(build: Callable[[GraphBuilder], None]) -> Callable[[GraphBuilder], None]:
    """Names a function that fills a graph."""

    def model() -> ir.Model:
        generator = np.random.default_rng(0)
        shapes = {
            "a.q.weight": (16, 16),
            "a.k.weight": (16, 8),
            "a.v.weight": (16, 8),
            "embedding.weight": (24, 16),
        }
        weights = {n: generator.normal(size=s).astype(np.float32) for n, s in shapes.items()}
        biases = {f"a.{p}.bias": np.ones(16 if p == "q" else 8, np.float32) for p in "qkv"}
        g = GraphBuilder({**weights, **biases})
        build(g)
        return g.model(build.__name__)

    GRAPHS[build.__name__] = model
    return build


@graph
def part_of_a_sum(g: GraphBuilder) -> None:
    x = g.input("x", ir.DataType.FLOAT, ["batch", "seq", 16])
    g.output(row_parallel(g, x, "a.q", 2), "y", ir.DataType.FLOAT, ["batch", "seq", 16])


def products_of(g: GraphBuilder, *, biased: bool) -> None:
    x = g.input("x", ir.DataType.FLOAT, ["batch", "seq", 16])
    for part, width in (("q", 16), ("k", 8), ("v", 8)):
        y = g.op("MatMul", [x, g.weight(f"a.{part}.weight")], f"a.{part}")
        if biased:
            y = g.op("Add", [y, g.weight(f"a.{part}.bias")], f"a.{part}.add_bias")
        g.output(y, part, ir.DataType.FLOAT, ["batch", "seq", width])


@graph
def products(g: GraphBuilder) -> None:
    products_of(g, biased=False)


@graph
def biased_products(g: GraphBuilder) -> None:
    products_of(g, biased=True)


@graph
def one_product(g: GraphBuilder) -> None:
    x = g.input("x", ir.DataType.FLOAT, ["batch", "seq", 16])
    y = g.op("MatMul", [x, g.weight("a.q.weight")], "a.q")
    g.output(y, "y", ir.DataType.FLOAT, ["batch", "seq", 16])


@graph
def tied_table(g: GraphBuilder) -> None:
    ids = g.input("ids", ir.DataType.INT64, ["batch", "seq"])
    x = g.input("x", ir.DataType.FLOAT, ["batch", 16])
    table = g.weight("embedding.weight")
    g.output(g.op("Gather", [table, ids], "embedding"), "rows", ir.DataType.FLOAT, [])
    logits = g.op("Gemm", [x, table], "head", transB=1)
    g.output(logits, LOGITS, ir.DataType.FLOAT, ["batch", 24])


@graph
def logits_alone(g: GraphBuilder) -> None:
    x = g.input("x", ir.DataType.FLOAT, ["batch", 24])
    logits = g.op("Identity", [x], "head")
    g.output(logits, LOGITS, ir.DataType.FLOAT, ["batch", 24])


@graph
def attention(g: GraphBuilder) -> None:
    heads = [
        g.input(name, ir.DataType.FLOAT, ["batch", 2, size, 8])
        for name, size in (("q", "seq"), ("k", "seq"), ("v", "seq"), ("pk", 80), ("pv", 80))
    ]
    past = g.input("past_lengths", ir.DataType.INT64, ["batch"])
    outputs = g.ops("CachedAttention", [*heads, past], "cached", domain="plc", outputs=3)
    for value, name in zip(outputs, ("y", "present_k", "present_v"), strict=True):
        g.output(value, name, ir.DataType.FLOAT, [])


@graph
def rotary_attention(g: GraphBuilder) -> None:
    attention_of(g, rotary=True)


@graph
def plain_attention(g: GraphBuilder) -> None:
    attention_of(g, rotary=False)


def attention_of(g: GraphBuilder, *, rotary: bool) -> None:
    ids = g.input("input_ids", ir.DataType.INT64, ["batch", "seq"])
    past = g.input("past_lengths", ir.DataType.INT64, ["batch"])
    positions = g.input("positions", ir.DataType.INT64, ["batch", "seq"])
    caches = [g.input(n, ir.DataType.FLOAT, ["batch", 1, 80, 16]) for n in ("pk", "pv")]
    x = g.op("Cast", [ids], "x", to=ir.DataType.FLOAT)
    x = g.op("Unsqueeze", [x, g.integers(-1)], "x.column")
    x = g.op("Expand", [x, g.integers(1, 1, 64)], "wide")
    sizes = g.initializer("sizes", np.asarray([32, 16, 16], np.int64))
    parts = g.ops("Split", [x, sizes], "qkv", outputs=3, axis=-1)
    heads = []
    for part, count, value in zip("qkv", (2, 1, 1), parts, strict=True):
        value = split_heads(g, value, count, 16, part)
        if rotary and part != "v":
            table = g.initializer("rotary", np.ones((80, 8), np.float32))
            inputs = [value, table, table, positions]
            value = g.op("RotaryEmbedding", inputs, f"{part}.rotary")
        heads.append(value)
    y, pk, pv = g.ops(
        "CachedAttention", [*heads, *caches, past], "a.cached", domain="plc", outputs=3
    )
    y = g.op("Transpose", [y], "seq_first", perm=[0, 2, 1, 3])
    y = g.op("Reshape", [y, g.integers(0, 0, 32)], "join_heads")
    if not rotary:
        y = g.op("Add", [y, g.op("Cast", [positions], "used", to=1)], "uses_positions")
    for value, name in ((y, "y"), (pk, "present_k"), (pv, "present_v")):
        g.output(value, name, ir.DataType.FLOAT, [])


@graph
def swiglu(g: GraphBuilder) -> None:
    x = g.input("x", ir.DataType.FLOAT, ["batch", "seq", 16])
    gate, up = (g.op("MatMul", [x, g.weight("a.q.weight")], f"a.{name}") for name in ("gate", "up"))
    gate = g.op("Mul", [gate, g.op("Sigmoid", [gate], "a.sigmoid")], "a.silu")
    y = g.op("Mul", [gate, up], "a.product")
    g.output(y, "y", ir.DataType.FLOAT, ["batch", "seq", 16])


@graph
def residual_norms(g: GraphBuilder) -> None:
    x, y = (g.input(name, ir.DataType.FLOAT, ["batch", "seq", 8]) for name in "xy")
    scale = g.initializer("scale", np.ones(8, np.float32))
    first = g.op("Add", [x, y], "first")
    normed = g.op("RMSNormalization", [first, scale], "rms", axis=-1, epsilon=1e-5)
    second = g.op("Add", [first, normed], "second")
    normed = g.op("LayerNormalization", [second, scale, scale], "layer", axis=-1, epsilon=1e-5)
    g.output(normed, "normed", ir.DataType.FLOAT, [])
    g.output(second, "stream", ir.DataType.FLOAT, [])


@graph
def added_entries(g: GraphBuilder) -> None:
    for kind in ("key", "value"):
        past = g.input(f"past_{kind}.0", ir.DataType.FLOAT, ["batch", 1, 80, 16])
        added = g.op("Identity", [past], f"{kind}.added")
        g.output(added, f"present_{kind}.0", ir.DataType.FLOAT, ["batch", 1, 80, 16])


INT4, INT8 = Scheme(4, 16), Scheme(8, 16)
CONTRACT = GraphContract(1, 1, 16, hidden=32, vocab=24, capacity=80, prompts="input")
QUANTIZED = [QuantizeWeights(INT4, INT8)]
OFFSETS = QuantizeWeights(Scheme(4, 16, offset=True, half=True), Scheme(8, 16, half=True))
CASES: list[tuple[str, str, list[GraphPass], GraphPass]] = [
    ("merge_products", "products", [], MergeProducts()),
    ("merge_biased_products", "biased_products", [], MergeProducts()),
    ("quantize_weights", "one_product", [], QuantizeWeights(INT4, INT8)),
    ("quantize_by_channel", "one_product", [], QuantizeWeights(Scheme(8, 0), None)),
    ("quantize_tables", "tied_table", [], QuantizeWeights(INT4, INT8)),
    ("use_block_kernels", "one_product", [*QUANTIZED], UseBlockKernels()),
    ("use_block_kernels_for_tables", "tied_table", [*QUANTIZED], UseBlockKernels()),
    ("quantize_with_offsets", "one_product", [], OFFSETS),
    ("use_block_products", "one_product", [OFFSETS], UseBlockProducts()),
    ("use_block_products_for_tables", "tied_table", [OFFSETS], UseBlockProducts()),
    ("use_gated_block_products", "swiglu", [MergeProducts(), OFFSETS], UseBlockProducts()),
    ("use_packed_attention", "rotary_attention", [], UsePackedAttention(2, 1)),
    ("use_packed_attention_without_rotary", "plain_attention", [], UsePackedAttention(2, 1)),
    ("use_grouped_attention", "rotary_attention", [], UseGroupedAttention(2, 1)),
    ("use_grouped_attention_without_rotary", "plain_attention", [], UseGroupedAttention(2, 1)),
    ("fuse_residual_norms", "residual_norms", [], FuseResidualNorms()),
    ("set_precision", "tied_table", [], SetPrecision("float16")),
    ("sample_in_graph", "logits_alone", [], SampleInGraph(20)),
    ("use_all_reduce_plugin", "part_of_a_sum", [], UseAllReducePlugin()),
    ("link_functions", "attention", [], LinkFunctions([cached_attention_function()])),
    ("inline_functions", "attention", [LinkFunctions([attention_function()])], InlineFunctions()),
    ("give_added_entries", "added_entries", [], GiveAddedEntries(CONTRACT)),
]


@pytest.mark.parametrize(("name", "graph", "before", "tested"), CASES, ids=[c[0] for c in CASES])
def test_a_pass_turns_one_text_into_the_other(
    name: str,
    graph: str,
    before: list[GraphPass],
    tested: GraphPass,
    golden: Callable[[str, str], None],
) -> None:
    model = GRAPHS[graph]()
    run_passes(model, before)
    golden(f"passes/{name}.before.onnx.txt", model_text(model))

    (record,) = run_passes(model, [tested])

    golden(f"passes/{name}.after.onnx.txt", model_text(model))
    assert record.modified
    onnx.checker.check_model(ir.to_proto(model))  # knows nothing of other domains


def test_every_pass_has_a_text() -> None:
    tested = {type(case[3]) for case in CASES}

    ours = {c for c in GraphPass.__subclasses__() if c.__module__.startswith("pl_compile.")}
    assert tested == ours


@pytest.mark.parametrize(
    "each",
    [
        MergeProducts(),
        UseGroupedAttention(2, 1),
        FuseResidualNorms(),
        UseBlockProducts(),
        UsePackedAttention(2, 1),
        QuantizeWeights(INT4, INT8),
        UseBlockKernels(),
    ],
)
def test_a_pass_that_finds_nothing_changes_nothing(each: GraphPass) -> None:
    model = GRAPHS["logits_alone"]()
    before = model_text(model)

    (record,) = run_passes(model, [each])

    assert not record.modified
    assert model_text(model) == before
