"""`runtime/engines/tensorrt/cuda.py` alone: memory, caches, a stream, and a captured graph.

The captured work is torch's. Without a GPU all of it runs in host memory.
"""

import sys
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from gpu_parts.report import Job, Report, median_seconds
from pl_compile.config.contract import BYTES, GraphContract
from pl_compile.runtime.engines.caches import HostCaches
from pl_compile.runtime.engines.tensorrt.cuda import Cuda, CudaCaches
from pl_compile.testing_cuda import HostCuda

CONTRACT = GraphContract(
    layers=2, kv_heads=3, head_dim=8, hidden=24, vocab=50, capacity=11, prompts="input"
)


def run(report: Report, job: Job) -> None:
    """The part."""
    host = None if job.on_gpu else HostCuda()
    if host is not None:
        sys.modules["cuda.bindings.runtime"] = host  # type: ignore[assignment]
    cuda = Cuda()
    report.figure("compute capability", cuda.compute_capability)
    _memory(report, cuda)
    for dtype in BYTES:
        with report.trying(f"caches of {dtype}"):
            _caches(report, cuda, dtype)
    work: Work = TorchWork(cuda) if host is None else HostWork(cuda, host)
    with report.trying("graph"):
        _graph(report, job, cuda, work)


def _memory(report: Report, cuda: Cuda) -> None:
    size = 1 << 20
    address = cuda.allocate(size)
    found = np.ones(size, np.uint8)
    cuda.download(found, address)
    report.at_most("bytes of new memory that are not 0", int((found != 0).sum()), 0)
    given = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    cuda.upload(address, given)
    cuda.download(found, address)
    report.at_most("bytes that an upload and a download change", int((found != given).sum()), 0)
    cuda.free(address)


def _caches(report: Report, cuda: Cuda, dtype: str) -> None:
    """Makes the same calls on caches of the GPU and of the host."""
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    both = CudaCaches(cuda, CONTRACT, 4, dtype), HostCaches(CONTRACT, 4, kind)
    generator = np.random.default_rng(0)
    for row, length in enumerate((3, 7, 1, 9)):
        shape = (CONTRACT.layers, 2, CONTRACT.kv_heads, length, CONTRACT.head_dim)
        prefix = generator.normal(size=shape).astype(np.float32)
        for caches in both:
            caches.place(row, prefix)
    differing = 0
    for change in (lambda c: None, lambda c: c.copy(3, 0, 6), lambda c: c.clear([0])):
        for caches in both:
            change(caches)
        ours, theirs = (caches.read(0, 7) for caches in both)
        differing += int((ours != theirs).sum())
    report.at_most(f"caches of {dtype}: numbers that differ from the host's", differing, 0)


class Work(Protocol):
    """Work on a stream that a graph can hold: it adds 1 to some numbers."""

    def enqueue(self) -> None:
        """Puts it on the stream."""

    def set(self, value: float) -> None:
        """Sets all numbers to a value, and waits."""

    def get(self) -> float:
        """The mean of the numbers."""


class TorchWork:
    """On a GPU, by torch, on the stream of a `Cuda`."""

    def __init__(self, cuda: Cuda) -> None:
        import torch

        self._cuda = cuda
        stream: Any = torch.cuda.ExternalStream
        self._stream = stream(int(cuda.stream))
        self._numbers = torch.zeros(1000, device="cuda")

    def enqueue(self) -> None:
        """See `Work.enqueue`."""
        import torch

        with torch.cuda.stream(self._stream):
            torch.add(self._numbers, 1, out=self._numbers)  # no allocation: a graph cannot hold one

    def set(self, value: float) -> None:
        """See `Work.set`."""
        import torch

        self._numbers.fill_(value)
        torch.cuda.synchronize()

    def get(self) -> float:
        """See `Work.get`."""
        self._cuda.wait()
        return float(self._numbers.double().mean())


class HostWork:
    """On host memory."""

    def __init__(self, cuda: Cuda, host: HostCuda) -> None:
        self._host = host
        self._numbers = np.zeros(1000)

    def enqueue(self) -> None:
        """See `Work.enqueue`."""

        def add() -> None:
            self._numbers += 1

        captured: list[Callable[[], None]] | None = self._host.captured
        if captured is None:
            add()
        else:
            captured.append(add)

    def set(self, value: float) -> None:
        """See `Work.set`."""
        self._numbers[:] = value

    def get(self) -> float:
        """See `Work.get`."""
        return float(self._numbers.mean())


def _graph(report: Report, job: Job, cuda: Cuda, work: Work) -> None:
    work.enqueue()  # the work must have run once before it is captured
    cuda.wait()
    mode = cuda.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    cuda.call("cudaStreamBeginCapture", cuda.stream, mode)
    for _ in range(3):
        work.enqueue()
    graph = cuda.call("cudaStreamEndCapture", cuda.stream)
    captured: Any = cuda.call("cudaGraphInstantiate", graph, 0)
    cuda.call("cudaGraphDestroy", graph)
    found = work.get()
    report.expect("numbers after a capture, which runs nothing", found, "1", found == 1)
    work.set(10)
    for _ in range(2):
        cuda.call("cudaGraphLaunch", captured, cuda.stream)
    cuda.wait()
    found = work.get()
    report.expect("numbers after two launches of three additions", found, "16", found == 16)
    repeats = 200 if job.on_gpu else 3
    launch = lambda: cuda.call("cudaGraphLaunch", captured, cuda.stream)  # noqa: E731
    report.figure("launch of a graph: s", median_seconds(launch, repeats, cuda.wait))
    cuda.call("cudaGraphExecDestroy", captured)
