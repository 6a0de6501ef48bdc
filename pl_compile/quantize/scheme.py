"""How weights become a few bits: symmetric integers that share a scale by blocks of inputs.

A weight is `[inputs, outputs]`. `codes * scale` stands for it, without a zero point, as TensorRT
wants it and as ONNX's DequantizeLinear computes it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pl_compile.errors import ExportError

Float32 = NDArray[np.float32]

# The scale of a block is tried at these parts of the one that reaches its largest weight: with few
# codes, a little less than everything in reach is a smaller error for the many that are smaller.
_TRIED = {4: np.linspace(0.7, 1.0, 7, dtype=np.float32), 8: np.ones(1, np.float32)}


@dataclass(frozen=True)
class Scheme:
    """A way to store weights.

    Attributes:
        bits: 4 or 8, of a signed code.
        block: how many inputs share a scale, for each output; 0 for all of them (by channel).
    """

    bits: Literal[4, 8]
    block: int

    @property
    def name(self) -> str:
        """As the command line writes it."""
        return f"int{self.bits}"

    def __str__(self) -> str:
        return f"{self.name}, {f'blocks of {self.block}' if self.block else 'by channel'}"

    @property
    def largest(self) -> int:
        """Codes reach from one less than minus this to this."""
        return int(2 ** (self.bits - 1) - 1)

    def block_of(self, inputs: int) -> int:
        """Inputs that share a scale in a weight of so many."""
        return self.block or inputs

    def check(self, name: str, inputs: int) -> None:
        """Raises `ExportError` unless blocks divide a weight's inputs."""
        if inputs % self.block_of(inputs):
            raise ExportError(
                f"quantising {name} to {self.name}",
                found=f"{inputs} inputs, blocks of {self.block}",
                expected="a block that divides the inputs",
                fix="Choose another --block, or 0 for one scale a channel.",
            )


@dataclass(frozen=True)
class Quantized:
    """A weight in a few bits.

    Attributes:
        codes: int8 `[inputs, outputs]`, in the reach of `scheme`.
        scales: float32 `[inputs / block, outputs]`, above 0.
        scheme: what it is stored in.
    """

    codes: NDArray[np.int8]
    scales: Float32
    scheme: Scheme

    def dequantized(self) -> Float32:
        """float32 `[inputs, outputs]`: what the codes stand for."""
        inputs, outputs = self.codes.shape
        blocks = self.codes.reshape(len(self.scales), -1, outputs)
        return (blocks * self.scales[:, None]).reshape(inputs, outputs).astype(np.float32)


def round_to_nearest(weight: Float32, scheme: Scheme) -> Quantized:
    """The codes nearest to a weight, with the scale of each block that gives the least error.

    Args:
        weight: float32 `[inputs, outputs]`.
        scheme: what to store it in; its blocks divide the inputs.
    """
    inputs, outputs = weight.shape
    blocks = weight.reshape(-1, scheme.block_of(inputs), outputs)
    scales = best_scales(blocks, scheme)
    codes = codes_of(blocks, scales[:, None], scheme)
    return Quantized(codes.reshape(inputs, outputs), scales, scheme)


def best_scales(blocks: Float32, scheme: Scheme, importance: Float32 | None = None) -> Float32:
    """The scale of each block with the smallest squared error.

    Args:
        blocks: float32 `[blocks, block, outputs]`.
        scheme: what to store them in.
        importance: float32 `[blocks, block]`: how much an error of each input counts; alike if
            None.

    Returns:
        float32 `[blocks, outputs]`.
    """
    reach = np.maximum(np.abs(blocks).max(1), 1e-12) / scheme.largest
    best, least = reach, np.full(reach.shape, np.inf, np.float32)
    for part in _TRIED[scheme.bits]:
        scales = reach * part
        error = (codes_of(blocks, scales[:, None], scheme) * scales[:, None] - blocks) ** 2
        total = error.sum(1) if importance is None else np.einsum("bko,bk->bo", error, importance)
        better = total < least
        best, least = np.where(better, scales, best), np.where(better, total, least)
    scaled: Float32 = best.astype(np.float32)
    return scaled


def codes_of(weight: Float32, scales: Float32, scheme: Scheme) -> NDArray[np.int8]:
    """The nearest codes, int8, in the shape of `weight`; `scales` is broadcast to it."""
    nearest = np.rint(weight / scales)
    codes: NDArray[np.int8] = np.clip(nearest, -scheme.largest - 1, scheme.largest).astype(np.int8)
    return codes
