"""Which weights a base has, and what its files call them.

They are those that its family lists, the embedding, and the head where it is not tied.
"""

from collections.abc import Mapping
from functools import lru_cache

from pl_compile.checkpoints.checkpoint import Checkpoint
from pl_compile.config.decoder import DecoderConfig
from pl_compile.families.family import Family
from pl_compile.families.names import EMBEDDING, HEAD
from pl_compile.families.registry import FAMILIES
from pl_compile.families.weights import Weight


# Called for each weight. A process has few configs: of one base, and of its ranks' parts.
@lru_cache(maxsize=16)
def weights_of(config: DecoderConfig) -> Mapping[str, Weight]:
    """Every weight that a base of this config has, by our name."""
    family, shape = FAMILIES[config.family], (config.vocab, config.hidden)
    weights = [Weight(EMBEDDING, shape, family.embedding), *family.weights(config)]
    if not config.tied:
        weights.append(Weight(HEAD, shape, family.head))
    return {weight.name: weight for weight in weights}


def weight_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every weight that a base of this config has, with its shape."""
    return {name: weight.shape for name, weight in weights_of(config).items()}


def stored_name(checkpoint: Checkpoint, family: Family, name: str) -> str:
    """A tensor's name in the files of a base; see `Weight.stored` for `name`.

    The published GPT-2s and all bare models have no prefix.
    """
    bare = name.removeprefix(family.prefix)
    return bare if name not in checkpoint.headers and bare in checkpoint.headers else name
