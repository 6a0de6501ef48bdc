"""A TensorRT plan on a GPU: what it was built for, execution contexts, CUDA graphs, NCCL.

Written to TensorRT's documented interface. This project, which had no GPU, never ran it; tests run
it on a stand-in for a GPU in host memory (tests/runtime/test_tensorrt_engine.py).
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pl_compile.all_reduce_plugin import give_communicator, load_plugin
from pl_compile.artifact.plan_record import PLAN_NAME, PlanRecord, read_plan_record
from pl_compile.config.contract import ALIGNED, INPUT_IDS, LOGITS, NEXT_TOKEN, GraphContract
from pl_compile.config.targets import PLAN_TARGETS
from pl_compile.errors import ArtifactError, MissingExtraError
from pl_compile.runtime.engines.ranks.nccl import capsule_of
from pl_compile.runtime.engines.tensorrt.cuda import Cuda, CudaCaches
from pl_compile.runtime.engines.tensorrt.engine import TOKEN_PROFILE, Array, Binding, TensorRtEngine

# From this compute capability on, a GPU is newer than those that plans are usually built for.
_NEWER = 12


def installed(target: str, doing: str) -> Any:
    """TensorRT's Python package for a target.

    Raises:
        MissingExtraError: it is not installed, or does not load.
    """
    row = PLAN_TARGETS[target]
    try:
        return importlib.import_module(row.package)
    except (ImportError, OSError) as error:
        raise MissingExtraError(doing, package=row.package, extra=row.extra) from error


def check_package(record: PlanRecord, target: str, version: str) -> None:
    """Raises `ArtifactError` if a plan was built by another package than the installed one.

    Args:
        record: of the plan.
        target: of the bundle.
        version: of the TensorRT that is installed.
    """
    if (record.flavour, record.version) != (target, version):
        raise ArtifactError(
            "checking what built a plan",
            found=f"{record.flavour} {record.version}",
            expected=f"{target} {version}, which is installed here",
            fix="Build it on this machine: plc build BUNDLE.",
        )


def check_gpu(record: PlanRecord, capability: str) -> None:
    """Raises `ArtifactError` if a plan was built for other GPUs.

    Args:
        record: of the plan.
        capability: of this machine's GPU, such as "8.9".
    """
    usual = PLAN_TARGETS[record.flavour].usual_gpus
    listed = record.compute_capabilities or usual
    major = int(capability.partition(".")[0])
    newer = not record.compute_capabilities and bool(usual) and major >= _NEWER
    if listed and capability not in listed and not newer:
        raise ArtifactError(
            "checking which GPUs a plan was built for",
            found=f"compute capability {', '.join(listed)}",
            expected=f"{capability}, which is here",
            fix="Build it on this machine: plc build BUNDLE.",
        )


def open_plan(
    folder: Path,
    target: str,
    contract: GraphContract,
    *,
    max_batch: int | None,
    dtype: str,
    rank: int = 0,
    communicator: int | None = None,
) -> TensorRtEngine:
    """The engine on a bundle's plan. Not run by this project.

    Problems that the bundle alone shows are reported before the GPU is used.

    Args:
        folder: holds `model.plan` and `plan.json`.
        target: "tensorrt-rtx" or "tensorrt".
        contract: of the graph, or of the rank's.
        max_batch: slots of its caches; at most what the plan was built for, which is also the
            default (None).
        dtype: of the caches.
        rank: which GPU.
        communicator: address of NCCL's communicator, where there are several ranks; it must outlive
            the engine.

    Raises:
        ArtifactError: there is no plan, it belongs to something else, or it does not load.
        MissingExtraError: TensorRT is not installed.
    """
    record = read_plan_record(folder)
    trt = installed(target, f"opening {folder}")
    check_package(record, target, trt.__version__)
    max_batch = max_batch or record.max_batch
    if max_batch > record.max_batch:
        raise ArtifactError(
            f"opening {folder}",
            found=f"max_batch {max_batch}",
            expected=f"at most {record.max_batch}, which the plan was built for",
            fix="Export it with a larger --max-batch.",
        )
    unit = contract.capacity_unit(dtype)
    if contract.capacity % unit:
        raise ArtifactError(
            f"opening {folder}",
            found=f"capacity {contract.capacity}",
            expected=f"a multiple of {unit}: slots begin at multiples of {ALIGNED} bytes",
            fix="Export it again with another --capacity.",
        )
    cuda = Cuda(rank)
    check_gpu(record, cuda.compute_capability)
    caches = CudaCaches(cuda, contract, max_batch, dtype)
    plan = GpuPlan(trt, cuda, (folder / PLAN_NAME).read_bytes(), contract, caches, communicator)
    return TensorRtEngine(plan, contract, max_batch=max_batch, dtype=dtype)


class GpuPlan:
    """A deserialised plan with its execution contexts: the `Plan` on a GPU. Never run.

    Args:
        trt: the package.
        cuda: the GPU.
        data: the plan.
        contract: of its graph.
        caches: in the GPU's memory.
        communicator: address of an `ncclComm_t`, where there are several ranks.

    Raises:
        ArtifactError: TensorRT does not take the plan.
    """

    def __init__(
        self,
        trt: Any,
        cuda: Cuda,
        data: bytes,
        contract: GraphContract,
        caches: CudaCaches,
        communicator: int | None,
    ) -> None:
        self.caches = caches
        self._cuda = cuda
        plugin = None
        if communicator is not None and not hasattr(trt.IExecutionContext, "set_communicator"):
            plugin = load_plugin(trt)
            give_communicator(plugin, communicator)
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise ArtifactError(
                "loading a TensorRT plan",
                found="TensorRT does not take it",
                fix="Build it on this machine: plc build BUNDLE.",
            )
        self.bindings = _bindings_of(trt, self._engine)
        self._names = contract.cache_names
        self._communicator = None if plugin is not None else communicator
        # One context for prompts, and one for token steps of each number of rows: a captured graph
        # becomes invalid when its context gets other shapes.
        self._contexts: dict[int, Any] = {}
        self._memory: dict[str, tuple[int, int]] = {}
        # CUDA graphs of token steps, by number of rows. Each is captured at the second such step;
        # None where TensorRT does not allow it.
        self._graphs: dict[int, Any] = {}
        self._seen: set[int] = set()

    def run(self, first: int, inputs: Mapping[str, Array], profile: int) -> dict[str, Array]:
        """See `Plan.run`."""
        batch = len(inputs[INPUT_IDS])
        outputs: dict[str, Array] = {
            LOGITS: np.empty((batch, self.bindings[LOGITS].shape[1]), np.float32)
        }
        if NEXT_TOKEN in self.bindings:
            outputs[NEXT_TOKEN] = np.empty(batch, np.int64)
        for name, array in inputs.items():
            self._cuda.upload(self._place(name, array.nbytes), array)
        for name, array in outputs.items():
            self._place(name, array.nbytes)
        graph = self._graphs.get(batch) if profile == TOKEN_PROFILE else None
        if graph is not None:
            self._cuda.call("cudaGraphLaunch", graph, self._cuda.stream)
        else:
            shapes = {name: array.shape for name, array in inputs.items()}
            context = self._context(profile, batch)
            self._bind(context, first, batch, shapes)
            self._enqueue(context)
            # TensorRT must have run once with these shapes before it can be captured.
            if profile == TOKEN_PROFILE and batch in self._seen and batch not in self._graphs:
                self._graphs[batch] = self._captured(context)
            if profile == TOKEN_PROFILE:
                self._seen.add(batch)
        for name, array in outputs.items():
            self._cuda.download(array, self._memory[name][0])
        return outputs

    def _context(self, profile: int, batch: int) -> Any:
        key = batch if profile == TOKEN_PROFILE else 0
        if key not in self._contexts:
            context = self._engine.create_execution_context()
            _must(context is not None, "create an execution context: is there memory for it?")
            stream = int(self._cuda.stream)
            _must(context.set_optimization_profile_async(profile, stream), "take a profile")
            self._cuda.wait()
            if self._communicator is not None:
                # All ranks must make this call together, else none returns from it. They step
                # together, so they do.
                capsule = capsule_of(self._communicator)
                _must(context.set_communicator(capsule), "take NCCL's communicator")
            self._contexts[key] = context
        return self._contexts[key]

    def _bind(
        self, context: Any, first: int, batch: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        for name, (address, _) in self._memory.items():
            if name in shapes:
                _must(context.set_input_shape(name, shapes[name]), f"take the shape of {name}")
            _must(context.set_tensor_address(name, address), f"take the address of {name}")
        for index, (past, present) in enumerate(self._names):
            shape = (batch, *self.bindings[past].shape[1:])
            _must(context.set_input_shape(past, shape), f"take the shape of {past}")
            for name in (past, present):
                address = self.caches.address(index, first)
                _must(context.set_tensor_address(name, address), f"take the address of {name}")

    def _enqueue(self, context: Any) -> None:
        _must(context.execute_async_v3(int(self._cuda.stream)), "begin a step")

    def _captured(self, context: Any) -> Any:
        """A step as a CUDA graph; None if it cannot be captured, which only costs time."""
        modes = self._cuda.api.cudaStreamCaptureMode
        mode = modes.cudaStreamCaptureModeThreadLocal
        self._cuda.call("cudaStreamBeginCapture", self._cuda.stream, mode)
        try:
            try:
                self._enqueue(context)
            finally:
                graph = self._cuda.call("cudaStreamEndCapture", self._cuda.stream)
            captured = self._cuda.call("cudaGraphInstantiate", graph, 0)
            self._cuda.call("cudaGraphDestroy", graph)
        except ArtifactError:
            return None
        return captured

    def _place(self, name: str, size: int) -> int:
        """Memory for an input or output. If it has to move, captured graphs are dropped."""
        address, held = self._memory.get(name, (0, 0))
        if held < size:
            self._cuda.wait()
            if address:
                self._cuda.free(address)
            address = self._cuda.allocate(size)
            self._memory[name] = (address, size)
            for graph in self._graphs.values():
                if graph is not None:
                    self._cuda.call("cudaGraphExecDestroy", graph)
            self._graphs.clear()
            self._seen.clear()
        return address


def _must(done: bool, what: str) -> None:
    if not done:
        raise ArtifactError(
            "running a TensorRT plan", found=f"TensorRT did not {what}", fix="See plc doctor."
        )


def _bindings_of(trt: Any, engine: Any) -> dict[str, Binding]:
    words = {
        trt.DataType.FLOAT: "float32",
        trt.DataType.HALF: "float16",
        trt.DataType.BF16: "bfloat16",
        trt.DataType.INT64: "int64",
        trt.DataType.INT32: "int32",
        trt.DataType.BOOL: "bool",
    }
    bindings = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        alias = None if is_input else engine.get_aliased_input_tensor(name)
        shape = tuple(int(size) for size in engine.get_tensor_shape(name))
        bindings[name] = Binding(shape, words[engine.get_tensor_dtype(name)], is_input, alias)
    return bindings
