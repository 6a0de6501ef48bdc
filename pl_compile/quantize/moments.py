"""What is known of the activations that enter weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Moments:
    """Of the activations that met each weight, over all tokens seen.

    Attributes:
        by_weight: name of a weight → float64 `[inputs, inputs]`, the sum of `x x^T`.
        tokens: how many tokens were seen.
    """

    by_weight: Mapping[str, NDArray[np.float64]]
    tokens: int
