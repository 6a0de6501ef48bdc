"""Build options as parts of a list of passes, and their checks: the same for every target."""

from collections.abc import Sequence
from typing import TypeVar

from pl_compile.config.build import BuildOptions
from pl_compile.config.targets import PLAN_TARGETS, TARGETS
from pl_compile.errors import ExportError
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.set_precision import SetPrecision

T = TypeVar("T")

# What only ragged rows have in fewer bits, and why others do not: by the field of `BuildOptions`.
_OF_RAGGED_ROWS = {
    "prefix_bits": "prefixes are held once for all rows by native-cpu only, on one rank",
    "cache_bits": "only native-cpu, on one rank, has caches narrower than activations",
}


def when(condition: bool, *items: T) -> Sequence[T]:
    """`items` if the condition holds, else nothing: for a list of passes."""
    return items if condition else ()


def precision_passes(options: BuildOptions) -> Sequence[GraphPass]:
    """The pass that makes all numbers `options.dtype`; none where that is float32."""
    return () if options.dtype == "float32" else (SetPrecision(options.dtype),)


def check_options(name: str, options: BuildOptions) -> None:
    """Raises `ExportError` if a target is asked for what it does not have.

    Args:
        name: of the target.
        options: of the export.
    """
    target, doing = TARGETS[name], f"building for {name}"
    if options.dtype not in target.dtypes:
        others = [other.name for other in TARGETS.values() if options.dtype in other.dtypes]
        smaller = "Weights can be made smaller with --quantize; --target names one for a GPU."
        raise ExportError(
            doing,
            found=f"dtype {options.dtype}",
            expected=" or ".join(target.dtypes),
            fix=f"Choose another --dtype, or --target {' or '.join(others)}."
            if target.on_gpu
            else smaller,
        )
    if options.of_plans and not target.has_plan:
        raise ExportError(
            doing,
            found=f"{', '.join(options.of_plans)}, and a target that has no plan",
            fix=f"Leave them out, or use --target {' or '.join(PLAN_TARGETS)}.",
        )
    for key, expected in _OF_RAGGED_ROWS.items():
        bits = getattr(options, key)
        if bits != 32 and not (target.ragged and options.ranks == 1):
            divided = f" and a base divided among {options.ranks} ranks"
            raise ExportError(
                doing,
                found=f"{key} {bits}{divided if options.ranks > 1 else ''}",
                expected=f"32: {expected}",
                fix=f"Leave --{key.replace('_', '-')} out, or use --target native-cpu without "
                "--tp-size.",
            )
    if options.ranks > 1 and not target.ranks:
        others = [other.name for other in TARGETS.values() if other.ranks]
        raise ExportError(
            doing,
            found=f"{options.ranks} ranks",
            expected="1: its bases cannot be divided",
            fix=f"Leave --tp-size out, or use --target {' or '.join(others)}.",
        )
