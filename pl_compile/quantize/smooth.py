"""SmoothQuant (arXiv:2211.10438): what is hard to round moves from activations into weights.

A few channels of a decoder's activations are far larger than the others, and a row that is rounded
by one scale loses the rest. In `x @ W` channel j of x can be divided by any s_j if row j of W is
multiplied by it; whatever makes that channel does the division: the weight of the normalisation in
front, or the column of `up` in a gated MLP. In floats nothing changes but the last bits, and the
residual stream and the cache not even in those.

    s_j = sqrt(reach of x_j / reach of W_j)
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pl_compile.config.decoder import DecoderConfig

Float32 = NDArray[np.float32]

_LEAST = 1e-5


def smooth(
    weights: Mapping[str, Float32], reaches: Mapping[str, Float32], config: DecoderConfig
) -> dict[str, Float32]:
    """All weights of a base, the smoothed ones in place of the old.

    Args:
        weights: float32 arrays by our names.
        reaches: for products of the layers, by their first weight's name without ".weight", float32
            `[inputs]`: the largest absolute activation of each channel.
        config: the base.
    """
    smoothed = dict(weights)
    for i in range(config.layers):
        layer = f"layers.{i}"
        up = [part for part in ("gate", "up") if f"{layer}.mlp.{part}.weight" in weights]
        groups = [
            (f"{layer}.attention_norm", [f"{layer}.attention.{part}" for part in "qkv"]),
            (f"{layer}.mlp_norm", [f"{layer}.mlp.{part}" for part in up]),
        ]
        if "gate" in up:
            groups.append((f"{layer}.mlp.up", [f"{layer}.mlp.down"]))
        for maker, products in groups:
            reach = reaches.get(products[0])
            if reach is not None:
                _move(smoothed, maker, products, reach)
    return smoothed


def _move(weights: dict[str, Float32], maker: str, products: list[str], reach: Float32) -> None:
    names = [f"{product}.weight" for product in products]
    of_weights = np.max([np.abs(weights[name]).max(1) for name in names], 0)
    scale = np.sqrt(np.maximum(reach, _LEAST) / np.maximum(of_weights, _LEAST))
    scale = (scale / np.sqrt(scale.min() * scale.max())).astype(np.float32)  # around 1
    for name in names:
        weights[name] = weights[name] * scale[:, None]
    for part in ("weight", "bias"):
        if f"{maker}.{part}" in weights:
            weights[f"{maker}.{part}"] = weights[f"{maker}.{part}"] / scale
