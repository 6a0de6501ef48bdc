"""What becomes of a call of a function: on ONNX Runtime, and in TensorRT's parser.

These are the facts that the form of the calls rests on (`passes/link_functions.py`,
`passes/name_functions.py`). A TensorRT in which one of them changes is told of here.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from pl_compile.errors import ExportError

X = {"x": np.asarray([1.0, 2.0], np.float32)}
HEAD = """<ir_version: 11, opset_import: ["" : 24, "plc" : 1]>
calls (float[2] x) => (float[2] y) { %s }
"""
BODY = """
<domain: "plc", %sopset_import: ["" : 24]>
%s"""
Run = Callable[[Path], np.ndarray]


def by_onnxruntime(path: Path) -> np.ndarray:
    (y,) = onnxruntime.InferenceSession(str(path)).run(None, X)
    return np.asarray(y)


def by_tensorrt(path: Path) -> np.ndarray:
    pytest.importorskip(
        "tensorrt_rtx",
        reason="needs tensorrt_rtx (pip install tensorrt-rtx-cu13); without it: "
        "the same test by ONNX Runtime",
    )
    from pl_compile.exporters.tensorrt.api import parse
    from pl_compile.exporters.tensorrt.interpreter import Interpreter

    return Interpreter(parse(path, "tensorrt-rtx"), {}).run(X)["y"]


def written(folder: Path, nodes: str, *bodies: tuple[str, str]) -> Path:
    functions = "".join(
        BODY % (f'overload: "{overload}", ' if overload else "", body) for overload, body in bodies
    )
    ir.save(ir.from_onnx_text(HEAD % nodes + functions), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("run", [by_onnxruntime, by_tensorrt])
def test_attributes_of_each_call_reach_the_body(run: Run, tmp_path: Path) -> None:
    body = "Times <by> (x) => (y) { c = Constant <value_float: float = @by> () y = Mul (x, c) }"
    calls = "a = plc.Times <by: float = 3.0> (x) y = plc.Times <by: float = 5.0> (a)"

    y = run(written(tmp_path, calls, ("", body)))

    np.testing.assert_array_equal(y, 15 * X["x"])


@pytest.mark.parametrize(("run", "factor"), [(by_onnxruntime, 6), (by_tensorrt, 4)])
def test_overloads_are_told_apart_by_onnxruntime_alone(
    run: Run, factor: int, tmp_path: Path
) -> None:
    """TensorRT takes the first function of a name for all of its overloads, and says nothing."""
    calls = "a = plc.Times:two (x) y = plc.Times:three (a)"
    two = "Times (x) => (y) { y = Add (x, x) }"
    three = "Times (x) => (y) { a = Add (x, x) y = Add (a, x) }"

    y = run(written(tmp_path, calls, ("two", two), ("three", three)))

    np.testing.assert_array_equal(y, factor * X["x"])


@pytest.mark.parametrize(("run", "factor"), [(by_onnxruntime, 2), (by_tensorrt, 1)])
def test_a_function_that_is_called_like_an_operator_is_that_operator_to_tensorrt(
    run: Run, factor: int, tmp_path: Path
) -> None:
    path = written(tmp_path, "y = plc.Relu (x)", ("", "Relu (x) => (y) { y = Add (x, x) }"))

    np.testing.assert_array_equal(run(path), factor * X["x"])


def test_inputs_may_be_left_out_in_onnxruntime_and_not_in_tensorrt(tmp_path: Path) -> None:
    body = "Sum (x, left_out, z) => (y) { y = Add (x, z) }"
    path = written(tmp_path, 'y = plc.Sum (x, "", x)', ("", body))

    np.testing.assert_array_equal(by_onnxruntime(path), 2 * X["x"])
    with pytest.raises(ExportError, match=r"parsing .* with TensorRT"):
        by_tensorrt(path)
