"""What TensorRT's parser made of a graph, as an engine: interpreted in numpy, no GPU needed.

This is the engine that runs plans (`runtime/engines/tensorrt/engine.py`): same inputs, same checks
of names, shapes, types and aliases. The interpreter takes the place of a plan
(`exporters/tensorrt/interpreter.py`).
"""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pl_compile.artifact.bundle import MODEL_NAME, rank_folder
from pl_compile.artifact.plan_record import PLAN_RECORD, AttentionForm, read_plan_record
from pl_compile.config.contract import INPUT_IDS, GraphContract
from pl_compile.exporters.tensorrt.api import ParsedNetwork, layers_of
from pl_compile.exporters.tensorrt.exporter import parse_base
from pl_compile.exporters.tensorrt.interpreter import Interpreter, numpy_types
from pl_compile.runtime.engines.caches import Caches, HostCaches
from pl_compile.runtime.engines.engine import Engine
from pl_compile.runtime.engines.ranks.engine import RankedEngine
from pl_compile.runtime.engines.tensorrt.engine import Binding, TensorRtEngine

Array = NDArray[Any]


class InterpretedPlan:
    """A parsed network with the interface of a plan (`runtime/engines/tensorrt/engine.py`).

    Args:
        parsed: the network.
        constants: those of the ONNX file, since TensorRT does not give all of them back.
        contract: of the graph.
        max_batch: slots of its caches.
        all_reduce: the sum over ranks that its collectives call.
    """

    def __init__(
        self,
        parsed: ParsedNetwork,
        constants: Mapping[str, Array],
        contract: GraphContract,
        max_batch: int,
        all_reduce: Callable[[Array], Array] | None = None,
    ) -> None:
        self.interpreter = Interpreter(parsed, constants, all_reduce)
        self._names = contract.cache_names
        self.bindings = _bindings_of(parsed)
        kind = self.bindings[self._names[0][0]].dtype
        self._caches = HostCaches(contract, max_batch, np.dtype(kind))

    @property
    def caches(self) -> Caches:
        """See `Plan`."""
        return self._caches

    def run(self, first: int, inputs: Mapping[str, Array], profile: int) -> dict[str, Array]:
        """See `Plan.run`."""
        rows = slice(first, first + len(inputs[INPUT_IDS]))
        arrays = zip(self._names, self._caches.arrays, strict=True)
        pasts = {past: array[rows] for (past, _), array in arrays}
        outputs = self.interpreter.run({**inputs, **pasts})
        for (_, present), array in zip(self._names, self._caches.arrays, strict=True):
            array[rows] = outputs.pop(present)  # on a GPU, both are the same memory
        return outputs


def interpreted_engine(
    folder: Path, flavour: str, contract: GraphContract, *, max_batch: int, dtype: str
) -> Engine:
    """The engine on what a flavour's parser makes of a base.

    Args:
        folder: holds `model.onnx`, or one folder for each rank.
        flavour: whose parser: "tensorrt-rtx" or "tensorrt".
        contract: of the whole base.
        max_batch: slots of its caches.
        dtype: of its caches.

    Raises:
        ExportError: the parser or a guard refuses a graph, or the interpreter does not know a
            layer.
        ArtifactError: inputs and outputs are not those of the contract.
    """
    if contract.ranks == 1:
        return _engine(folder, flavour, contract, max_batch, dtype, None)
    meeting = _Meeting(contract.ranks)
    ranks = [
        _ThreadRank(
            _engine(
                folder / rank_folder(rank),
                flavour,
                contract.of_rank(rank),
                max_batch,
                dtype,
                meeting.all_reduce_of(rank),
            ),
            meeting,
        )
        for rank in range(contract.ranks)
    ]
    return RankedEngine(ranks, contract, max_batch)


def _engine(
    folder: Path,
    flavour: str,
    contract: GraphContract,
    max_batch: int,
    dtype: str,
    all_reduce: Callable[[Array], Array] | None,
) -> TensorRtEngine:
    model = folder / MODEL_NAME
    values = ir.load(model).graph.initializers.values()
    constants = {str(v.name): v.const_value.numpy() for v in values if v.const_value is not None}
    # A plan may have been built from a variant of the graph; then that variant is checked.
    built = (folder / PLAN_RECORD).is_file()
    form: AttentionForm = read_plan_record(folder).attention if built else "mask"
    parsed = parse_base(folder, flavour, contract, form)
    plan = InterpretedPlan(parsed, constants, contract, max_batch, all_reduce)
    return TensorRtEngine(plan, contract, max_batch=max_batch, dtype=dtype)


def _bindings_of(parsed: ParsedNetwork) -> dict[str, Binding]:
    network, words = parsed.network, numpy_types(parsed.trt)
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    names = {tensor.name for tensor in inputs}
    # TensorRT updates a cache in place: the output of such a layer shares its input's memory.
    updates = [e for e in layers_of(parsed) if e.type == parsed.trt.LayerType.KV_CACHE_UPDATE]
    aliases = {layer.get_output(0).name: layer.get_input(0).name for layer in updates}
    bindings = {}
    for tensor in [*inputs, *outputs]:
        is_input = tensor.name in names
        shape = tuple(int(size) for size in tensor.shape)
        alias = None if is_input else aliases.get(tensor.name)
        bindings[tensor.name] = Binding(shape, np.dtype(words[tensor.dtype]).name, is_input, alias)
    return bindings


class _Meeting:
    """Where ranks in threads meet to sum their parts."""

    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks)
        self.cause: BaseException | None = None
        self._given: list[Array] = [np.empty(0)] * ranks

    def all_reduce_of(self, rank: int) -> Callable[[Array], Array]:
        def all_reduce(x: Array) -> Array:
            self._given[rank] = x
            self.barrier.wait()
            total = self._given[0]
            for other in self._given[1:]:
                total = total + other
            self.barrier.wait()
            return total

        return all_reduce


class _ThreadRank:
    """A rank (`runtime/engines/ranks/engine.py`) in a thread."""

    def __init__(self, engine: TensorRtEngine, meeting: _Meeting) -> None:
        self._engine, self._meeting = engine, meeting
        self._thread = ThreadPoolExecutor(1)
        self._begun: Future[Any] | None = None

    def begin(self, method: str, *arguments: Any) -> None:
        self._begun = self._thread.submit(self._call, method, *arguments)

    def result(self) -> Any:
        assert self._begun is not None
        try:
            return self._begun.result()
        except threading.BrokenBarrierError:
            assert self._meeting.cause is not None
            raise self._meeting.cause from None

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._engine, method)(*arguments)
        except threading.BrokenBarrierError:
            raise
        except BaseException as error:
            self._meeting.cause = error
            self._meeting.barrier.abort()  # else the others would wait for this one for ever
            raise
