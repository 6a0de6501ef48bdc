"""The weights of one rank."""

import numpy as np
from numpy.typing import NDArray

from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.ranks import Shard
from pl_compile.weights.names import Weights


def shard_weights(weights: Weights, config: DecoderConfig, shard: Shard) -> Weights:
    """What a rank holds of each weight.

    Columns of q, k, v, gate and up with their biases, rows of o and down; anything else whole, the
    biases of o and down too: they are added to the sum over all ranks.

    Args:
        weights: float32 arrays by our names.
        config: of the whole base.
        shard: the rank's part.
    """
    if shard.ranks == 1:
        return weights
    return {name: _part(name, array, config, shard) for name, array in weights.items()}


def rows_of(name: str, config: DecoderConfig, shard: Shard) -> slice:
    """The rows of a weight of the layers that a rank holds."""
    if name.endswith(".attention.o.weight"):
        return _query_columns(config, shard)
    if name.endswith(".mlp.down.weight"):
        return slice(shard.ffn.start, shard.ffn.stop)
    return slice(None)


def _part(
    name: str, array: NDArray[np.float32], config: DecoderConfig, shard: Shard
) -> NDArray[np.float32]:
    layer, _, kind = name.rpartition(".")
    part = layer.rpartition(".")[2]
    if not name.startswith("layers.") or part in ("attention_norm", "mlp_norm"):
        return array
    if part in ("o", "down"):
        return (
            array if kind == "bias" else np.ascontiguousarray(array[rows_of(name, config, shard)])
        )
    columns = {
        "q": _query_columns(config, shard),
        "k": _key_columns(config, shard),
        "v": _key_columns(config, shard),
        "gate": slice(shard.ffn.start, shard.ffn.stop),
        "up": slice(shard.ffn.start, shard.ffn.stop),
    }[part]
    return np.ascontiguousarray(array[..., columns])


def _key_columns(config: DecoderConfig, shard: Shard) -> slice:
    width = config.head_dim
    return slice(shard.kv_heads.start * width, shard.kv_heads.stop * width)


def _query_columns(config: DecoderConfig, shard: Shard) -> slice:
    width = config.head_dim * (config.heads // config.kv_heads)
    return slice(shard.kv_heads.start * width, shard.kv_heads.stop * width)
