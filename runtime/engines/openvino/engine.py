"""The engine on OpenVINO's CPU plug-in: caches in host memory, as long as the longest row needs.

A graph of target `openvino` reads the entries that rows have, and gives those that a step adds
(`exporters/openvino/`). This engine writes them into the caches. OpenVINO reads the caches where
they are, but attention copies what it reads. So caches are no longer than the longest row needs,
and grow by `_ROOM` entries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pl_compile.config.contract import LOGITS, NEXT_TOKEN, GraphContract
from pl_compile.config.targets import TARGETS
from pl_compile.errors import ArtifactError, MissingExtraError, first_line_of
from pl_compile.runtime.engines.caches import HostCaches, place_prefixes
from pl_compile.runtime.engines.engine import Float32, Int64, Prompt, prefix_length
from pl_compile.runtime.engines.memory import zeros_as_touched
from pl_compile.runtime.engines.step_inputs import step_inputs
from pl_compile.runtime.sampling import GREEDY, Draw

_ROW = TARGETS["openvino"]

# Entries by which caches grow.
_ROOM = 64

# Tokens of a row that are computed together.
PIECE = 256

# Floats are float32: by default OpenVINO takes bfloat16 where the processor has it. Weights of a
# few bits are multiplied with activations of 8 bits, as by `onnx-cpu`. Without that, rows were
# slower, and their last bits depended on how many there were.
_OPTIONS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32",
    "PERFORMANCE_HINT": "LATENCY",
}


def openvino_module(doing: str) -> Any:
    """The package.

    Args:
        doing: for the errors.

    Raises:
        MissingExtraError: it is not installed, or does not load.
        ArtifactError: it is older than this project can use.
    """
    try:
        import openvino
    except (ImportError, OSError) as error:
        raise MissingExtraError(doing, package=_ROW.package, extra=_ROW.extra) from error
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


class OpenVinoEngine:
    """OpenVINO on CPU: an engine (`DrawingEngine`).

    Args:
        model: the `model.onnx` of a bundle; its data file lies beside it.
        contract: what the base's graph takes and gives.
        max_batch: rows of the cache. Memory is taken as rows are used.
        threads: that compute; all cores if None.

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
        compiled = _compile(self._openvino, model, threads)
        _check_graph(compiled, contract, model)
        self._request: Any = compiled.create_infer_request()
        self.capacity = contract.capacity
        self.vocab = contract.vocab
        self.max_batch = max_batch
        self.candidates = contract.candidates
        self._contract = contract
        self._model = model
        self._caches = self._new_caches(1)
        self._logits = zeros_as_touched((max_batch, contract.vocab), np.float32)
        self._next_token = zeros_as_touched((max_batch,), np.int64)

    def start(self, prompts: Sequence[Prompt]) -> Int64:
        """Copies the prefixes into new caches; see `Engine.start`."""
        assert len(prompts) <= self.max_batch
        self._caches = self._new_caches(max(prefix_length(prompt) for prompt in prompts))
        return place_prefixes(self._caches, prompts, self.capacity)

    def step(
        self,
        input_ids: Int64,
        past_lengths: Int64,
        last_index: Int64,
        prompts: Sequence[Prompt],
    ) -> Float32:
        """One step; see `Engine.step`."""
        draws = [GREEDY] * len(input_ids)
        return self.step_and_draw(input_ids, past_lengths, last_index, prompts, draws)[0]

    def step_and_draw(
        self,
        input_ids: Int64,
        past_lengths: Int64,
        last_index: Int64,
        prompts: Sequence[Prompt],
        draws: Sequence[Draw],
    ) -> tuple[Float32, Int64]:
        """One step with the choice of tokens; see `DrawingEngine.step_and_draw`."""
        batch, seq = input_ids.shape
        assert batch <= self.max_batch
        assert int(past_lengths.max()) + seq <= self.capacity
        self._make_room(int(past_lengths.max()) + seq)
        if seq == 1:
            self._run(0, input_ids, past_lengths, last_index, prompts, draws)
        else:
            for row in range(batch):
                one = slice(row, row + 1)
                ids = input_ids[one, : last_index[row] + 1]
                self._prefill(row, ids, past_lengths[one], prompts[one], draws[one])
        return self._logits[:batch], self._next_token[:batch]

    def keep(self, rows: Sequence[int], entries: int) -> None:
        """Moves and copies rows; see `Engine.keep`."""
        self._caches.keep(rows, entries)

    def clear(self, rows: Sequence[int]) -> None:
        """See `Engine.clear`."""
        self._caches.clear(rows)

    def cached(self, length: int) -> Float32:
        """Reads the first entries of row 0; see `Engine.cached`."""
        return self._caches.head(length)

    def _prefill(
        self,
        row: int,
        input_ids: Int64,
        past_lengths: Int64,
        prompts: Sequence[Prompt],
        draws: Sequence[Draw],
    ) -> None:
        """Several tokens of one row, alone and in pieces: no padding is computed."""
        for start in range(0, input_ids.shape[1], PIECE):
            ids = input_ids[:, start : start + PIECE]
            last = np.asarray([ids.shape[1] - 1])
            self._run(row, ids, past_lengths + start, last, prompts, draws)

    def _run(
        self,
        start: int,
        input_ids: Int64,
        past_lengths: Int64,
        last_index: Int64,
        prompts: Sequence[Prompt],
        draws: Sequence[Draw],
    ) -> None:
        """One run over rows of the cache from `start` on."""
        rows = slice(start, start + len(input_ids))
        inputs = step_inputs(self._contract, input_ids, past_lengths, last_index, prompts, draws)
        self._infer(inputs | self._pasts(rows))
        self._write(rows, past_lengths, input_ids.shape[1])
        self._logits[rows] = self._request.get_tensor(LOGITS).data
        if self.candidates:
            self._next_token[rows] = self._request.get_tensor(NEXT_TOKEN).data

    def _pasts(self, rows: slice) -> dict[str, NDArray[Any]]:
        names = self._contract.added_names
        return {
            past: block[rows] for (past, _), block in zip(names, self._caches.blocks, strict=True)
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

    def _write(self, rows: slice, past_lengths: Int64, seq: int) -> None:
        """Writes what the run has added behind each row's entries."""
        places = past_lengths[:, None] + np.arange(seq)
        index = (np.arange(len(places))[:, None], slice(None), places)
        for (_, added), block in zip(self._contract.added_names, self._caches.blocks, strict=True):
            # numpy puts the axis of heads last but one where a slice stands between two lists.
            new = self._request.get_tensor(added).data
            block[rows][index] = new.transpose(0, 2, 1, 3)

    def _new_caches(self, entries: int) -> HostCaches:
        """Caches with room for so many entries of a row."""
        room = min(self.capacity, -(-max(1, entries) // _ROOM) * _ROOM)
        return HostCaches(replace(self._contract, capacity=room), self.max_batch)

    def _make_room(self, entries: int) -> None:
        held = self._caches.blocks[0].shape[2]
        if entries <= held:
            return
        old, self._caches = self._caches, self._new_caches(entries)
        for new, block in zip(self._caches.blocks, old.blocks, strict=True):
            new[:, :, :held] = block


def _compile(openvino: Any, model: Path, threads: int | None) -> Any:
    options = _OPTIONS if threads is None else {**_OPTIONS, "INFERENCE_NUM_THREADS": threads}
    try:
        return openvino.Core().compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise ArtifactError(
            f"loading {model}",
            found=_last_line_of(error),
            fix="Export the bundle again with this version of openvino.",
        ) from error


def _last_line_of(error: RuntimeError) -> str:
    """What OpenVINO says: above it stand the places of its source."""
    return first_line_of("\n".join(reversed(str(error).strip().splitlines())))


def _check_graph(compiled: Any, contract: GraphContract, model: Path) -> None:
    """Raises `ArtifactError` unless the graph has the inputs and outputs that the contract says."""
    expected = {
        name: f"{tensor.dtype} {[-1 if isinstance(n, str) else n for n in tensor.shape]}"
        for name, tensor in contract.tensors_of_added("float32").items()
    }
    found = {
        # One value may have several names, of which a known one counts.
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
