"""GPTQ (arXiv:2210.17323): inputs that are not rounded yet make up for each rounding error.

In: a weight, and the second moment of the activations that it multiplies. Out: codes of the same
size as the nearest codes, whose products with such activations are closer to the weight's.
"""

from typing import Annotated

import numpy as np

from pl_compile.quantize.scheme import Grid, Matrix, Quantized, Scheme, best_grid
from pl_compile.shapes import Float32, Float64, Shape

# Part of the mean diagonal that is added to the moments, so that they can be inverted.
_DAMPING = 0.01


def gptq(
    weight: Matrix, scheme: Scheme, moment: Annotated[Float64, Shape("inputs inputs")]
) -> Quantized:
    """Codes and grids of a weight with a small error for the activations that it multiplies.

    Args:
        weight: float32 `[inputs, outputs]`.
        scheme: what to store it in; its blocks divide the inputs.
        moment: float64 `[inputs, inputs]`.
    """
    inputs, outputs = weight.shape
    block = scheme.block_of(inputs)
    work = weight.astype(np.float32, copy=True)
    spread = _spreading(moment)
    importance = np.diagonal(moment).astype(np.float32)
    codes = np.empty((inputs, outputs), np.int8)
    grids = []
    for start in range(0, inputs, block):
        end = start + block
        part = slice(start, end)
        grid = best_grid(work[None, part], scheme, importance[None, part])
        grids.append(grid)
        # The other inputs of this block take up each error at once, since they are rounded next.
        # Those of later blocks take up the errors of the whole block, in one product at its end.
        errors = np.empty((block, outputs), np.float32)
        for k in range(start, end):
            codes[k] = grid.codes(work[k], 0, scheme)
            error = (work[k] - grid.values(codes[k], 0)) / spread[k, k]
            work[k + 1 : end] -= np.outer(spread[k, k + 1 : end], error)
            errors[k - start] = error
        work[end:] -= spread[start:end, end:].T @ errors
    scales = np.concatenate([grid.scales for grid in grids])
    offsets = [grid.offsets for grid in grids if grid.offsets is not None]
    return Quantized(codes, Grid(scales, np.concatenate(offsets) if offsets else None), scheme)


def _spreading(moment: Float64) -> Float32:
    """Upper Cholesky factor of the inverse moment: row `k` spreads the error of input `k`."""
    damped = moment + np.eye(len(moment)) * max(_DAMPING * np.diagonal(moment).mean(), 1e-12)
    inverse = np.linalg.inv(damped)
    factor: Float32 = np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)
    return factor
