"""The engine that checks a base on this machine, whatever its target is."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from pl_compile.artifact.bundle import MODEL_NAME
from pl_compile.config.build import DEFAULT_BATCH, Quantization
from pl_compile.config.contract import GraphContract, PrefixBits
from pl_compile.config.targets import TARGETS
from pl_compile.errors import ExportError, RequestError
from pl_compile.runtime.engines.engine import Engine
from pl_compile.runtime.engines.onnxruntime.providers import CPU, Provider
from pl_compile.runtime.engines.opening import has_own_products, open_model
from pl_compile.runtime.engines.ranks.local_group import LocalGroup


def can_check(target: str) -> bool:
    """Whether this machine can compute what a target's files mean."""
    row = TARGETS[target]
    if row.has_plan:
        return _parser_for(target) is not None
    return not row.checked_with or find_spec(row.package) is not None


def why_unchecked(target: str) -> str:
    """Why `can_check` is false, as a phrase."""
    if TARGETS[target].has_plan:
        return "no TensorRT is installed that could parse the graph and say what it computes"
    return f"the package '{TARGETS[target].package}' is not installed"


def how_to_check(target: str) -> str:
    """What the user can do about it, as a sentence."""
    return f"pip install 'pl-compile[{TARGETS[target].checked_with}]': that needs no GPU."


def _parser_for(target: str) -> str | None:
    try:
        from pl_compile.exporters.tensorrt.api import parser_for
    except ImportError:  # the extra [export] is not installed
        return None
    return parser_for(target)


@contextmanager
def checking_engine(
    folder: Path,
    target: str,
    contract: GraphContract,
    dtype: str,
    *,
    quantization: Quantization = "none",
    flavour: str | None = None,
    provider: Provider | None = None,
    prefix_bits: PrefixBits = 32,
) -> Iterator[Engine]:
    """The target's own runner, on this machine's CPU; for TensorRT, what its parser made.

    Args:
        folder: the target's files.
        target: that they were built for.
        contract: of the whole base.
        dtype: of its caches.
        quantization: of its weights: it decides how rows of `native-cpu` step.
        flavour: whose parser, for a TensorRT target; if None, the target's own, or the other if
            that is not installed.
        provider: of ONNX Runtime, for a bundle of one rank; the CPU's if None.
        prefix_bits: see `RaggedEngine`.

    Raises:
        ExportError: no TensorRT is installed to ask, or it refuses the graph.
        ArtifactError: the runner does not load it.
        MissingExtraError: OpenVINO is not installed.
        RankError: a rank cannot start.
        RequestError: a provider, and files that do not run on one.
    """
    row = TARGETS[target]
    if provider is not None and (not row.provider or contract.ranks > 1):
        raise RequestError(
            f"checking {folder} with the provider {provider.name}",
            found="files that do not run on a provider",
            fix="Leave it out.",
        )
    if row.has_plan:
        parser = flavour or _parser_for(target)
        if parser is None:
            raise ExportError(
                f"checking files of target {target}",
                found="no TensorRT is installed to parse them",
                fix=how_to_check(target),
            )
        from pl_compile.checks.interpreted_engine import interpreted_engine

        yield interpreted_engine(folder, parser, contract, max_batch=DEFAULT_BATCH, dtype=dtype)
    elif contract.ranks > 1:
        group = LocalGroup(folder, target, contract, dtype=dtype)
        try:
            yield group
        finally:
            group.close()
    else:
        yield open_model(
            row,
            folder / MODEL_NAME,
            contract,
            dtype,
            provider=provider or CPU,
            own_products=has_own_products(row, quantization),
            prefix_bits=prefix_bits,
        )
