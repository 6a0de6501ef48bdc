"""The engine on ONNX Runtime: caches in the provider's memory, bound in place.

Input and output of each cache are the same memory, so a step writes only its own tokens. Bindings
are made again only when the number of rows or tokens changes. With a provider for a GPU, caches lie
in its memory; that was never run by this project.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from pl_compile.config.contract import LOGITS, NEXT_TOKEN, GraphContract
from pl_compile.errors import ArtifactError, first_line_of
from pl_compile.runtime import kernels
from pl_compile.runtime.engines.caches import Caches, HostCaches, place_prefix
from pl_compile.runtime.engines.engine import Logits, OfRows, PrefixKv, Prompt, Step
from pl_compile.runtime.engines.memory import zeros_as_touched
from pl_compile.runtime.engines.onnxruntime.providers import CPU, Provider, check_used, choose
from pl_compile.runtime.engines.step_inputs import step_inputs
from pl_compile.shapes import Float32, Shape

# ONNX Runtime's Linux builds report usage by default since 1.29. The choice is latched when the
# library loads, and its documents name both variables.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("ORT_TELEMETRY_DISABLED", "1")

_CPU = ("cpu", 0)

# ONNX's numbers for the types of caches: ONNX Runtime takes them for types that numpy lacks.
ELEMENTS = {"float32": 1, "float16": 10, "bfloat16": 16}

# What ONNX Runtime calls the types of a contract.
_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "bfloat16": "tensor(bfloat16)",
    "int64": "tensor(int64)",
}


def available_providers() -> list[str]:
    """The execution providers of the installed ONNX Runtime."""
    import onnxruntime

    providers: list[str] = onnxruntime.get_available_providers()
    return providers


class OnnxRuntimeEngine:
    """ONNX Runtime, on CPU or any of its providers.

    Args:
        model: the `model.onnx` of a bundle; its data file lies beside it.
        contract: what the graph takes and gives.
        max_batch: slots of the cache. Memory is taken as rows are used.
        threads: intra-op threads; all cores if None.
        watched: further outputs of the graph to be read after a step: float, of any shape.
        provider: what runs it.
        dtype: of the caches: `Precision.dtype`.
        spin: whether threads that wait for work keep their cores busy; ranks that share cores
            should not.

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
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        if not spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # For every target: a graph's operators say what it needs, and that of a rank needs our sums
        # whatever its target is. Where a graph has none of ours, this changes nothing.
        kernels.register(options)
        providers = choose(onnxruntime, options, provider)
        path = _utf8(model)
        try:
            # No fallback: it would print the error and try another provider.
            self._session: Any = onnxruntime.InferenceSession(
                path, options, providers=providers, enable_fallback=0
            )
        except Exception as error:  # the library's errors have no common base class
            # Names in a damaged graph may not be UTF-8; then its error has no text.
            said = "" if isinstance(error, UnicodeDecodeError) else str(error).strip()
            raise ArtifactError(
                f"loading {model}",
                found=said.partition("\n")[0] or "a graph that ONNX Runtime cannot read",
                fix="Export the bundle again with this version of onnxruntime.",
            ) from error
        check_used(self._session, provider, model)
        _check_graph(self._session, contract, dtype, model, watched)
        self.capacity = contract.capacity
        self.vocab = contract.vocab
        self.max_batch = max_batch
        self.candidates = contract.candidates
        self.sampling_inputs = contract.sampling_inputs
        self._contract = contract
        self._model = model
        self._place = (provider.device, provider.device_id)
        self._element = ELEMENTS[dtype]
        self._caches = _new_caches(provider, contract, max_batch, dtype)
        self._binding: Any = self._session.io_binding()
        self._watched = tuple(watched)
        self._bound = (0, 0)
        self._inputs: dict[str, Any] = {}
        self._logits = zeros_as_touched((max_batch, contract.vocab), np.float32)
        self._next_token = zeros_as_touched((max_batch,), np.int64)

    def admit(self, slot: int, prompt: Prompt) -> int:
        """Copies the prefix into the cache; see `Engine.admit`."""
        assert slot < self.max_batch
        return place_prefix(self._caches, slot, prompt, self.capacity)

    def step(self, step: Step) -> tuple[Logits, OfRows | None]:
        """One step; see `Engine.step`.

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
            self._bind_input(name, array)
        self._bind_rows(step.first, len(step.input_ids))
        for name in self._watched:
            self._binding.bind_output(name)  # bound anew: its shape follows the step's
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # the library's errors have no common base class
            raise ArtifactError(
                f"running {self._model}",
                found=first_line_of(error),
                fix="Export the bundle again with this version of onnxruntime.",
            ) from error

    def keep(self, slots: Sequence[int], entries: int) -> None:
        """Moves and copies slots; see `Engine.keep`."""
        self._caches.keep(slots, entries)

    def clear(self, slots: Sequence[int]) -> None:
        """See `Engine.clear`."""
        self._caches.clear(slots)

    def cached(self, slot: int, length: int) -> PrefixKv:
        """See `Engine.cached`."""
        return self._caches.read(slot, length)

    def close(self) -> None:
        """Nothing: all that it holds is memory, which goes with the object."""

    def watched(self) -> list[tuple[str, Annotated[Float32, Shape("...")]]]:
        """The watched outputs of the last step, by name."""
        # They were bound after all other outputs.
        found = self._binding.get_outputs()[-len(self._watched) :] if self._watched else []
        return [(name, value.numpy()) for name, value in zip(self._watched, found, strict=True)]

    def _bind_input(self, name: str, array: Any) -> None:
        self._inputs[name] = array  # the binding holds an address, not the array
        self._binding.bind_input(name, *_CPU, array.dtype, array.shape, array.ctypes.data)

    def _bind_rows(self, start: int, count: int) -> None:
        """Binds the memory of some rows: caches, logits, tokens."""
        if (start, count) == self._bound:
            return
        self._bound = (start, count)

        def bind_output(name: str, memory: Any) -> None:
            rows = memory[start : start + count]
            self._binding.bind_output(name, *_CPU, rows.dtype, rows.shape, rows.ctypes.data)

        c = self._contract
        shape = (count, c.kv_heads, c.capacity, c.head_dim)
        for index, (past, present) in enumerate(c.cache_names):
            where = (*self._place, self._element, shape, self._caches.address(index, start))
            self._binding.bind_input(past, *where)
            self._binding.bind_output(present, *where)
        bind_output(LOGITS, self._logits)
        if self.candidates:
            bind_output(NEXT_TOKEN, self._next_token)


def _utf8(path: Path) -> str:
    """A path in UTF-8 for ONNX Runtime, whatever encoding Python uses for paths (`LC_ALL=C`)."""
    try:
        return os.fsencode(path).decode("utf-8")
    except UnicodeError:
        raise ArtifactError(
            f"loading {path}",
            found="a path that is not UTF-8",
            fix="ONNX Runtime takes no other path: rename the folder.",
        ) from None


def _new_caches(provider: Provider, contract: GraphContract, max_batch: int, dtype: str) -> Caches:
    if provider.device == "cuda":
        from pl_compile.runtime.engines.tensorrt.cuda import Cuda, CudaCaches

        return CudaCaches(Cuda(provider.device_id), contract, max_batch, dtype)
    return HostCaches(contract, max_batch, np.dtype(dtype))


def _check_graph(
    session: Any, contract: GraphContract, dtype: str, model: Path, watched: Sequence[str]
) -> None:
    """Raises `ArtifactError` unless the graph has the inputs and outputs that the contract says."""
    expected = {
        name: f"{_TYPES[tensor.dtype]} {list(tensor.shape)}"
        for name, tensor in contract.tensors(dtype).items()
    }
    values = [*session.get_inputs(), *session.get_outputs()]
    found = {
        value.name: f"{value.type} {value.shape}" for value in values if value.name not in watched
    }
    if found != expected:
        differing = sorted(
            name for name in {*found, *expected} if found.get(name) != expected.get(name)
        )
        raise ArtifactError(
            f"matching {model} with the manifest",
            found=f"'{differing[0]}' {found.get(differing[0], 'is not there')}",
            expected=expected.get(differing[0], "no such name"),
            fix="The manifest was altered: export the bundle again.",
        )
