"""The engine on a TensorRT plan: caches bound once and aliased, profiles for prompts and tokens.

The GPU itself is in `gpu_plan.py`. So this file can be run and checked without one, on what
TensorRT's parser made of the graph, interpreted in numpy (`checks/interpreted_engine.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from numpy.typing import NDArray

from pl_compile.config.contract import LOGITS, NEXT_TOKEN, GraphContract
from pl_compile.errors import ArtifactError
from pl_compile.runtime.engines.caches import Caches, place_prefix
from pl_compile.runtime.engines.engine import Logits, PrefixKv, Prompt
from pl_compile.runtime.engines.padded import OfRows, PaddedEngine, Step
from pl_compile.runtime.engines.step_inputs import step_inputs
from pl_compile.shapes import Shape

# Numbers of the profiles, in the order in which exporters/tensorrt/api.py builds them.
PROMPT_PROFILE, TOKEN_PROFILE = 0, 1

Array = Annotated[NDArray[Any], Shape("batch ...")]


@dataclass(frozen=True)
class Binding:
    """An input or output of a plan.

    Attributes:
        shape: sizes; -1 where a size may differ from step to step.
        dtype: "float32", "float16", "bfloat16", "int64" …
        is_input: whether it is an input.
        alias: the input whose memory an output must share; None if it shares none.
    """

    shape: tuple[int, ...]
    dtype: str
    is_input: bool
    alias: str | None = None


class Plan(Protocol):
    """What runs steps: a plan on a GPU, or anything with the same interface.

    Attributes:
        bindings: inputs and outputs by name.
        caches: the memory that every step reads and writes.
    """

    @property
    def bindings(self) -> Mapping[str, Binding]:
        """See the class."""

    @property
    def caches(self) -> Caches:
        """See the class."""

    def run(self, first: int, inputs: Mapping[str, Array], profile: int) -> dict[str, Array]:
        """One step over neighbouring rows of the caches.

        Args:
            first: the first of the rows; 0 with `TOKEN_PROFILE`.
            inputs: all but the caches, contiguous, `[batch, …]` each.
            profile: `PROMPT_PROFILE` or `TOKEN_PROFILE`.

        Returns:
            All outputs but the caches.
        """


class TensorRtEngine(PaddedEngine):
    """An engine on a plan.

    Args:
        plan: what runs the steps.
        contract: what its graph takes and gives.
        max_batch: slots of its caches.
        dtype: of the caches.

    Raises:
        ArtifactError: the plan's inputs and outputs are not those of the contract.
    """

    def __init__(self, plan: Plan, contract: GraphContract, *, max_batch: int, dtype: str) -> None:
        check_bindings(plan.bindings, contract, dtype)
        self.capacity = contract.capacity
        self.vocab = contract.vocab
        self.candidates = contract.candidates
        self.sampling_inputs = contract.sampling_inputs
        self.max_batch = max_batch
        self._contract = contract
        self._plan = plan

    def admit(self, slot: int, prompt: Prompt) -> int:
        """See `PaddedEngine.admit`."""
        assert slot < self.max_batch
        return place_prefix(self._plan.caches, slot, prompt, self.capacity)

    def step(self, step: Step) -> tuple[Logits, OfRows | None]:
        """See `PaddedEngine.step`."""
        # TensorRT would silently drop what lies beyond the capacity.
        assert step.fits(self.capacity, self.max_batch)
        # The profile for tokens takes a prompt table of one row.
        virtual = (step.input_ids >= self.vocab).any()
        # And what is kept for this profile, such as a CUDA graph, begins at the first row.
        tokens_only = step.input_ids.shape[1] == 1 and not virtual and step.first == 0
        profile = TOKEN_PROFILE if tokens_only else PROMPT_PROFILE
        outputs = self._plan.run(step.first, step_inputs(self._contract, step), profile)
        return outputs[LOGITS], outputs.get(NEXT_TOKEN)

    def copy(self, source: int, target: int, entries: int) -> None:
        """See `PaddedEngine.copy`."""
        self._plan.caches.copy(source, target, entries)

    def clear(self, slots: Sequence[int]) -> None:
        """See `PaddedEngine.clear`."""
        self._plan.caches.clear(slots)

    def cached(self, slot: int, length: int) -> PrefixKv:
        """See `PaddedEngine.cached`."""
        return self._plan.caches.read(slot, length)

    def close(self) -> None:
        """Nothing: all that it holds is memory, which goes with the object."""


def check_bindings(found: Mapping[str, Binding], contract: GraphContract, dtype: str) -> None:
    """Raises `ArtifactError` unless names, shapes, types and aliases are those of the contract.

    A cache's output must share the memory of its input: else what a step writes would be lost.
    """
    expected = {
        name: Binding(
            tuple(-1 if isinstance(size, str) else size for size in tensor.shape),
            tensor.dtype,
            tensor.is_input,
            tensor.alias,
        )
        for name, tensor in contract.tensors(dtype).items()
    }
    differing = sorted(
        name for name in {*found, *expected} if found.get(name) != expected.get(name)
    )
    if differing:
        name = differing[0]
        raise ArtifactError(
            "matching a plan with the manifest",
            found=f"'{name}' {found.get(name, 'is not there')}",
            expected=f"{expected.get(name, 'no such name')}",
            fix="The bundle was altered, or was built by another version: export it again.",
        )
