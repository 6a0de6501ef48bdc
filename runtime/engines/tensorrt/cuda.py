"""Memory, streams and graphs of a GPU, through NVIDIA's `cuda-bindings`.

Written to CUDA's documented interface. This project, which had no GPU, never ran it; a test
compares the names that are used here with those of the package.
"""

import importlib
import weakref
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from pl_compile.config.contract import BYTES, GraphContract
from pl_compile.errors import ArtifactError, MissingExtraError
from pl_compile.runtime.engines.engine import PrefixKv
from pl_compile.shapes import Float32, Shape

AnyArray = Annotated[NDArray[Any], Shape("...")]


class Cuda:
    """A GPU: calls that raise where CUDA's return an error.

    Args:
        device: its number.

    Raises:
        MissingExtraError: `cuda-bindings` is not installed.
        ArtifactError: there is no driver, or no such GPU.
    """

    def __init__(self, device: int = 0) -> None:
        try:
            self.api: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise MissingExtraError("using a GPU", package="cuda-bindings", extra="gpu") from error
        self.device = device
        try:
            self.call("cudaSetDevice", device)
        except ArtifactError as error:
            raise ArtifactError(
                f"looking for NVIDIA's GPU {device}",
                found=error.found,
                expected="a GPU with its driver",
                fix="See plc doctor. plc verify checks a bundle for TensorRT without a GPU.",
            ) from error
        self.stream = self.call("cudaStreamCreate")
        self._held: set[int] = set()
        # Its memory is freed with this object; at the end of the process the driver frees all.
        weakref.finalize(self, _release, self.api, self._held).atexit = False

    def call(self, name: str, *arguments: Any) -> Any:
        """A function of CUDA's runtime; its result without the error code.

        Raises:
            ArtifactError: CUDA says that it failed.
        """
        try:
            error, *results = getattr(self.api, name)(*arguments)
        except RuntimeError as missing:  # the bindings do not find CUDA's library
            raise ArtifactError(
                f"calling {name}", found=str(missing), fix="Install NVIDIA's driver and CUDA."
            ) from missing
        if int(error) != 0:
            _, text = self.api.cudaGetErrorString(error)
            text = text.decode() if isinstance(text, bytes) else str(text)
            raise ArtifactError(
                f"calling {name}", found=text, fix="See plc doctor, and nvidia-smi."
            )
        return results[0] if results else None

    @property
    def compute_capability(self) -> str:
        """The GPU's compute capability, such as "8.9"."""
        kinds = self.api.cudaDeviceAttr
        parts = [
            self.call("cudaDeviceGetAttribute", kind, self.device)
            for kind in (
                kinds.cudaDevAttrComputeCapabilityMajor,
                kinds.cudaDevAttrComputeCapabilityMinor,
            )
        ]
        return ".".join(str(int(part)) for part in parts)

    def allocate(self, size: int) -> int:
        """Takes memory and sets it to zero; returns its address."""
        address = int(self.call("cudaMalloc", size))
        self._held.add(address)
        self.zero(address, size)
        return address

    def zero(self, address: int, size: int) -> None:
        """Sets bytes to zero."""
        self.call("cudaMemsetAsync", address, 0, size, self.stream)

    def free(self, address: int) -> None:
        """Frees memory."""
        self._held.discard(address)
        self.call("cudaFree", address)

    def upload(self, address: int, array: AnyArray) -> None:
        """Copies a contiguous array to the GPU; after the call the array may change."""
        kind = self.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, array: AnyArray, address: int) -> None:
        """Copies from the GPU into a contiguous array, and waits for it."""
        kind = self.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)
        self.wait()

    def copy_rows(
        self, to: int, pitch: int, source: int, source_pitch: int, width: int, count: int, kind: Any
    ) -> None:
        """Copies `count` pieces of `width` bytes, each a pitch after the one before."""
        self.call(
            "cudaMemcpy2DAsync", to, pitch, source, source_pitch, width, count, kind, self.stream
        )

    def wait(self) -> None:
        """Waits for all calls that were begun."""
        self.call("cudaStreamSynchronize", self.stream)


def _release(api: Any, held: set[int]) -> None:
    for address in held:
        api.cudaFree(address)


class CudaCaches:
    """`Caches` in a GPU's memory.

    Args:
        cuda: the GPU.
        contract: of the graph, or of the rank's.
        max_batch: slots.
        dtype: "float32", "float16" or "bfloat16".
    """

    def __init__(self, cuda: Cuda, contract: GraphContract, max_batch: int, dtype: str) -> None:
        self._cuda, self._contract, self._dtype = cuda, contract, dtype
        self._entry = contract.head_dim * BYTES[dtype]
        self._head = contract.capacity * self._entry
        self._slot = contract.kv_heads * self._head
        self.addresses = [cuda.allocate(max_batch * self._slot) for _ in contract.cache_names]
        cuda.wait()  # a reader may use another stream

    def place(self, slot: int, prefix_kv: PrefixKv) -> None:
        """See `Caches.place`."""
        kind = self._cuda.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        parts = stored(prefix_kv.reshape(-1, *prefix_kv.shape[2:]), self._dtype)
        width = parts.shape[2] * self._entry
        for index, part in enumerate(parts):
            to = self.address(index, slot)
            self._cuda.copy_rows(
                to, self._head, part.ctypes.data, width, width, self._contract.kv_heads, kind
            )
        self._cuda.wait()  # the arrays are freed when this returns

    def copy(self, source: int, target: int, entries: int) -> None:
        """See `Caches.copy`."""
        kind = self._cuda.api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        heads, width = self._contract.kv_heads, entries * self._entry
        for index in range(len(self.addresses)):
            to, begin = self.address(index, target), self.address(index, source)
            self._cuda.copy_rows(to, self._head, begin, self._head, width, heads, kind)
        self._cuda.wait()

    def clear(self, slots: Sequence[int]) -> None:
        """See `Caches.clear`."""
        for slot in slots:
            for index in range(len(self.addresses)):
                self._cuda.zero(self.address(index, slot), self._slot)
        self._cuda.wait()

    def read(self, slot: int, length: int) -> PrefixKv:
        """See `Caches.read`."""
        c, kind = self._contract, self._cuda.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        shape = (len(self.addresses), c.kv_heads, length, c.head_dim)
        parts = np.empty(shape, stored(np.zeros(1, np.float32), self._dtype).dtype)
        width = length * self._entry
        for index, part in enumerate(parts):
            source = self.address(index, slot)
            self._cuda.copy_rows(
                part.ctypes.data, width, source, self._head, width, c.kv_heads, kind
            )
        self._cuda.wait()
        wide = widened(parts, self._dtype)
        return wide.reshape(c.layers, 2, c.kv_heads, length, c.head_dim)

    def address(self, index: int, slot: int) -> int:
        """See `Caches.address`."""
        return self.addresses[index] + slot * self._slot


def stored(array: Annotated[Float32, Shape("...")], dtype: str) -> AnyArray:
    """float32 as a cache stores it; bfloat16, which numpy lacks, as its bits in uint16."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(array).view(np.uint32)
        # Rounds to the nearest, ties to even.
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.ascontiguousarray(array.astype(dtype))


def widened(array: AnyArray, dtype: str) -> Annotated[Float32, Shape("...")]:
    """The reverse of `stored`: float32 again."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)
