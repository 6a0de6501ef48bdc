"""Stores weights in a few bits: signed integers; each block of inputs shares a scale.

A weight is `[inputs, outputs]`. `codes * scale` stands for it, without a zero point, as TensorRT
wants it and as ONNX's DequantizeLinear computes it. Where a scheme has offsets, `codes * scale +
offset` stands for it: the offset is what code 0 means. Two kinds of blocks are then stored without
loss: weights on 16 equal steps (llama.cpp's Q4_1, in which many small bases were published), and
weights of which the one furthest from 0 is 8 steps away (Q4_0). Q4_0 needs no offsets where a scale
may be below 0.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from pl_compile.errors import ExportError
from pl_compile.shapes import Float32, Int8, Shape

Matrix = Annotated[Float32, Shape("inputs outputs")]
InBlocks = Annotated[Float32, Shape("blocks block outputs")]
OfBlocks = Annotated[Float32, Shape("blocks outputs")]

# The smallest float16 above 0. No scale is smaller, since some targets round scales to float16.
_LEAST_SCALE = 6e-8

# A weight counts as stored without loss if no block changes by more than this part of its own norm.
# Below the limit: rounding an offset to float16 changes a block by up to 1.4e-3. (It changes each
# of 32 numbers by 2^-11 of the offset, where one number is so large that half of it is the offset.
# The default base has two such blocks, at 1.0e-3 and 1.2e-3.) Above it: too few codes change the
# blocks of an ordinary weight by 5e-3 (8 bits) or 8e-2 (4 bits). A weight of equally large numbers,
# which loses least, changes by 2.3e-3 (8 bits).
LOSSLESS = 2e-3

# Grids are tried that reach these parts of a block's largest weight. With few codes, a grid that
# clips the largest weights a little has a smaller error for all the smaller ones.
_TRIED = {4: np.linspace(0.7, 1.0, 7, dtype=np.float32), 8: np.ones(1, np.float32)}


# What to do about blocks that do not divide a weight, where a target takes any size of block.
OTHER_BLOCKS = "Choose another --block, or 0 for one scale a channel."


@dataclass(frozen=True)
class Scheme:
    """A way to store weights.

    Attributes:
        bits: 4 or 8, of a signed code.
        block: how many inputs share a scale, for each output; 0 for all of them (by channel).
        offset: whether each block has an offset too.
        half: whether scales and offsets are rounded to float16.
        negative_scales: whether a scale may be below 0; TensorRT does not allow that.
    """

    bits: Literal[4, 8]
    block: int
    offset: bool = False
    half: bool = False
    negative_scales: bool = False

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return f"int{self.bits}"

    def __str__(self) -> str:
        blocks = f"blocks of {self.block}" if self.block else "by channel"
        return f"{self.name}, {blocks}{' with offsets' if self.offset else ''}"

    @property
    def largest(self) -> int:
        """The largest code: 7 or 127. The smallest is one step further from 0: -8 or -128."""
        return int(2 ** (self.bits - 1) - 1)

    def block_of(self, inputs: int) -> int:
        """How many inputs share a scale in a weight of `inputs`."""
        return self.block or inputs

    def check(self, name: str, inputs: int, *, fix: str = OTHER_BLOCKS) -> None:
        """Raises `ExportError`, which ends in `fix`, unless blocks divide a weight's inputs."""
        if inputs % self.block_of(inputs):
            raise ExportError(
                f"quantising {name} to {self.name}",
                found=f"{inputs} inputs, blocks of {self.block}",
                expected="a block that divides the inputs",
                fix=fix,
            )


@dataclass(frozen=True)
class Grid:
    """The scales and offsets of some blocks, which say what their codes stand for.

    Attributes:
        scales: float32 `[blocks, outputs]`: the distance from one code to the next. Above 0; where
            a scheme has negative scales, also below.
        offsets: float32 `[blocks, outputs]`: what code 0 means; None where a scheme has none.
    """

    scales: OfBlocks
    offsets: OfBlocks | None

    def codes(
        self, weight: Annotated[Float32, Shape("... outputs")], block: int, scheme: Scheme
    ) -> Annotated[Int8, Shape("... outputs")]:
        """The codes nearest to a block's weights.

        Args:
            weight: float32 `[..., outputs]`, all of one block.
            block: its number.
            scheme: what to store them in.
        """
        centred = weight if self.offsets is None else weight - self.offsets[block]
        nearest = np.rint(centred / self.scales[block])
        within = np.clip(nearest, -scheme.largest - 1, scheme.largest)
        codes: Int8 = within.astype(np.int8)
        return codes

    def values(
        self, codes: Annotated[Int8, Shape("... outputs")], block: int
    ) -> Annotated[Float32, Shape("... outputs")]:
        """The weights that codes of one block stand for: float32, of the shape of `codes`."""
        values: Float32 = codes * self.scales[block]
        return values if self.offsets is None else values + self.offsets[block]


@dataclass(frozen=True)
class Quantized:
    """A weight in a few bits.

    Attributes:
        codes: int8 `[inputs, outputs]`, in the range of `scheme`.
        grid: scales and offsets of its blocks.
        scheme: what it is stored in.
    """

    codes: Annotated[Int8, Shape("inputs outputs")]
    grid: Grid
    scheme: Scheme

    def dequantized(self) -> Matrix:
        """The weights that the codes stand for: float32 `[inputs, outputs]`."""
        inputs, outputs = self.codes.shape
        blocks = self.codes.reshape(len(self.grid.scales), -1, outputs)
        values = blocks * self.grid.scales[:, None]
        if self.grid.offsets is not None:
            values = values + self.grid.offsets[:, None]
        return values.reshape(inputs, outputs).astype(np.float32)


