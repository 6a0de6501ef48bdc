"""Types and shapes of arrays in annotations: `Annotated[Float32, Shape("batch vocab")]`.

Nothing is checked when the program runs, and a `Shape` is only text, so an annotation costs
nothing. While tests run, each call is checked (`tests/shapes/shape_checker.py`). In a shape stand:

    batch    a dimension; those of one name are equally long in a call, and in one object's fields
    2        a dimension of this length
    _        a dimension of any length
    ...      any number of dimensions, or none; at most once

Each element of a list or a mapping has names of its own, besides those that are known before it.
"""

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int8 = NDArray[np.int8]
Int64 = NDArray[np.int64]


class Shape(str):
    """The dimensions of an array, separated by blanks; empty for a single number."""

    __slots__ = ()
