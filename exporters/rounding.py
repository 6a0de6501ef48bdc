"""How each target stores weights of a few bits: the scheme of each, and the pass that rounds.

| target | 4 bits | 8 bits |
|---|---|---|
| `native-cpu` | float16 scales above 0, and offsets | float16 scales above 0 |
| `onnx-cpu`, `onnx-cuda`, `openvino` | scales, also below 0 | the same |
| `tensorrt-rtx`, `tensorrt` | scales above 0 | the same |
"""

from collections.abc import Sequence
from typing import Literal

from pl_compile.config.build import BuildOptions
from pl_compile.config.decoder import DecoderConfig
from pl_compile.errors import ExportError
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.quantize_weights import QuantizeWeights
from pl_compile.quantize.moments import Moments
from pl_compile.quantize.scheme import OTHER_BLOCKS, Scheme
from pl_compile.weights.names import TABLES, weight_shapes

# The smallest block of the operator MatMulNBits. Each larger one is a power of 2.
_SMALLEST_BLOCK = 16

_BITS: dict[str, Literal[4, 8]] = {"int4": 4, "int8": 8}


def check_blocks(config: DecoderConfig, options: BuildOptions, *, fix: str = OTHER_BLOCKS) -> None:
    """Raises `ExportError` unless blocks, where there are some, divide each weight's inputs.

    Args:
        config: of the base.
        options: of the export.
        fix: what to do about it.
    """
    shapes = weight_shapes(config)
    for name, (scheme, along) in rounded_weights(config, options).items():
        scheme.check(name, shapes[name][along], fix=fix)


def check_mat_mul_nbits(options: BuildOptions) -> None:
    """Raises `ExportError` unless MatMulNBits, to which targets lower blocks, takes the blocks."""
    block = options.scale_block
    if options.quantization == "none" or not block:  # one scale a channel is not lowered to it
        return
    if block < _SMALLEST_BLOCK or block & (block - 1):
        raise ExportError(
            "choosing blocks for the operator MatMulNBits",
            found=f"blocks of {block}",
            expected=f"a power of 2, at least {_SMALLEST_BLOCK}",
            fix="Choose another --block.",
        )


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


def rounded_weights(
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
        # An offset keeps blocks that were published on 16 steps with one (`quantize/scheme.py`);
        # 256 steps are fine enough without, and save its 2 bytes and its product.
        offset = native and bits == 4
        return Scheme(bits, options.scale_block, offset=offset, half=native, signed=signed)

    tables = None if options.table_bits == 0 else scheme(4 if options.table_bits == 4 else 8)
    return scheme(_BITS[options.quantization]), tables
