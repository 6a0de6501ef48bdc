"""The engine on ONNX Runtime for padded rows: caches in the provider's memory, bound in place.

Input and output of each cache are the same memory, so a step writes only its own tokens. Bindings
are made again only when the number of rows or tokens changes. With a provider for a GPU, caches lie
in its memory; that was never run by this project.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from pl_compile.config.contract import LOGITS, NEXT_TOKEN, GraphContract
from pl_compile.runtime.engines.caches import Caches, HostCaches, place_prefix
from pl_compile.runtime.engines.engine import Logits, PrefixKv, Prompt
from pl_compile.runtime.engines.memory import zeros_as_touched
from pl_compile.runtime.engines.onnxruntime.graph import OnnxGraph
from pl_compile.runtime.engines.onnxruntime.providers import CPU, Provider
from pl_compile.runtime.engines.padded import OfRows, PaddedEngine, Step
from pl_compile.runtime.engines.step_inputs import step_inputs
from pl_compile.shapes import Float32, Shape

# ONNX's numbers for the types of caches: ONNX Runtime takes them for types that numpy lacks.
ELEMENTS = {"float32": 1, "float16": 10, "bfloat16": 16}


class OnnxRuntimeEngine(PaddedEngine):
    """ONNX Runtime, on CPU or any of its providers.

    Args:
        model: the `model.onnx` of a bundle; its data file lies beside it.
        contract: what the graph takes and gives.
        max_batch: slots of the cache. Memory is taken as rows are used.
        threads, watched, provider, spin: see `OnnxGraph`. Ranks that share cores should not spin.
        dtype: of the caches: `Precision.dtype`.

    Raises:
        ArtifactError: ONNX Runtime cannot load the model, or has no such provider.
        MissingExtraError: the provider is for a GPU, and no package is there that reaches its
            memory.
    """

    def __init__(
        self,
        model: Path,
        contract: GraphContract,
        *,
        max_batch: int = 16,
        threads: int | None = None,
        watched: Sequence[str] = (),
        provider: Provider = CPU,
        dtype: str = "float32",
        spin: bool = True,
    ) -> None:
        self._graph = OnnxGraph(
            model, contract, provider, dtype, threads=threads, spin=spin, watched=watched
        )
        self.capacity = contract.capacity
        self.vocab = contract.vocab
        self.max_batch = max_batch
        self.candidates = contract.candidates
        self.sampling_inputs = contract.sampling_inputs
        self._contract = contract
        self._place = (provider.device, provider.device_id)
        self._element = ELEMENTS[dtype]
        self._caches = _new_caches(provider, contract, max_batch, dtype)
        self._bound = (0, 0)
        self._logits = zeros_as_touched((max_batch, contract.vocab), np.float32)
        self._next_token = zeros_as_touched((max_batch,), np.int64)

    def admit(self, slot: int, prompt: Prompt) -> int:
        """Copies the prefix into the cache; see `PaddedEngine.admit`."""
        assert slot < self.max_batch
        return place_prefix(self._caches, slot, prompt, self.capacity)

    def step(self, step: Step) -> tuple[Logits, OfRows | None]:
        """One step; see `PaddedEngine.step`.

        Rows of several tokens run one at a time (`Step.runs`), since ONNX Runtime's attention takes
        several tokens after a filled cache for one row only. So a row does not depend on the other
        rows.
        """
        assert step.fits(self.capacity, self.max_batch)
        for run in step.runs():
            self._run(run)
        rows = slice(step.first, step.first + len(step.input_ids))
        return self._logits[rows], self._next_token[rows] if self.candidates else None

    def _run(self, step: Step) -> None:
        """One run of the graph."""
        for name, array in step_inputs(self._contract, step).items():
            self._graph.give(name, array)
        self._bind_rows(step.first, len(step.input_ids))
        self._graph.run()

    def copy(self, source: int, target: int, entries: int) -> None:
        """See `PaddedEngine.copy`."""
        self._caches.copy(source, target, entries)

    def clear(self, slots: Sequence[int]) -> None:
        """See `PaddedEngine.clear`."""
        self._caches.clear(slots)

    def cached(self, slot: int, length: int) -> PrefixKv:
        """See `PaddedEngine.cached`."""
        return self._caches.read(slot, length)

    def close(self) -> None:
        """Nothing: all that it holds is memory, which goes with the object."""

    def watched(self) -> list[tuple[str, Annotated[Float32, Shape("...")]]]:
        """The watched outputs of the last step, by name."""
        return self._graph.watched()

    def _bind_rows(self, start: int, count: int) -> None:
        """Binds the memory of some rows: caches, logits, tokens."""
        if (start, count) == self._bound:
            return
        self._bound = (start, count)

        c = self._contract
        shape = (count, c.kv_heads, c.capacity, c.head_dim)
        for index, (past, present) in enumerate(c.cache_names):
            where = (*self._place, self._element, shape, self._caches.address(index, start))
            self._graph.bind_memory(past, where)
            self._graph.binding.bind_output(present, *where)
        rows = slice(start, start + count)
        self._graph.bind_output(LOGITS, self._logits[rows])
        if self.candidates:
            self._graph.bind_output(NEXT_TOKEN, self._next_token[rows])


def _new_caches(provider: Provider, contract: GraphContract, max_batch: int, dtype: str) -> Caches:
    if provider.device == "cuda":
        from pl_compile.runtime.engines.tensorrt.cuda import Cuda, CudaCaches

        return CudaCaches(Cuda(provider.device_id), contract, max_batch, dtype)
    return HostCaches(contract, max_batch, np.dtype(dtype))
