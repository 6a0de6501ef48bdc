"""The engine for TensorRT plans, and all that it asks of a GPU, on a GPU that is host memory.

`HostCuda` and `FakeContext` have the faces that `cuda.py` and `GpuPlan` use, check
every address, and compute with what TensorRT's parser made of the graph. They are stricter than a
GPU: memory that nobody allocated, a cache whose output lies elsewhere than its input, a step that
is captured before it ever ran: all are errors. What is left for a real GPU to show is TensorRT's
kernels, and CUDA itself.
"""

import ast
import ctypes
import gc
import inspect
import sys
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pl_compile.artifact.plan_record import PlanRecord
from pl_compile.checkpoints.checkpoint import open_checkpoint
from pl_compile.checks.interpreted_engine import InterpretedPlan
from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import ALIGNED, GraphContract
from pl_compile.errors import ArtifactError, RankError
from pl_compile.exporters.exporter import PassInputs
from pl_compile.exporters.tensorrt.api import parse
from pl_compile.exporters.tensorrt.exporter import TensorRtExporter
from pl_compile.families.read import read_decoder_config
from pl_compile.graph.decoder import build_decoder
from pl_compile.passes.pipeline import run_passes
from pl_compile.runtime.engines.caches import HostCaches
from pl_compile.runtime.engines.engine import Engine
from pl_compile.runtime.engines.ranks.nccl import communicator_of, unique_id
from pl_compile.runtime.engines.tensorrt.cuda import Cuda, CudaCaches, stored, widened
from pl_compile.runtime.engines.tensorrt.engine import Binding, TensorRtEngine
from pl_compile.runtime.engines.tensorrt.gpu_plan import GpuPlan, check_gpu, check_package
from pl_compile.runtime.stepping import Batch
from pl_compile.testing import write_tiny_base
from pl_compile.testing_cuda import STREAM, HostCuda
from pl_compile.weights.load import load_weights

Array = NDArray[Any]


class DataType(Enum):
    """TensorRT's words."""

    FLOAT = "float32"
    HALF = "float16"
    BF16 = "bfloat16"
    INT64 = "int64"
    INT32 = "int32"
    BOOL = "bool"


class FakeContext:
    """An execution context: runs by addresses."""

    def __init__(self, engine: "FakeEngine") -> None:
        self._engine = engine
        self.profile: int | None = None
        self.communicator: Any = None
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._ran: set[tuple[tuple[int, ...], ...]] = set()
        self._changes = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_communicator(self, communicator: Any) -> bool:
        self.communicator = communicator
        assert "ncclComm_t" in repr(communicator)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        declared = self._engine.plan.bindings[name].shape
        assert len(shape) == len(declared)
        assert all(b in (-1, a) for a, b in zip(shape, declared, strict=True))
        self._changes += self._shapes.get(name) != tuple(shape)
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in self._engine.plan.bindings
        assert address % ALIGNED == 0
        self._changes += self._addresses.get(name) != address
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == STREAM
        addresses, shapes = dict(self._addresses), dict(self._shapes)
        if self._engine.cuda.captured is not None:
            assert tuple(shapes.values()) in self._ran, "captured before it ran"
            if self._engine.cuda.refuses_capture:
                return False
            changes = self._changes

            def replay() -> None:
                assert self._changes == changes, "its context was given other shapes since"
                self._run(addresses, shapes)

            self._engine.cuda.captured.append(replay)
        else:
            self._ran.add(tuple(shapes.values()))
            self._run(addresses, shapes)
        return True

    def _run(self, addresses: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> None:
        plan = self._engine.plan
        if self.profile == 1:
            assert shapes["input_ids"][1] == 1
        given = {
            name: self._memory(addresses[name], shapes[name], binding)
            for name, binding in plan.bindings.items()
            if binding.is_input
        }
        for name, result in self._engine.plan.interpreter.run(given).items():
            binding = plan.bindings[name]
            if binding.alias is not None:
                assert addresses[name] == addresses[binding.alias]
            self._memory(addresses[name], result.shape, binding)[...] = result

    def _memory(self, address: int, shape: tuple[int, ...], binding: Binding) -> Array:
        kind = np.dtype(binding.dtype)
        size = int(np.prod(shape)) * kind.itemsize
        self._engine.cuda.check(address, size)
        block: Any = (ctypes.c_char * size).from_address(address)
        return np.ndarray(shape, kind, buffer=block)


class FakeEngine:
    """A deserialised engine."""

    def __init__(self, cuda: HostCuda, plan: InterpretedPlan) -> None:
        self.cuda, self.plan = cuda, plan
        self._names = list(plan.bindings)
        self.num_io_tensors = len(self._names)

    def create_execution_context(self) -> FakeContext:
        return FakeContext(self)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if self.plan.bindings[name].is_input else "out"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.plan.bindings[name].shape

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self.plan.bindings[name].dtype)

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self.plan.bindings[name].alias


