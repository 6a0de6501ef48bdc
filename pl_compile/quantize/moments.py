"""What is known of the activations that enter weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pl_compile.shapes import Float64, Shape


@dataclass(frozen=True)
class Moments:
    """Of the activations that met each weight, over all tokens seen.

    Attributes:
        by_weight: name of a weight → float64 `[inputs, inputs]`, the sum of `x x^T`.
        tokens: how many tokens were seen.
    """

    by_weight: Mapping[str, Annotated[Float64, Shape("inputs inputs")]]
    tokens: int
