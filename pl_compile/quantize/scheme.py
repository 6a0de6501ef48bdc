"""How weights become a few bits: signed integers that share a scale by blocks of inputs.

A weight is `[inputs, outputs]`. `codes * scale` stands for it, without a zero point, as TensorRT
wants it and as ONNX's DequantizeLinear computes it; or `codes * scale + low`, where a scheme has
offsets: then a block of weights that lie on a line of 16 steps (llama.cpp's Q4_1, which many small
bases were published in) is kept as it is. So is one whose furthest weight is the eighth step from 0
(Q4_0), also without offsets where a scale may be below 0.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from pl_compile.errors import ExportError
from pl_compile.shapes import Float32, Int8, Shape

Matrix = Annotated[Float32, Shape("inputs outputs")]
InBlocks = Annotated[Float32, Shape("blocks block outputs")]
OfBlocks = Annotated[Float32, Shape("blocks outputs")]

# The smallest number above 0 that float16 has: no scale is less, since some target rounds them so.
_LEAST_SCALE = 6e-8

# A weight none of whose blocks changes by more than this part of its own norm has lost nothing. An
# offset that has to be rounded to float16 changes a block by up to 1.4e-3: by 2^-11 of itself, in
# each of 32 numbers, where one of them is so large that half of it is the offset (the default base
# has two such blocks, at 1.0e-3 and 1.2e-3). Codes that are too few change the blocks of an
# ordinary weight by 5e-3 (8 bits) or 8e-2 (4 bits), and one whose weights are all equally large,
# which loses least, by 2.3e-3 (8 bits).
LOSSLESS = 2e-3

# The grid of a block is tried at these parts of the one that reaches its largest weight: with few
# codes, a little less than everything in reach is a smaller error for the many that are smaller.
_TRIED = {4: np.linspace(0.7, 1.0, 7, dtype=np.float32), 8: np.ones(1, np.float32)}


# What to do about blocks that do not divide a weight, where a target takes any.
OTHER_BLOCKS = "Choose another --block, or 0 for one scale a channel."


@dataclass(frozen=True)
class Scheme:
    """A way to store weights.

    Attributes:
        bits: 4 or 8, of a signed code.
        block: how many inputs share a scale, for each output; 0 for all of them (by channel).
        offset: whether each block has an offset too.
        half: whether scales and offsets are rounded to float16.
        signed: whether a scale may be below 0: TensorRT allows none.
    """

    bits: Literal[4, 8]
    block: int
    offset: bool = False
    half: bool = False
    signed: bool = False

    @property
    def name(self) -> str:
        """As the command line writes it."""
        return f"int{self.bits}"

    def __str__(self) -> str:
        blocks = f"blocks of {self.block}" if self.block else "by channel"
        return f"{self.name}, {blocks}{' with offsets' if self.offset else ''}"

    @property
    def largest(self) -> int:
        """Codes reach from one less than minus this to this."""
        return int(2 ** (self.bits - 1) - 1)

    def block_of(self, inputs: int) -> int:
        """Inputs that share a scale in a weight of so many."""
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
    """What the codes of some blocks stand for.

    Attributes:
        scales: float32 `[blocks, outputs]`, above 0; or below, where a scheme is signed.
        lows: offsets, float32 `[blocks, outputs]`; None where a scheme has none.
    """

    scales: OfBlocks
    lows: OfBlocks | None

    def codes(
        self, weight: Annotated[Float32, Shape("... outputs")], block: int, scheme: Scheme
    ) -> Annotated[Int8, Shape("... outputs")]:
        """The codes nearest to a block's weights.

        Args:
            weight: float32 `[..., outputs]`, all of one block.
            block: which.
            scheme: what to store them in.
        """
        centred = weight if self.lows is None else weight - self.lows[block]
        nearest = np.rint(centred / self.scales[block])
        within = np.clip(nearest, -scheme.largest - 1, scheme.largest)
        codes: Int8 = within.astype(np.int8)
        return codes

    def values(
        self, codes: Annotated[Int8, Shape("... outputs")], block: int
    ) -> Annotated[Float32, Shape("... outputs")]:
        """float32 of the shape of `codes`, all of one block: what they stand for."""
        values: Float32 = codes * self.scales[block]
        return values if self.lows is None else values + self.lows[block]


@dataclass(frozen=True)
class Quantized:
    """A weight in a few bits.

    Attributes:
        codes: int8 `[inputs, outputs]`, in the reach of `scheme`.
        grid: scales and offsets of its blocks.
        scheme: what it is stored in.
    """

    codes: Annotated[Int8, Shape("inputs outputs")]
    grid: Grid
    scheme: Scheme

    def dequantized(self) -> Matrix:
        """float32 `[inputs, outputs]`: what the codes stand for."""
        inputs, outputs = self.codes.shape
        blocks = self.codes.reshape(len(self.grid.scales), -1, outputs)
        values = blocks * self.grid.scales[:, None]
        if self.grid.lows is not None:
            values = values + self.grid.lows[:, None]
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
    """`block_error` where each block's grid reaches all of its weights: a quick try.

    `round_to_nearest` tries these grids among others, so its error is never more.

    Args:
        weight: float32 `[inputs, outputs]`.
        scheme: what to store it in; its blocks divide the inputs.
    """
    inputs, outputs = weight.shape
    blocks = weight.reshape(-1, scheme.block_of(inputs), outputs)
    grids = [_grid(blocks, scheme, 1.0), *_grids_of_all_codes(blocks, scheme)]
    return min(block_error(weight, _on_grid(blocks, grid, scheme)) for grid in grids)


def relative_error(weight: Matrix, quantized: Quantized) -> float:
    """The norm of what storing a weight changed, as a part of the weight's own."""
    changed = np.linalg.norm(quantized.dequantized() - weight)
    return float(changed / max(1e-12, float(np.linalg.norm(weight))))