def fake_tensorrt(cuda: HostCuda, plan: InterpretedPlan) -> Any:
    """The package: whatever bytes it is given, it makes this plan of them."""
    logger = type("Logger", (), {"WARNING": 1, "__init__": lambda self, level: None})
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: FakeEngine(cuda, plan))
    return SimpleNamespace(
        DataType=DataType,
        TensorIOMode=SimpleNamespace(INPUT="in"),
        Logger=logger,
        Runtime=lambda logger: runtime,
        IExecutionContext=FakeContext,
    )


CONTRACT = GraphContract(
    layers=2, kv_heads=3, head_dim=8, hidden=24, vocab=50, capacity=11, prompts="input"
)
HOME = Path(__file__).parents[2]


def host_cuda(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    fake = HostCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    return fake


def prefix(length: int, seed: int = 0) -> np.ndarray:
    shape = (CONTRACT.layers, 2, CONTRACT.kv_heads, length, CONTRACT.head_dim)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_caches_on_a_gpu_do_what_caches_here_do(
    monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    host_cuda(monkeypatch)
    cuda = Cuda()
    both = CudaCaches(cuda, CONTRACT, 4, dtype), HostCaches(CONTRACT, 4, kind)
    for caches in both:
        for row, length in enumerate((3, 7, 1, 9)):
            caches.place(row, prefix(length, row))
        caches.copy(1, 0, 6)
        caches.copy(3, 2, 6)

    ours, theirs = (caches.read(0, 6) for caches in both)

    np.testing.assert_array_equal(ours, theirs)
    assert np.abs(ours).max() > 1
    on_gpu, on_host = both
    for index in range(4):
        for row in range(3):
            offset = on_gpu.address(index, row) - on_gpu.address(index, 0)
            assert offset == on_host.address(index, row) - on_host.address(index, 0)

    for caches in both:
        caches.clear([2])
        caches.copy(1, 0, 6)
        assert np.abs(caches.read(0, 6)).max() > 1
        caches.clear([0])
        assert not caches.read(0, 6).any()


def test_bfloat16_rounds_as_ml_dtypes_does() -> None:
    import ml_dtypes

    numbers = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    numbers = np.concatenate([numbers, np.asarray([0.0, -0.0, 1.0, 1.00390625, 3e38], np.float32)])

    bits = stored(numbers, "bfloat16")

    np.testing.assert_array_equal(bits, numbers.astype(ml_dtypes.bfloat16).view(np.uint16))
    np.testing.assert_array_equal(
        widened(bits, "bfloat16"), numbers.astype(ml_dtypes.bfloat16).astype(np.float32)
    )


@pytest.mark.parametrize(
    ("family", "dtype", "captures"),
    [
        ("llama", "float32", True),
        ("llama", "float16", True),
        ("llama", "bfloat16", True),
        ("gpt2", "float16", True),
        ("gpt2", "float32", False),
    ],
)
def test_on_the_gpu_that_is_host_memory_steps_are_those_of_the_parsed_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, dtype: Any, captures: bool
) -> None:
    """Prompts, steps with and without a captured graph, rows that leave: addresses and numbers."""
    pytest.importorskip(
        "tensorrt_rtx",
        reason="needs tensorrt_rtx (pip install tensorrt-rtx-cu13); without it: "
        "test_caches_on_a_gpu_do_what_caches_here_do",
    )

    base = write_tiny_base(tmp_path / "base", family, blocks=True)
    config = read_decoder_config(base)
    sizes = {n: getattr(config, n) for n in ("layers", "kv_heads", "head_dim", "hidden", "vocab")}
    contract = GraphContract(**sizes, capacity=32, prompts="input")
    options = BuildOptions("none", dtype=dtype, defer_build=True)
    exporter = TensorRtExporter("tensorrt-rtx")
    model = build_decoder(config, contract, load_weights(open_checkpoint(base), config))
    run_passes(model, exporter.passes(PassInputs(config, contract, options)).all)
    constants = {
        str(v.name): v.const_value.numpy()
        for v in model.graph.initializers.values()
        if v.const_value is not None
    }
    exporter.build(model, tmp_path, contract, options)

    def plan() -> InterpretedPlan:
        parsed = parse(tmp_path / "model.onnx", "tensorrt-rtx")
        return InterpretedPlan(parsed, constants, contract, 4)

    fake = host_cuda(monkeypatch)
    fake.refuses_capture = not captures
    cuda = Cuda()
    caches = CudaCaches(cuda, contract, 4, dtype)
    gpu = GpuPlan(fake_tensorrt(fake, plan()), cuda, b"", contract, caches, 4096)
    engines = [TensorRtEngine(each, contract, max_batch=4, dtype=dtype) for each in (gpu, plan())]

    found, expected = (_steps(engine, contract) for engine in engines)

    np.testing.assert_array_equal(found[1], expected[1])
    for ours, theirs in zip(found[0], expected[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert {"cudaStreamBeginCapture", "cudaMemcpy2DAsync"} <= fake.called
    assert ("cudaGraphLaunch" in fake.called) == captures
    assert fake.allocated
    del engines, gpu, caches, cuda
    gc.collect()
    assert not fake.allocated  # what it held is given back


def _steps(engine: Engine, contract: GraphContract) -> tuple[list[np.ndarray], np.ndarray]:
    generator = np.random.default_rng(0)
    shape = (contract.layers, 2, contract.kv_heads, 4, contract.head_dim)
    prompts = [
        SimpleNamespace(
            rows=generator.normal(size=(3, contract.hidden)).astype(np.float32),
            prefix_kv=None if row else generator.normal(size=shape).astype(np.float32),
            task_id=0,
        )
        for row in range(3)
    ]
    batch = Batch(engine)
    seen: list[np.ndarray] = []

    def feed(ids: dict[int, np.ndarray]) -> None:
        seen.extend(output.logits.copy() for output in batch.feed(ids).values())

    for row, prompt in enumerate(prompts):
        batch.admit(row, prompt)
    ids = generator.integers(0, contract.vocab, (3, 6))
    ids[1, 2] = contract.vocab + 1  # a virtual token
    feed({row: ids[row, :length] for row, length in enumerate((6, 4, 5))})
    for step in range(8):
        if step == 4:
            batch.retire([1])
            feed({2: ids[0, :1]})  # which moves to its place
            batch.admit(1, prompts[1])  # and another one comes in
            feed({1: ids[1]})
        ids = generator.integers(0, contract.vocab, (3, 6))
        feed({row: ids[row, :1] for row in range(3)})
    feed({row: np.asarray([contract.vocab]) for row in range(3)})  # not a token step: it is virtual
    return seen, batch.cached(1, 9)


RECORD = PlanRecord(
    flavour="tensorrt-rtx",
    version="1.7.1",
    compute_capabilities=("8.6", "8.9"),
    ranks=1,
    max_batch=16,
    capacity=64,
    profiles=("prompt", "token"),
    attention="mask",
    onnx="",
    seconds=1.0,
    plan_bytes=1,
    peak_memory_bytes=1,
)


def test_a_plan_runs_on_what_built_it() -> None:
    check_package(RECORD, "tensorrt-rtx", "1.7.1")
    for target, version in (("tensorrt-rtx", "1.8.0"), ("tensorrt", "1.7.1")):
        said = rf"tensorrt-rtx 1\.7\.1; expected {target} {version}, which.*plc build"
        with pytest.raises(ArtifactError, match=said):
            check_package(RECORD, target, version)


@pytest.mark.parametrize(
    ("flavour", "built_for", "runs", "refused"),
    [
        ("tensorrt-rtx", ("8.6", "8.9"), ["8.6", "8.9"], ["12.0", "7.5"]),
        ("tensorrt-rtx", (), ["8.0", "8.6", "8.9", "12.0", "12.1"], ["7.5", "9.0", "10.0"]),
        ("tensorrt", ("9.0",), ["9.0"], ["8.9"]),
    ],
)
def test_a_plan_runs_on_the_gpus_it_was_built_for(
    flavour: str, built_for: tuple[str, ...], runs: list[str], refused: list[str]
) -> None:
    record = replace(RECORD, flavour=flavour, compute_capabilities=built_for)
    for capability in runs:
        check_gpu(record, capability)
    for capability in refused:
        with pytest.raises(ArtifactError, match=f"expected {capability}, which is here.*plc build"):
            check_gpu(record, capability)


def test_what_is_asked_of_cuda_is_there_under_its_name() -> None:
    """Every name that is called or read, in NVIDIA's own package."""
    api = pytest.importorskip(
        "cuda.bindings.runtime",
        reason="needs cuda-bindings; on a stand-in: test_caches_on_a_gpu_do_what_caches_here_do",
    )
    names: set[str] = set()
    files = (
        "runtime/engines/tensorrt/cuda.py",
        "runtime/engines/tensorrt/gpu_plan.py",
        "benchmarks/gpu_parts/cuda.py",
    )
    for file in files:
        tree = ast.parse((HOME / file).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
            elif isinstance(node, ast.Attribute):
                names.add(node.attr)
    asked = {name for name in names if name.startswith("cuda") and name[4:5].isupper()}
    assert len(asked) > 15
    enums = [api.cudaMemcpyKind, api.cudaDeviceAttr, api.cudaStreamCaptureMode]
    missing = {n for n in asked if not hasattr(api, n) and not any(hasattr(e, n) for e in enums)}
    assert not missing


def test_an_nccl_that_does_not_work_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**ranks: int) -> None:
        raise OSError('Failure finding "libnccl.so.2"\nand more')

    package = SimpleNamespace(
        get_unique_id=missing,
        UniqueId=SimpleNamespace(from_bytes=lambda shared: shared),
        Communicator=SimpleNamespace(init=missing),
    )
    monkeypatch.setitem(sys.modules, "nccl.core", package)

    with pytest.raises(RankError, match=r'starting NCCL: Failure finding "libnccl\.so\.2"\. '):
        unique_id()
    with pytest.raises(RankError, match=r"joining 2 ranks as rank 1 by NCCL: .*plc doctor"):
        communicator_of(1, 2, b"")


def test_what_is_asked_of_nccl_is_there_under_its_name() -> None:
    nccl = pytest.importorskip(
        "nccl.core",
        reason="needs nccl4py; on a stand-in: test_an_nccl_that_does_not_work_is_told_in_a_line",
    )
    parameters = inspect.signature(nccl.Communicator.init).parameters

    assert {"nranks", "rank", "unique_id"} <= set(parameters)
    assert callable(nccl.get_unique_id)
    assert callable(nccl.UniqueId.from_bytes)
    assert hasattr(nccl.UniqueId, "__bytes__") or hasattr(nccl.UniqueId, "as_bytes")
    assert hasattr(nccl.Communicator, "ptr")


def test_what_is_asked_of_tensorrt_is_there_under_its_name() -> None:
    trt = pytest.importorskip(
        "tensorrt_rtx",
        reason="needs tensorrt_rtx; on a stand-in: test_a_plan_runs_on_what_built_it",
    )
    for owner, names in {
        trt.Runtime: ["deserialize_cuda_engine"],
        trt.ICudaEngine: [
            "create_execution_context",
            "num_io_tensors",
            "get_tensor_name",
            "get_tensor_mode",
            "get_tensor_shape",
            "get_tensor_dtype",
            "get_aliased_input_tensor",
        ],
        trt.IExecutionContext: [
            "set_optimization_profile_async",
            "set_communicator",
            "set_input_shape",
            "set_tensor_address",
            "execute_async_v3",
        ],
    }.items():
        assert [name for name in names if not hasattr(owner, name)] == []


def test_an_error_of_cuda_says_which_call_and_what_cuda_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing = SimpleNamespace(
        cudaSetDevice=lambda device: (35,),
        cudaGetErrorString=lambda error: (0, b"CUDA driver version is insufficient"),
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", failing)

    with pytest.raises(ArtifactError, match="looking for NVIDIA's GPU 0: CUDA driver version"):
        Cuda()
