"""Build options as parts of a list of passes: the same for every target."""

from collections.abc import Sequence
from typing import Literal, TypeVar

from pl_compile.config.build import BuildOptions
from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.targets import PLAN_TARGETS, TARGETS
from pl_compile.errors import ExportError
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.quantize_weights import QuantizeWeights
from pl_compile.passes.set_precision import SetPrecision
from pl_compile.quantize.moments import Moments
from pl_compile.quantize.scheme import OTHER_BLOCKS, Scheme
from pl_compile.weights.names import TABLES, weight_shapes

T = TypeVar("T")

_BITS: dict[str, Literal[4, 8]] = {"int4": 4, "int8": 8}


def when(condition: bool, *items: T) -> Sequence[T]:
    """The items, or none of them."""
    return items if condition else ()


def quantize_passes(
    options: BuildOptions,
    moments: Moments | None,
    *,
    native: bool = False,
    signed: bool = False,
) -> Sequence[GraphPass]:
    """What rounds the weights as `options` ask for; nothing where they do not.

    Args:
        options: of the export.
        moments: of the calibration's activations.
        native: whether this project's kernels read them, which take float16 scales, and offsets.
        signed: whether the target takes scales below 0.
    """
    if options.quantization == "none":
        return ()
    products, tables = _schemes(options, native=native, signed=signed)
    return (QuantizeWeights(products, tables, moments),)


def stored_as(
    config: DecoderConfig, options: BuildOptions, *, native: bool = False
) -> dict[str, tuple[Scheme, int]]:
    """The weights that are rounded: the scheme of each, and the axis of its inputs.

    Args:
        config: of the base.
        options: of the export.
        native: as for `quantize_passes`.
    """
    if options.quantization == "none":
        return {}
    products, tables = _schemes(options, native=native)
    found = {}
    for name, shape in weight_shapes(config).items():
        if len(shape) == 2 and name.startswith("layers."):
            found[name] = (products, 0)
        elif name in TABLES and tables is not None:
            found[name] = (tables, 1)
    return found


def _schemes(
    options: BuildOptions, *, native: bool, signed: bool = False
) -> tuple[Scheme, Scheme | None]:
    """Those of the layers' weights and of the tables."""

    def scheme(bits: Literal[4, 8]) -> Scheme:
        offset = native and bits == 4
        return Scheme(bits, options.scale_block, offset=offset, half=native, signed=signed)

    tables = None if options.table_bits == 0 else scheme(4 if options.table_bits == 4 else 8)
    return scheme(_BITS[options.quantization]), tables


def precision_passes(options: BuildOptions) -> Sequence[GraphPass]:
    """What makes numbers those of `options.dtype`; nothing where they are float32 already."""
    return () if options.dtype == "float32" else (SetPrecision(options.dtype),)


def check_blocks(config: DecoderConfig, options: BuildOptions, *, fix: str = OTHER_BLOCKS) -> None:
    """Raises `ExportError` unless blocks, where there are some, divide each weight's inputs.

    Args:
        config: of the base.
        options: of the export.
        fix: what to do about it.
    """
    shapes = weight_shapes(config)
    for name, (scheme, along) in stored_as(config, options).items():
        scheme.check(name, shapes[name][along], fix=fix)


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
    if options.ranks > 1 and not target.ranks:
        others = [other.name for other in TARGETS.values() if other.ranks]
        raise ExportError(
            doing,
            found=f"{options.ranks} ranks",
            expected="1: its bases cannot be divided",
            fix=f"Leave --tp-size out, or use --target {' or '.join(others)}.",
        )
