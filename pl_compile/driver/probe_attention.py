"""Which form of attention a GPU computes right: a mask, or causal from the lower right.

A mask is right without doubt, and is the default of every plan. The other form reads no mask and
may be faster, but TensorRT's documentation does not say what a row's length means there. So the GPU
is asked once, before a plan is built on it: it runs both forms of a small network, with rows of
different lengths. The other form is taken only if it computes what the mask does.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pl_compile.artifact.plan_record import AttentionForm
from pl_compile.config.targets import PLAN_TARGETS
from pl_compile.errors import ExportError, PlcError
from pl_compile.exporters.bodies import library_of
from pl_compile.exporters.tensorrt.api import ParsedNetwork, PlanOptions, build_plan, parse
from pl_compile.exporters.tensorrt.exporter import attend_masked
from pl_compile.graph.blocks import Padded, attention
from pl_compile.graph.builder import GraphBuilder
from pl_compile.graph.operators import AttentionSettings
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.link_functions import LinkFunctions
from pl_compile.passes.name_functions import NameFunctions
from pl_compile.passes.pipeline import run_passes
from pl_compile.passes.use_lower_right import UseLowerRight
from pl_compile.runtime.engines.tensorrt.cuda import Cuda

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]

_ASKING = "asking the GPU about attention"
_HEADS, _CAPACITY = 2, 24
# By how much both forms may differ: they sum numbers around 1 in another order.
_TOLERANCES = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 4e-2}
_TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}
# Cached tokens of three rows before a step, and the tokens of the step: a prompt, or one token.
_CASES = (((0, 0, 0), 7), ((3, 11, 0), 5), ((4, 17, 9), 1))


def choose_attention(
    target: str, head_dim: int, dtype: str, compute_capabilities: tuple[str, ...]
) -> tuple[AttentionForm, str]:
    """The form for plans that are built on this machine, and why.

    Args:
        target: whose TensorRT is asked.
        head_dim: of the base.
        dtype: the type that it computes in: each has kernels of its own.
        compute_capabilities: those that the plans will be for. This machine's GPU shows nothing
            about others: if there is any other, the mask is chosen.
    """
    try:
        cuda = Cuda()
    except PlcError as error:
        return "mask", f"no GPU to ask ({error.found})"
    here = cuda.compute_capability
    if compute_capabilities != (here,) and (
        compute_capabilities or PLAN_TARGETS[target].usual_gpus
    ):
        return "mask", f"the plan is for other GPUs than the one that could be asked ({here})"
    return compare_forms(target, head_dim, dtype, lambda parsed: _GpuNetwork(cuda, parsed).run)


def compare_forms(
    target: str, head_dim: int, dtype: str, runner: Callable[[ParsedNetwork], Run]
) -> tuple[AttentionForm, str]:
    """Runs both forms on the same numbers.

    Args:
        target: whose TensorRT parses them.
        head_dim: of the base.
        dtype: that it computes in.
        runner: turns a network into something that runs it.
    """
    worst = 0.0
    try:
        with TemporaryDirectory(prefix="plc-probe-") as folder:
            masked, other = (
                runner(_network(Path(folder), target, head_dim, dtype, form))
                for form in ("mask", "lower_right")
            )
            for past, seq in _CASES:
                inputs = _numbers(head_dim, dtype, past, seq)
                expected, found = masked(inputs)["output"], other(inputs)["output"]
                worst = max(worst, float(np.abs(expected - found).max()))
    except PlcError as error:
        return "mask", f"the forms could not be compared ({error.found})"
    if not worst <= _TOLERANCES[dtype]:
        return "mask", f"the other form differs by {worst:.1e}"
    return "lower_right", f"it computes what the mask does, within {worst:.1e}"


def _network(
    folder: Path, target: str, head_dim: int, dtype: str, form: AttentionForm
) -> ParsedNetwork:
    g = GraphBuilder({})
    cache: list[int | str] = ["batch", _HEADS, _CAPACITY, head_dim]
    step: list[int | str] = ["batch", "seq", _HEADS * head_dim]
    # Inputs and outputs are float32. Caches are of `dtype` itself, since they are updated in place.
    kind = _TYPES[dtype]
    given = [g.input(name, ir.DataType.FLOAT, step) for name in ("query", "key", "value")]
    parts = [g.op("Cast", [value], f"{value.name}.narrow", to=kind) for value in given]
    past_key, past_value = (g.input(name, kind, cache) for name in ("past_key", "past_value"))
    lengths = g.input("past_lengths", ir.DataType.INT64, ["batch"])
    settings = AttentionSettings(_HEADS, _HEADS, 1 / math.sqrt(head_dim))
    # Only ragged rows need positions where nothing is rotated, and only a whole base last tokens.
    rows = Padded(lengths, lengths)
    output, presents = attention(g, settings, parts, (past_key, past_value), rows, lengths, "asked")
    wide = g.op("Cast", [output], "wide", to=ir.DataType.FLOAT)
    g.output(wide, "output", ir.DataType.FLOAT, step)
    for value, name in zip(presents, ("present_key", "present_value"), strict=True):
        g.output(value, name, kind, cache)
    model = g.model("attention")
    passes: list[GraphPass] = [LinkFunctions(library_of(attend_masked)), NameFunctions()]
    if form == "lower_right":
        passes.append(UseLowerRight())
    run_passes(model, passes)
    path = folder / f"{form}.onnx"
    ir.save(model, path)
    return parse(path, target, attention=form)


def _numbers(head_dim: int, dtype: str, past: tuple[int, ...], seq: int) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(seq)

    def draw(*sizes: int) -> NDArray[np.float32]:
        return generator.normal(size=(len(past), *sizes)).astype(np.float32)

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    caches = {
        name: draw(_HEADS, _CAPACITY, head_dim).astype(kind) for name in ("past_key", "past_value")
    }
    steps = {name: draw(seq, _HEADS * head_dim) for name in ("query", "key", "value")}
    return {**steps, **caches, "past_lengths": np.asarray(past, np.int64)}


class _GpuNetwork:
    """A network that was built for the GPU. Never run by this project, which had no GPU."""

    def __init__(self, cuda: Cuda, parsed: ParsedNetwork) -> None:
        trt = parsed.trt
        plan = build_plan(parsed, PlanOptions(max_batch=4, capacity=_CAPACITY))
        self._cuda = cuda
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._engine = self._runtime.deserialize_cuda_engine(plan.data)
        if self._engine is None:
            raise ExportError(_ASKING, found="TensorRT does not take the plan")
        self._context = self._engine.create_execution_context()

    def run(self, inputs: Arrays) -> Arrays:
        """One step; the first profile is for any number of tokens."""
        output = np.empty_like(inputs["query"])
        sizes = {name: array.nbytes for name, array in inputs.items()} | {"output": output.nbytes}
        addresses = {name: self._cuda.allocate(size) for name, size in sizes.items()}
        try:
            for name, array in inputs.items():
                self._cuda.upload(addresses[name], np.ascontiguousarray(array))
                self._context.set_input_shape(name, array.shape)
            shared = {f"present_{part}": addresses[f"past_{part}"] for part in ("key", "value")}
            for name, address in {**addresses, **shared}.items():
                self._context.set_tensor_address(name, address)
            if not self._context.execute_async_v3(int(self._cuda.stream)):
                raise ExportError(_ASKING, found="TensorRT could not begin a step")
            self._cuda.download(output, addresses["output"])
        finally:
            for address in addresses.values():
                self._cuda.free(address)
        return {"output": output}