def round_to_nearest(weight: Matrix, scheme: Scheme) -> Quantized:
    """The codes nearest to a weight, on the grid of each block that gives the least error.

    Args:
        weight: float32 `[inputs, outputs]`.
        scheme: what to store it in; its blocks divide the inputs.
    """
    inputs, outputs = weight.shape
    blocks = weight.reshape(-1, scheme.block_of(inputs), outputs)
    return _on_grid(blocks, best_grid(blocks, scheme), scheme)


def error_on_full_range(weight: Matrix, scheme: Scheme) -> float:
    """`block_error` with grids that reach all weights of their blocks: a quick upper bound.

    `round_to_nearest` tries these grids among others, so its error is never larger.

    Args:
        weight: float32 `[inputs, outputs]`.
        scheme: what to store it in; its blocks divide the inputs.
    """
    inputs, outputs = weight.shape
    blocks = weight.reshape(-1, scheme.block_of(inputs), outputs)
    grids = [_grid(blocks, scheme, 1.0), *_q4_0_grids(blocks, scheme)]
    return min(block_error(weight, _on_grid(blocks, grid, scheme)) for grid in grids)


def relative_error(weight: Matrix, quantized: Quantized) -> float:
    """The norm of the change that storing a weight makes, as a part of the weight's norm."""
    changed = np.linalg.norm(quantized.dequantized() - weight)
    return float(changed / max(1e-12, float(np.linalg.norm(weight))))


def block_error(weight: Matrix, quantized: Quantized) -> float:
    """The largest change of a block, as a part of the block's own norm.

    A part of the whole weight's norm would say little: one block of large weights hides all others.
    """
    shape = len(quantized.grid.scales), -1, weight.shape[1]
    changed = np.linalg.norm((quantized.dequantized() - weight).reshape(shape), axis=1)
    norms = np.linalg.norm(weight.reshape(shape), axis=1)
    # Zeros are kept by every grid: a norm of 0 divides a change of 0.
    return float((changed / np.where(norms == 0, 1, norms)).max())


def _on_grid(blocks: InBlocks, grid: Grid, scheme: Scheme) -> Quantized:
    """The codes nearest to `[blocks, block, outputs]` on a grid."""
    codes = np.stack([grid.codes(block, number, scheme) for number, block in enumerate(blocks)])
    return Quantized(codes.reshape(-1, blocks.shape[2]), grid, scheme)


def best_grid(
    blocks: InBlocks,
    scheme: Scheme,
    importance: Annotated[Float32, Shape("blocks block")] | None = None,
) -> Grid:
    """The grid of each block with the smallest squared error.

    Args:
        blocks: float32 `[blocks, block, outputs]`.
        scheme: what to store them in.
        importance: float32 `[blocks, block]`: how much an error of each input counts; all count
            the same if None.
    """
    tried = [_grid(blocks, scheme, part) for part in _TRIED[scheme.bits]]
    tried += _q4_0_grids(blocks, scheme)
    best = tried[0]
    least = np.full(best.scales.shape, np.inf, np.float32)
    scales, offsets = best.scales.copy(), None if best.offsets is None else best.offsets.copy()
    for grid in tried:
        for number, block in enumerate(blocks):
            off = grid.values(grid.codes(block, number, scheme), number) - block
            weighed = 1.0 if importance is None else importance[number][:, None]
            total = (off**2 * weighed).sum(0)
            better = total < least[number]
            least[number][better] = total[better]
            scales[number][better] = grid.scales[number][better]
            if offsets is not None and grid.offsets is not None:
                offsets[number][better] = grid.offsets[number][better]
    return Grid(scales, offsets)


def _grid(blocks: InBlocks, scheme: Scheme, part: float) -> Grid:
    """The grid that reaches a part of each block's range."""
    offsets = None
    if scheme.offset:
        least, most = blocks.min(1), blocks.max(1)
        scales = part * (most - least) / (2 * scheme.largest + 1)
    else:
        scales = part * np.abs(blocks).max(1) / scheme.largest
    scales = _stored(np.maximum(scales, _LEAST_SCALE), scheme)
    if scheme.offset:
        # The middle of the codes, half a step below 0, goes to the middle of the block's range.
        offsets = _stored((least + most) / 2 + scales / 2, scheme)
    return Grid(scales, offsets)


def _q4_0_grids(blocks: InBlocks, scheme: Scheme) -> list[Grid]:
    """Grids on which the weight furthest from 0 is 8 steps away, as in llama.cpp's Q4_0.

    Codes of 4 bits go from -8 to 7. A weight below 0 that is 8 steps away gets the code -8. One
    above 0 would need the code 8, so its block gets one of these, whichever the scheme has:

    - an offset of one step: codes then mean -7 to 8 steps;
    - a negative scale: the code -8 then means 8 steps up.

    A scheme with neither cuts that weight off at 7 steps. With 8 bits one more code gains next to
    nothing, so there are no such grids.
    """
    if scheme.bits != 4:
        return []
    least, most = blocks.min(1), blocks.max(1)
    above = most > -least
    scales = _stored(np.maximum(np.maximum(most, -least) / 8, _LEAST_SCALE), scheme)
    if scheme.offset:
        return [Grid(scales, np.where(above, scales, np.float32(0)))]
    return [Grid(np.where(above, -scales, scales) if scheme.negative_scales else scales, None)]


def _stored(values: Float32, scheme: Scheme) -> Float32:
    stored = values.astype(np.float16) if scheme.half else values
    return stored.astype(np.float32)
