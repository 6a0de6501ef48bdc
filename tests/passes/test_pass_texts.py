"""Each pass on a small graph, before and after, as texts that a reviewer can read.

The texts before are written by hand; those after are renewed by `--update-golden`.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pl_compile.config.contract import GraphContract
from pl_compile.exporters.bodies import attend_to_longest, library_of
from pl_compile.passes.cut_logits import CutLogits
from pl_compile.passes.fuse_residual_norms import FuseResidualNorms
from pl_compile.passes.give_added_entries import GiveAddedEntries
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.inline_functions import InlineFunctions
from pl_compile.passes.link_functions import LinkFunctions
from pl_compile.passes.merge_products import MergeProducts
from pl_compile.passes.name_functions import NameFunctions
from pl_compile.passes.pipeline import model_text, run_passes
from pl_compile.passes.quantize_weights import QuantizeWeights
from pl_compile.passes.sample_in_graph import SampleInGraph
from pl_compile.passes.set_precision import SetPrecision
from pl_compile.passes.use_all_reduce_plugin import UseAllReducePlugin
from pl_compile.passes.use_grouped_attention import UseGroupedAttention
from pl_compile.passes.use_lower_right import UseLowerRight
from pl_compile.passes.use_mat_mul_nbits import UseMatMulNBits
from pl_compile.passes.use_own_products import UseOwnProducts
from pl_compile.passes.use_packed_attention import UsePackedAttention
from pl_compile.quantize.scheme import Scheme

TEXTS = Path(__file__).parents[1] / "golden" / "passes"
INT4, INT8 = Scheme(4, 16), Scheme(8, 16)
CONTRACT = GraphContract(1, 1, 16, hidden=32, vocab=24, capacity=80, prompts="input")
OFFSETS = QuantizeWeights(Scheme(4, 16, offset=True, half=True), Scheme(8, 16, half=True))

# A text's name, without `.before.onnx.txt`, and the pass that is run on it.
CASES: dict[str, GraphPass] = {
    "merge_products": MergeProducts(),
    "merge_biased_products": MergeProducts(),
    "merge_into_attention": MergeProducts(),
    "merge_into_swiglu": MergeProducts(),
    "quantize_weights": QuantizeWeights(INT4, INT8),
    "quantize_by_channel": QuantizeWeights(Scheme(8, 0), None),
    "quantize_tables": QuantizeWeights(INT4, INT8),
    "quantize_with_offsets": OFFSETS,
    "use_mat_mul_nbits": UseMatMulNBits(),
    "use_mat_mul_nbits_for_tables": UseMatMulNBits(),
    "use_own_products": UseOwnProducts(),
    "use_own_products_for_tables": UseOwnProducts(),
    "use_own_products_for_swiglu": UseOwnProducts(),
    "use_own_products_for_geglu": UseOwnProducts(),
    "use_packed_attention": UsePackedAttention(),
    "use_packed_attention_without_rotary": UsePackedAttention(),
    "use_packed_attention_of_parts": UsePackedAttention(),
    "use_packed_attention_with_norms": UsePackedAttention(),
    "use_grouped_attention": UseGroupedAttention(),
    "use_grouped_attention_without_rotary": UseGroupedAttention(),
    "use_grouped_attention_with_a_window": UseGroupedAttention(),
    "fuse_residual_norms": FuseResidualNorms(),
    "cut_logits": CutLogits(),
    "set_precision": SetPrecision("float16"),
    "sample_in_graph": SampleInGraph(20),
    "use_all_reduce_plugin": UseAllReducePlugin(),
    "link_functions": LinkFunctions(library_of(attend_to_longest)),
    "name_functions": NameFunctions(),
    "inline_functions": InlineFunctions(),
    "give_added_entries": GiveAddedEntries(CONTRACT),
    "use_lower_right": UseLowerRight(),
}


def model_of(name: str) -> ir.Model:
    """The model of a text; a weight whose numbers the text does not give gets random ones."""
    proto = onnx.parser.parse_model((TEXTS / f"{name}.before.onnx.txt").read_text("utf-8"))
    generator = np.random.default_rng(0)
    made = {name for node in proto.graph.node for name in node.output}
    for value in proto.graph.value_info:
        if value.name not in made:
            kind = ir.DataType(value.type.tensor_type.elem_type)
            sizes = [size.dim_value for size in value.type.tensor_type.shape.dim]
            array = generator.normal(size=sizes) * (1 if kind.is_floating_point() else 3)
            tensor = ir.tensor(array.astype(kind.numpy()), kind, name=value.name)
            proto.graph.initializer.append(ir.to_proto(tensor))
    return ir.from_proto(proto)


@pytest.mark.parametrize("name", CASES)
def test_a_pass_turns_one_text_into_the_other(
    name: str, golden: Callable[[str, str], None]
) -> None:
    model = model_of(name)

    (record,) = run_passes(model, [CASES[name]]).records

    golden(f"passes/{name}.after.onnx.txt", model_text(model))
    assert record.modified
    onnx.checker.check_model(ir.to_proto(model))  # knows nothing of other domains


def test_every_pass_has_a_text_and_every_text_a_pass() -> None:
    tested = {type(each) for each in CASES.values()}
    ours = {c for c in GraphPass.__subclasses__() if c.__module__.startswith("pl_compile.")}
    assert tested == ours

    texts = {path.name.split(".")[0] for path in TEXTS.iterdir()}
    assert texts == set(CASES)


@pytest.mark.parametrize(
    "each",
    [
        MergeProducts(),
        UseGroupedAttention(),
        FuseResidualNorms(),
        UseOwnProducts(),
        UsePackedAttention(),
        QuantizeWeights(INT4, INT8),
        UseMatMulNBits(),
        LinkFunctions({}),
        NameFunctions(),
        UseLowerRight(),
    ],
)
def test_a_pass_that_finds_nothing_changes_nothing(each: GraphPass) -> None:
    model = model_of("sample_in_graph")
    before = model_text(model)

    (record,) = run_passes(model, [each]).records

    assert not record.modified
    assert model_text(model) == before


def test_a_rewrite_that_leaves_a_mask_breaks_its_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UseLowerRight, "rewrite", lambda *_: False)

    with pytest.raises(ir.passes.PostconditionError):
        run_passes(model_of("use_lower_right"), [UseLowerRight()])


def test_products_that_one_operator_does_not_take_in_this_order_are_split_again() -> None:
    model = model_of("merge_into_swiglu")
    (*_, gate) = model.graph
    first, second = gate.inputs
    gate.replace_input_with(0, second)
    gate.replace_input_with(1, first)

    run_passes(model, [MergeProducts()])

    assert [node.op_type for node in model.graph] == ["MatMul", "Split", "SwiGlu"]


def test_norms_of_heads_are_left_to_a_body_where_the_kernel_has_none() -> None:
    model = model_of("use_packed_attention_with_norms")

    (record,) = run_passes(model, [UseGroupedAttention()]).records

    assert not record.modified


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("Cast <to: int = 1> (x)", "'y' has float32 written into it"),
        ("Constant <value: tensor = float[1] {1.0}> ()", "'y' has float32 written into it"),
        ("plc.SwiGlu:body_1 (x)", "functions are linked after the precision is set"),
    ],
)
def test_a_precision_is_not_set_where_float32_is_written_into_a_node(
    written: str, said: str
) -> None:
    text = f"""<ir_version: 11, opset_import: ["" : 24, "plc" : 1]>
    graph (float[4] x) => (float[4] y) {{ [y] y = {written} }}
    <domain: "plc", overload: "body_1", opset_import: ["" : 24]>
    SwiGlu (x) => (y) {{ y = Add (x, x) }}"""
    model = ir.from_onnx_text(text)
    if "SwiGlu" not in written:
        model.functions.clear()

    with pytest.raises(ir.passes.PreconditionError) as error:
        run_passes(model, [SetPrecision("float16")])

    assert said in str(error.value.__cause__)


def test_a_token_is_chosen_once_and_from_logits() -> None:
    model = model_of("sample_in_graph")
    run_passes(model, [SampleInGraph(20)])

    for changed, said in ((model, "is chosen already"), (model_of("merge_products"), "no logits")):
        with pytest.raises(ir.passes.PreconditionError) as error:
            run_passes(changed, [SampleInGraph(20)])
        assert said in str(error.value.__cause__)


def test_a_call_without_a_body_is_named() -> None:
    with pytest.raises(ir.passes.PreconditionError) as error:
        run_passes(model_of("link_functions"), [LinkFunctions({})])

    assert "no body for ['SwiGlu']" in str(error.value.__cause__)