def block_error(weight: Matrix, quantized: Quantized) -> float:
    """The largest change of a block, as a part of the block's own norm.

    Beside one block of large weights, the whole weight's norm would hide what all others lose.
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
        importance: float32 `[blocks, block]`: how much an error of each input counts; alike if
            None.
    """
    tried = [_grid(blocks, scheme, part) for part in _TRIED[scheme.bits]]
    tried += _grids_of_all_codes(blocks, scheme)
    best = tried[0]
    least = np.full(best.scales.shape, np.inf, np.float32)
    scales, lows = best.scales.copy(), None if best.lows is None else best.lows.copy()
    for grid in tried:
        for number, block in enumerate(blocks):
            off = grid.values(grid.codes(block, number, scheme), number) - block
            weighed = 1.0 if importance is None else importance[number][:, None]
            total = (off**2 * weighed).sum(0)
            better = total < least[number]
            least[number][better] = total[better]
            scales[number][better] = grid.scales[number][better]
            if lows is not None and grid.lows is not None:
                lows[number][better] = grid.lows[number][better]
    return Grid(scales, lows)


def _grid(blocks: InBlocks, scheme: Scheme, part: float) -> Grid:
    """The grid that reaches a part of each block's range."""
    lows = None
    if scheme.offset:
        least, most = blocks.min(1), blocks.max(1)
        scales = part * (most - least) / (2 * scheme.largest + 1)
    else:
        scales = part * np.abs(blocks).max(1) / scheme.largest
    scales = _stored(np.maximum(scales, _LEAST_SCALE), scheme)
    if scheme.offset:
        # The middle of the codes' reach, which is half a step below 0, is put on the range's.
        lows = _stored((least + most) / 2 + scales / 2, scheme)
    return Grid(scales, lows)


def _grids_of_all_codes(blocks: InBlocks, scheme: Scheme) -> list[Grid]:
    """The grid on which the weight furthest from 0 is 8 steps away, as in llama.cpp's Q4_0.

    Only the lowest code is so far from 0. Where that weight is above 0, codes count downwards; or,
    without scales below 0, all steps are one higher; or else it is the seventh step, too short.
    With 8 bits there is next to nothing in it.
    """
    if scheme.bits != 4:
        return []
    least, most = blocks.min(1), blocks.max(1)
    above = most > -least
    scales = _stored(np.maximum(np.maximum(most, -least) / 8, _LEAST_SCALE), scheme)
    if scheme.offset:
        return [Grid(scales, np.where(above, scales, np.float32(0)))]
    return [Grid(np.where(above, -scales, scales) if scheme.signed else scales, None)]


def _stored(values: Float32, scheme: Scheme) -> Float32:
    stored = values.astype(np.float16) if scheme.half else values
    return stored.astype(np.float32)
