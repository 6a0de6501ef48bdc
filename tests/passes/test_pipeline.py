"""What the pipeline does around passes: checks, dumps, records, errors."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from pl_compile.errors import ExportError
from pl_compile.graph.builder import GraphBuilder
from pl_compile.passes.edit import Edit
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.pipeline import run_passes
from pl_compile.passes.verify import verify_model


def doubled() -> ir.Model:
    g = GraphBuilder({"two": np.full(1, 2.0, np.float32)})
    x = g.input("x", ir.DataType.FLOAT, ["batch"])
    g.output(g.op("Mul", [x, g.weight("two")], "double"), "y", ir.DataType.FLOAT, ["batch"])
    return g.model("doubled")


@dataclass(frozen=True)
class AddOne(GraphPass):
    """For these tests."""

    number: int = 1

    def rewrite(self, model: ir.Model) -> bool:
        """Adds a node that nothing uses."""
        node = ir.node("Neg", [model.graph.inputs[0]], name="spare", outputs=[ir.val("spare/out")])
        model.graph.append(node)
        return True


@dataclass(frozen=True)
class Break(GraphPass):
    """For these tests."""

    how: str

    def rewrite(self, model: ir.Model) -> bool:
        """Breaks a model in a named way."""
        (node,) = list(model.graph)
        if self.how == "unknown operator":
            node.op_type = "Muul"
        elif self.how == "name twice":
            node.outputs[0].name = "x"
        elif self.how == "unused weight":
            node.replace_input_with(1, model.graph.inputs[0])
        elif self.how == "use before it is made":
            late = ir.node("Neg", [model.graph.inputs[0]], name="late", outputs=[ir.val("late/o")])
            model.graph.append(late)
            node.replace_input_with(0, late.outputs[0])
        else:
            model.graph.remove(node)
        return True


@dataclass(frozen=True)
class Note(GraphPass):
    """For these tests."""

    text: str

    def rewrite(self, model: ir.Model) -> tuple[str, ...]:
        """Changes nothing that is seen, and notes it."""
        return (self.text,)


@dataclass(frozen=True)
class Refuse(GraphPass):
    """For these tests."""

    def requires(self, model: ir.Model) -> None:
        """Refuses every model."""
        raise ExportError("looking at the model", found="nothing good")

    def rewrite(self, model: ir.Model) -> bool:
        """Is never called."""
        raise AssertionError


def test_a_record_of_each_pass_says_what_it_did() -> None:
    (record,) = run_passes(doubled(), [AddOne(number=3)]).records

    assert (record.name, record.options, record.modified) == ("add-one", {"number": 3}, True)
    assert (record.nodes, record.weight_bytes) == (2, 4)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("unknown operator", "no operator ::Muul"),
        ("name twice", "two values are called 'x'"),
        ("unused weight", "the initializer 'two' is not used"),
        ("use before it is made", "takes 'late/o' before it is made"),
        ("output is gone", "the graph output 'y' is not made"),
    ],
)
def test_a_pass_that_breaks_the_model_is_named_with_those_before_it(how: str, said: str) -> None:
    with pytest.raises(ir.passes.PassError) as error:
        run_passes(doubled(), [Break(how)])

    assert "break broke the model (passes before it: none)" in str(error.value)
    assert said in str(error.value.__cause__)


def test_what_a_pass_refuses_of_its_input_is_said_as_it_is() -> None:
    with pytest.raises(ExportError, match="nothing good"):
        run_passes(doubled(), [Refuse()])


def test_notes_of_all_passes_are_kept_in_their_order() -> None:
    run = run_passes(doubled(), [Note("first"), AddOne(), Note("second")])

    assert run.notes == ("first", "second")
    assert [record.modified for record in run.records] == [True, True, True]


def test_two_initializers_of_one_name_with_other_numbers_are_a_mistake() -> None:
    edit = Edit(doubled())
    first = edit.initializer("three", np.full(1, 3.0, np.float32))

    assert edit.initializer("three", np.full(1, 3.0, np.float32)) is first
    for other in (np.full(1, 4.0, np.float32), np.full(2, 3.0, np.float32)):
        with pytest.raises(AssertionError, match="two initializers are called 'three'"):
            edit.initializer("three", other)


def test_the_model_is_dumped_before_and_after_each_pass(tmp_path: Path) -> None:
    run_passes(doubled(), [AddOne()], dump_to=tmp_path / "new" / "dumps")

    names = sorted(path.name for path in (tmp_path / "new" / "dumps").iterdir())
    assert names == ["00-main-graph.onnx.txt", "01-add-one.onnx.txt", "passes.json"]
    before = (tmp_path / "new" / "dumps" / names[0]).read_text()
    after = (tmp_path / "new" / "dumps" / names[1]).read_text()
    assert "spare" not in before
    assert "spare" in after
    records = json.loads((tmp_path / "new" / "dumps" / "passes.json").read_text())
    assert [record["name"] for record in records] == ["add-one"]


def test_a_sound_model_is_verified() -> None:
    verify_model(doubled())
