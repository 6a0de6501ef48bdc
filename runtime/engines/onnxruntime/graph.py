"""A compiled graph in ONNX Runtime: loaded, checked, and its inputs and outputs bound to memory."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from pl_compile.config.contract import GraphContract
from pl_compile.errors import ArtifactError, first_line_of
from pl_compile.runtime import kernels
from pl_compile.runtime.engines.onnxruntime.providers import (
    CPU,
    Provider,
    check_used,
    choose,
)
from pl_compile.shapes import Float32, Shape

# ONNX Runtime's Linux builds report usage by default since 1.29. The choice is latched when the
# library loads, and its documents name both variables.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("ORT_TELEMETRY_DISABLED", "1")

# The process's own memory.
_CPU = ("cpu", 0)

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


class OnnxGraph:
    """A `model.onnx` that is ready to run.

    Args:
        model: the file; its data file lies beside it.
        contract: what it takes and gives.
        provider: what runs it.
        dtype: of its caches.
        threads: intra-op threads; all cores if None.
        spin: whether threads that wait for work keep their cores busy.
        watched: further outputs: float, of any shape.

    Raises:
        ArtifactError: ONNX Runtime cannot load the model, or has no such provider; or the graph is
            not that of the contract.
    """

    def __init__(
        self,
        model: Path,
        contract: GraphContract,
        provider: Provider,
        dtype: str,
        *,
        threads: int | None = None,
        spin: bool = True,
        watched: Sequence[str] = (),
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
        self.has_kernels = kernels.register(options)
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
        self.binding: Any = self._session.io_binding()
        self._model = model
        self._watched = tuple(watched)
        self._held: dict[str, Any] = {}
        self._on_cpu = provider.full_name == CPU.full_name
        self._inputs: dict[str, tuple[Any, ...]] = {}  # that are bound again for each run

    def give(self, name: str, array: Any) -> None:
        """Copies an array to an input, whose memory is bound again only where its size changes."""
        held = self._held.get(name)
        if held is not None and held.shape == array.shape:
            held[...] = array
            return
        self._held[name] = held = np.array(array, order="C")  # the binding holds an address only
        self.bind_input(name, held)

    def bind_input(self, name: str, array: Any) -> None:
        """Binds an input to a contiguous array, which the caller holds and may write to."""
        self.bind_memory(name, (*_CPU, array.dtype, array.shape, array.ctypes.data))

    def bind_memory(self, name: str, where: tuple[Any, ...]) -> None:
        """Binds an input to memory, which the caller holds and may write to.

        Args:
            name: of the input.
            where: device, its number, type, shape and address, as `IOBinding.bind_input` has them.
        """
        self.binding.bind_input(name, *where)
        # Where the node that reads it computes elsewhere, it is copied there when it is bound, not
        # when the graph runs: without another binding that node would go on with old numbers.
        if not self._on_cpu:
            self._inputs[name] = where

    def bind_output(self, name: str, array: Any) -> None:
        """Binds an output to an array, which the caller holds."""
        self.binding.bind_output(name, *_CPU, array.dtype, array.shape, array.ctypes.data)

    def run(self) -> None:
        """Runs the graph.

        Raises:
            ArtifactError: ONNX Runtime fails.
        """
        for name in self._watched:
            self.binding.bind_output(name)  # bound anew: its shape follows the step's
        for name, where in self._inputs.items():
            self.binding.bind_input(name, *where)
        try:
            self._session.run_with_iobinding(self.binding)
        except Exception as error:  # the library's errors have no common base class
            raise ArtifactError(
                f"running {self._model}",
                found=first_line_of(error),
                fix="Export the bundle again with this version of onnxruntime.",
            ) from error

    def watched(self) -> list[tuple[str, Annotated[Float32, Shape("...")]]]:
        """The watched outputs of the last run, by name."""
        # They were bound after all other outputs.
        found = self.binding.get_outputs()[-len(self._watched) :] if self._watched else []
        return [(name, value.numpy()) for name, value in zip(self._watched, found, strict=True)]


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
