"""Build options as parts of a list of passes: the same for every target."""

from collections.abc import Sequence
from typing import Literal, TypeVar

from pl_compile.config.build import BuildOptions
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.quantize_weights import QuantizeWeights, WeightError
from pl_compile.quantize.moments import Moments
from pl_compile.quantize.scheme import Scheme

T = TypeVar("T")

_BITS: dict[str, Literal[4, 8]] = {"int4": 4, "int8": 8}


def when(condition: bool, *items: T) -> Sequence[T]:
    """The items, or none of them."""
    return items if condition else ()


def quantize_passes(
    options: BuildOptions, moments: Moments | None, errors: list[WeightError]
) -> Sequence[GraphPass]:
    """What rounds the weights as `options` ask for; nothing where they do not."""
    if options.quantize == "none":
        return ()
    bits: Literal[4, 8] = 4 if options.table_bits == 4 else 8
    tables = None if options.table_bits == 0 else Scheme(bits, options.scale_block)
    products = Scheme(_BITS[options.quantize], options.scale_block)
    return (QuantizeWeights(products, tables, moments, errors),)
