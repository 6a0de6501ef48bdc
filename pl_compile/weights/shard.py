"""The weights of one rank."""

import numpy as np

from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.ranks import Shard
from pl_compile.weights.listed import weights_of
from pl_compile.weights.load import WeightArray, Weights


def shard_weights(weights: Weights, config: DecoderConfig, shard: Shard) -> Weights:
    """A rank's part of each weight, as its `Cut` says; all of a weight that has none.

    Args:
        weights: float32 arrays by our names.
        config: of the whole base.
        shard: the rank's part.
    """
    if shard.ranks == 1:
        return weights
    return {name: _part(name, array, config, shard) for name, array in weights.items()}


def rows_of(name: str, config: DecoderConfig, shard: Shard) -> slice:
    """The rows of a weight that a rank holds.

    Args:
        name: our name. Any other is the name of weights that a pass merged. They are divided along
            their columns (those of queries, keys and values, say), and a rank has all their rows.
        config: of the whole base.
        shard: the rank's part.
    """
    weight = weights_of(config).get(name)
    cut = weight and weight.cut
    return shard.slice_of(cut.divided, config) if cut and cut.axis == 0 else slice(None)


def _part(name: str, array: WeightArray, config: DecoderConfig, shard: Shard) -> WeightArray:
    cut = weights_of(config)[name].cut
    if cut is None:
        return array
    part = [slice(None)] * array.ndim
    part[cut.axis] = shard.slice_of(cut.divided, config)
    return np.ascontiguousarray(array[tuple(part)])
