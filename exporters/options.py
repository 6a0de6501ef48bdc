"""Build options as parts of a list of passes: the same for every target."""

from collections.abc import Sequence
from typing import Literal, TypeVar

from pl_compile.config.build import BuildOptions
from pl_compile.config.decoder import DecoderConfig
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


def check_cpu(target: str, options: BuildOptions) -> None:
    """Raises `ExportError` if a target on CPU is asked for what only others have."""
    doing = f"building for {target}"
    if options.dtype != "float32":
        raise ExportError(
            doing,
            found=f"dtype {options.dtype}",
            expected="float32",
            fix="Weights can be made smaller with --quantize; --target names one for a GPU.",
        )
    check_no_plan(target, options)


def check_no_plan(target: str, options: BuildOptions) -> None:
    """Raises `ExportError` if a target without plans is asked for what only plans have."""
    if options.of_plans:
        raise ExportError(
            f"building for {target}",
            found=f"{', '.join(options.of_plans)}, and a target that has no plan",
            fix="Leave them out, or use --target tensorrt-rtx or tensorrt.",
        )
