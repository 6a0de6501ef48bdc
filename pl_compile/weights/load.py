"""A base's weights under our names (`families.names`), as float32.

In: a `Checkpoint` and its `DecoderConfig`. Out: `{our name: float32 array}`.
"""

from typing import Annotated

import numpy as np

from pl_compile.checkpoints.checkpoint import Checkpoint
from pl_compile.config.decoder import DecoderConfig
from pl_compile.families.registry import FAMILIES
from pl_compile.families.weights import Weight
from pl_compile.shapes import Float32, Shape
from pl_compile.weights.listed import stored_name, weights_of

# A weight under our name; `families.names` has the shape of each.
WeightArray = Annotated[Float32, Shape("...")]
Weights = dict[str, WeightArray]


def load_weights(checkpoint: Checkpoint, config: DecoderConfig) -> Weights:
    """All weights of a base that `check_tensors` accepted, under our names: float32.

    Tensors are asked for in the order of their names, as a `FingerprintedCheckpoint` sums them.
    """
    family, weights = FAMILIES[config.family], weights_of(config).values()
    stored = [(stored_name(checkpoint, family, weight.stored), weight) for weight in weights]
    in_order = sorted(stored, key=lambda pair: pair[0])
    return {weight.name: _read(checkpoint, name, weight) for name, weight in in_order}


def load_weight(checkpoint: Checkpoint, config: DecoderConfig, name: str) -> WeightArray:
    """One weight of a base that `check_tensors` accepted, by our name: float32."""
    weight = weights_of(config)[name]
    return _read(
        checkpoint, stored_name(checkpoint, FAMILIES[config.family], weight.stored), weight
    )


def _read(checkpoint: Checkpoint, name: str, weight: Weight) -> WeightArray:
    """A weight, which the files call `name`."""
    stored = checkpoint.tensor(name)
    return np.ascontiguousarray(weight.form.from_stored(np.asarray(stored, np.float32)))
