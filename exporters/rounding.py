"""How each target stores weights of a few bits: the scheme of each, and the pass that rounds.

| target | 4 bits | 8 bits |
|---|---|---|
| `native-cpu` | float16 scales above 0, and offsets | float16 scales above 0 |
| `onnx-cpu`, `onnx-cuda`, `openvino` | scales, also below 0 | the same |
| `tensorrt-rtx`, `tensorrt` | scales above 0 | the same |
"""

from collections.abc import Sequence
from typing import Literal

from pl_compile.config.build import WEIGHT_BITS, BuildOptions
from pl_compile.config.decoder import DecoderConfig
from pl_compile.errors import ExportError
from pl_compile.families.names import TABLES, is_product_of_layer
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.quantize_weights import QuantizeWeights
from pl_compile.quantize.moments import Moments
from pl_compile.quantize.scheme import OTHER_BLOCKS, Scheme
from pl_compile.weights.listed import weight_shapes

# The smallest block of the operator MatMulNBits. Each larger one is a power of 2.
_SMALLEST_BLOCK = 16


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
    block = options.block_or_default
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
    negative_scales: bool = False,
) -> Sequence[GraphPass]:
    """The pass that rounds the weights as `options` say; none where they stay floats.

    Args:
        options: of the export.
        moments: of the calibration's activations.
        native: whether this project's kernels read them, which take float16 scales, and offsets.
        negative_scales: whether the target takes scales below 0.
    """
    if options.quantization == "none":
        return ()
    products, tables = _schemes(options, native=native, negative_scales=negative_scales)
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
        if is_product_of_layer(name, shape):
            found[name] = (products, 0)
        elif name in TABLES and tables is not None:
            found[name] = (tables, 1)
    return found


def _schemes(
    options: BuildOptions, *, native: bool, negative_scales: bool = False
) -> tuple[Scheme, Scheme | None]:
    """The scheme of the layers' weights, and that of the tables; None where tables stay floats."""

    def scheme(bits: Literal[4, 8]) -> Scheme:
        # An offset keeps blocks that were published on 16 steps with one (`quantize/scheme.py`);
        # 256 steps are fine enough without, and save its 2 bytes and its product.
        offset = native and bits == 4
        return Scheme(
            bits,
            options.block_or_default,
            offset=offset,
            half=native,
            negative_scales=negative_scales,
        )

    table_bits = options.table_bits_or_default
    return scheme(WEIGHT_BITS[options.quantization]), scheme(table_bits) if table_bits else None
