"""What a family of bases must say of itself; all that is true of one family stands in its file."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pl_compile.config.decoder import DecoderConfig
from pl_compile.families.blocks import Definition
from pl_compile.families.keys import Keys
from pl_compile.families.settings import Settings
from pl_compile.families.weights import Weight


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of bases; `registry.FAMILIES` has them by name.

    Attributes:
        name: `model_type` in config.json.
        title: what people call it.
        docs: its cell in the table of docs/importing.md: what is computed.
        keys: the keys of its config.json.
        read: its config.json, of which `keys` found no problem, as numbers.
        prefix: what stands before the names of all its tensors but the head's; bare models lack it.
        embedding: the tensor with a row for each token.
        head: the tensor of the head, where it is not the embedding.
        weights: its weights but embedding and head.
        without_effect: tensors, named without the prefix, that change nothing.
        definition: how it computes logits.
        attention_options: options that transformers gives its attention function, of those that
            change the numbers. Training refuses any other.
        fast_layers: classes of transformers' layers, each with the function of
            `training.frozen.layers` that computes the same.
        tiny: sizes for tests: arguments of transformers' config class. No two sizes are alike, so
            that a transposed axis cannot go unseen.
        tiny_blocks: what of these differs for kernels: widths are multiples of 32, heads of 16.
    """

    name: str
    title: str
    docs: str
    keys: Keys
    read: Callable[[Settings], DecoderConfig]
    prefix: str
    embedding: str
    head: str
    weights: Callable[[DecoderConfig], Iterable[Weight]]
    without_effect: re.Pattern[str]
    definition: Definition
    attention_options: frozenset[str]
    fast_layers: Mapping[str, str]
    tiny: Mapping[str, Any]
    tiny_blocks: Mapping[str, Any]
