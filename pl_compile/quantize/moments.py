"""Second moments of the activations that weights multiply."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pl_compile.shapes import Float64, Shape


@dataclass(frozen=True)
class Moments:
    """Second moments of the activations that each weight multiplied, over all tokens seen.

    Attributes:
        by_weight: name of a weight → float64 `[inputs, inputs]`, the sum of `x x^T`. The names are
            those that `QuantizeWeights` meets, after `MergeProducts` if the target has that pass.
        tokens: how many tokens were seen.
    """

    by_weight: Mapping[str, Annotated[Float64, Shape("inputs inputs")]]
    tokens: int
