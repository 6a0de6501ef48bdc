"""The build options of quantised weights as a pass: the same for every target."""

from typing import Literal

from pl_compile.config.build import BuildOptions
from pl_compile.passes.quantize_weights import QuantizeWeights, WeightError
from pl_compile.quantize.gptq import Moments
from pl_compile.quantize.scheme import Scheme

_BITS: dict[str, Literal[4, 8]] = {"int4": 4, "int8": 8}


def quantize_pass(
    options: BuildOptions, moments: Moments | None, errors: list[WeightError]
) -> QuantizeWeights:
    """The pass that `options` ask for; they quantise."""
    block = options.scale_block
    bits: Literal[4, 8] = 4 if options.table_bits == 4 else 8
    tables = None if options.table_bits == 0 else Scheme(bits, block)
    return QuantizeWeights(Scheme(_BITS[options.quantize], block), tables, moments, errors)
