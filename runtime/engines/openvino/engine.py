"""The engine on OpenVINO's CPU plug-in: caches in host memory; a step gets the part that it reads.

A graph of target `openvino` reads the entries that rows have, and gives those that a step adds
(`exporters/openvino/`). This engine writes them into the caches. Its attention joins both in memory
of its own in each step, so nothing would be gained by caches that OpenVINO writes in place.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pl_compile.config.contract import LOGITS, NEXT_TOKEN, GraphContract
from pl_compile.config.targets import TARGETS
from pl_compile.errors import ArtifactError, MissingExtraError, first_line_of
from pl_compile.runtime.engines.caches import HostCaches, place_prefix
from pl_compile.runtime.engines.engine import Logits, PrefixKv, Prompt
from pl_compile.runtime.engines.memory import zeros_as_touched
from pl_compile.runtime.engines.padded import OfRows, PaddedEngine, Step
from pl_compile.runtime.engines.step_inputs import step_inputs

_ROW = TARGETS["openvino"]

# The number of entries that a step reads of its rows is a multiple of this.
_SPAN = 64

# Floats are float32: by default OpenVINO takes bfloat16 where the processor has it.
_OPTIONS: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}

# Activations that share a scale where weights of a few bits are multiplied with activations of 8
# bits, as by `onnx-cpu`. With float activations (0) rows were slower, and their last bits depended
# on the number of rows.
_GROUP = 32

# What OpenVINO says where it has no product of that kind.
_NO_PRODUCT = "could not create a primitive descriptor"


def openvino_module(doing: str) -> Any:
    """The package.

    Args:
        doing: what is being done, for the errors.

    Raises:
        MissingExtraError: it is not installed, or does not load.
        ArtifactError: it is older than this project can use.
    """
    # `import openvino` reports itself to Google Analytics, and writes files for that in the user's
    # home. Where the package that does so cannot be imported, it has a stub for it.
    hides = "openvino_telemetry" not in sys.modules
    if hides:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except (ImportError, OSError) as error:
        raise MissingExtraError(doing, package=_ROW.package, extra=_ROW.extra) from error
    finally:
        if hides:
            del sys.modules["openvino_telemetry"]
    found = str(openvino.__version__).partition("-")[0]
    if _numbers(found) < _numbers(_ROW.oldest):
        raise ArtifactError(
            doing,
            found=f"openvino {found}",
            expected=f"{_ROW.oldest} or newer",
            fix=f"pip install --upgrade 'pl-compile[{_ROW.extra}]'",
        )
    return openvino


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdecimal()]


class OpenVinoEngine(PaddedEngine):
    """OpenVINO on CPU: an engine.

    Args:
        model: the `model.onnx` of a bundle; its data file lies beside it.
        contract: what the base's graph takes and gives.
        max_batch: slots of the cache. Memory is taken as rows are used.
        threads: how many compute; all cores if None.

    Raises:
        ArtifactError: OpenVINO is too old or cannot load the model, or the model has other inputs
            and outputs than the contract says.
        MissingExtraError: OpenVINO is not installed.
    """

    def __init__(
        self,
        model: Path,
        contract: GraphContract,
        *,
        max_batch: int = 16,
        threads: int | None = None,
    ) -> None:
        self._openvino = openvino_module(f"loading {model}")
        self._model = model
        self._request = self._new_request(contract, threads, _GROUP)
        try:
            self._infer(_one_token(contract))
        except ArtifactError as error:
            # Where a processor has AVX2 alone, OpenVINO compiles such products and then finds that
            # it has none: only a run shows it.
            if _NO_PRODUCT not in error.found:
                raise
            self._request = self._new_request(contract, threads, 0)
            self._infer(_one_token(contract))
        self.capacity = contract.capacity
        self.vocab = contract.vocab
        self.max_batch = max_batch
        self.candidates = contract.candidates
        self.sampling_inputs = contract.sampling_inputs
        self._contract = contract
        self._caches = HostCaches(contract, max_batch)
        self._logits = zeros_as_touched((max_batch, contract.vocab), np.float32)
        self._next_token = zeros_as_touched((max_batch,), np.int64)

    def admit(self, slot: int, prompt: Prompt) -> int:
        """Copies the prefix into the cache; see `PaddedEngine.admit`."""
        assert slot < self.max_batch
        return place_prefix(self._caches, slot, prompt, self.capacity)

    def step(self, step: Step) -> tuple[Logits, OfRows | None]:
        """One step; see `PaddedEngine.step`."""
        assert step.fits(self.capacity, self.max_batch)
        for run in step.runs():
            self._run(run)
        rows = slice(step.first, step.first + len(step.input_ids))
        return self._logits[rows], self._next_token[rows] if self.candidates else None

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

    def _new_request(self, contract: GraphContract, threads: int | None, group: int) -> Any:
        compiled = _compile(self._openvino, self._model, threads, group)
        _check_graph(compiled, contract, self._model)
        return compiled.create_infer_request()

    def _run(self, step: Step) -> None:
        """One run of the graph."""
        rows = slice(step.first, step.first + len(step.input_ids))
        self._infer(step_inputs(self._contract, step) | self._pasts(rows, step))
        self._write(rows, step)
        self._logits[rows] = self._request.get_tensor(LOGITS).data
        if self.candidates:
            self._next_token[rows] = self._request.get_tensor(NEXT_TOKEN).data

    def _pasts(self, rows: slice, step: Step) -> dict[str, NDArray[Any]]:
        """The entries of the step's rows, as far as the longest of them reaches."""
        span = -(-max(1, int(step.past_lengths.max())) // _SPAN) * _SPAN
        names = self._contract.added_names
        return {
            past: np.ascontiguousarray(array[rows, :, :span])
            for (past, _), array in zip(names, self._caches.arrays, strict=True)
        }

    def _infer(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        for name, array in inputs.items():
            # Read where it is; `inputs` holds the arrays until the run has ended.
            self._request.set_tensor(name, self._openvino.Tensor(array, shared_memory=True))
        try:
            self._request.infer()
        except RuntimeError as error:
            raise ArtifactError(
                f"running {self._model}",
                found=_last_line_of(error),
                fix="Export the bundle again, or use another version of openvino.",
            ) from error

    def _write(self, rows: slice, step: Step) -> None:
        """Writes what the run has added after each row's entries."""
        places = step.past_lengths[:, None] + np.arange(step.input_ids.shape[1])
        index = (np.arange(len(places))[:, None], slice(None), places)
        for (_, added), array in zip(self._contract.added_names, self._caches.arrays, strict=True):
            # A slice stands between two lists, so numpy puts the axis of heads last but one.
            new = self._request.get_tensor(added).data
            array[rows][index] = new.transpose(0, 2, 1, 3)


def _one_token(contract: GraphContract) -> dict[str, NDArray[Any]]:
    """The inputs of a step of one row with one token, after none."""
    return {
        name: np.zeros([1 if isinstance(n, str) else n for n in tensor.shape], tensor.dtype)
        for name, tensor in contract.tensors_of_added("float32").items()
        if tensor.is_input
    }


def _compile(openvino: Any, model: Path, threads: int | None, group: int) -> Any:
    options = {**_OPTIONS, "DYNAMIC_QUANTIZATION_GROUP_SIZE": group}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    try:
        return core.compile_model(_lowest_id_first(core.read_model(model)), "CPU", options)
    except RuntimeError as error:
        raise ArtifactError(
            f"loading {model}",
            found=_last_line_of(error),
            fix="Export the bundle again with this version of openvino.",
        ) from error


def _lowest_id_first(graph: Any) -> Any:
    """The graph with a `TopK` that orders equal logits by id: ONNX does, OpenVINO need not."""
    for operation in graph.get_ops():
        if operation.get_type_name() == "TopK":
            operation.set_attribute("stable", True)
    return graph


def _last_line_of(error: RuntimeError) -> str:
    """OpenVINO's message; the lines above it name places in its source."""
    return first_line_of("\n".join(reversed(str(error).strip().splitlines())))


def _check_graph(compiled: Any, contract: GraphContract, model: Path) -> None:
    """Raises `ArtifactError` unless the graph has the inputs and outputs that the contract says."""
    expected = {
        name: f"{tensor.dtype} {[-1 if isinstance(n, str) else n for n in tensor.shape]}"
        for name, tensor in contract.tensors_of_added("float32").items()
    }
    found = {
        # A value may have several names; the one that the contract knows counts.
        min(value.get_names(), key=lambda name: name not in expected): _described(value)
        for value in (*compiled.inputs, *compiled.outputs)
    }
    differing = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
    if differing:
        raise ArtifactError(
            f"matching {model} with the manifest",
            found=f"'{differing[0]}' {found.get(differing[0], 'is not there')}",
            expected=expected.get(differing[0], "no such name"),
            fix="The manifest was altered: export the bundle again.",
        )


def _described(value: Any) -> str:
    sizes = [-1 if size.is_dynamic else size.get_length() for size in value.get_partial_shape()]
    return f"{value.get_element_type().to_dtype().name} {sizes}"
