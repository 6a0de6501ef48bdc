# ruff: noqa: N802 - CUDA's own names
"""A stand-in for a GPU in host memory, for tests and for trying things out.

It is stricter than a GPU: use of memory that was not allocated, and copies within a capture, are
errors.
"""

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from pl_compile.config.contract import ALIGNED

# The only stream there is.
STREAM = 77


class HostCuda:
    """`cuda.bindings.runtime` on host memory.

    Attributes:
        called: names of the functions that were called.
        captured: steps of the capture that is running; None outside of a capture.
        refuses_capture: whether every capture fails.
    """

    def __init__(self) -> None:
        self.refuses_capture = False
        self.called: set[str] = set()
        self.captured: list[Callable[[], None]] | None = None
        self._blocks: dict[int, memoryview] = {}
        self.cudaMemcpyKind = SimpleNamespace(
            cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
        )
        self.cudaDeviceAttr = SimpleNamespace(
            cudaDevAttrComputeCapabilityMajor=8, cudaDevAttrComputeCapabilityMinor=9
        )
        self.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __getattr__(self, name: str) -> Any:
        function = getattr(type(self), f"_{name}", None)
        if function is None:
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.called.add(name)
            result = function(self, *arguments)
            return (0,) if result is None else (0, result)

        return call

    @property
    def allocated(self) -> int:
        """How many pieces of memory were allocated and not freed."""
        return len(self._blocks)

    def check(self, address: int, size: int) -> None:
        """Raises unless memory was allocated there."""
        for start, block in self._blocks.items():
            if start <= address and address + size <= start + len(block):
                return
        raise AssertionError(f"{size} bytes at {address} were not allocated")

    def _cudaSetDevice(self, device: int) -> None:
        assert device == 0

    def _cudaStreamCreate(self) -> int:
        return STREAM

    def _cudaDeviceGetAttribute(self, kind: int, device: int) -> int:
        return kind  # 8.9

    def _cudaMalloc(self, size: int) -> int:
        block = ctypes.create_string_buffer(size + ALIGNED)
        offset = -ctypes.addressof(block) % ALIGNED  # CUDA aligns what it gives
        self._blocks[ctypes.addressof(block) + offset] = memoryview(block)[offset : offset + size]
        address = ctypes.addressof(block) + offset
        ctypes.memset(address, 0xFF, size)  # memory that was not written to reads as NaN
        return address

    def _cudaFree(self, address: int) -> None:
        del self._blocks[address]

    def _cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> None:
        self.check(address, size)
        ctypes.memset(address, value, size)

    def _cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        assert stream == STREAM
        assert self.captured is None
        self.check(to if kind == 1 else source, size)
        ctypes.memmove(to, source, size)

    def _cudaMemcpy2DAsync(
        self,
        to: int,
        pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        height: int,
        kind: int,
        stream: int,
    ) -> None:
        assert width <= pitch
        assert width <= source_pitch
        for row in range(height):
            self._cudaMemcpyAsync(
                to + row * pitch, source + row * source_pitch, width, kind, stream
            )

    def _cudaStreamSynchronize(self, stream: int) -> None:
        assert self.captured is None

    def _cudaStreamBeginCapture(self, stream: int, mode: int) -> None:
        assert self.captured is None
        self.captured = []

    def _cudaStreamEndCapture(self, stream: int) -> list[Callable[[], None]]:
        assert self.captured is not None
        steps, self.captured = self.captured, None
        return steps

    def _cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        return graph

    def _cudaGraphDestroy(self, graph: Any) -> None:
        pass

    def _cudaGraphExecDestroy(self, graph: Any) -> None:
        pass

    def _cudaGetErrorString(self, error: int) -> bytes:
        return b"no error"

    def _cudaGraphLaunch(self, graph: Any, stream: int) -> None:
        for step in graph:
            step()
