"""One name and one layout for every weight, whatever family's checkpoint it comes from.

In: a `Checkpoint` and its `DecoderConfig`. Out: `{our name: float32 array}`. A matrix that
multiplies activations is `[in, out]`; the embedding and the head are `[vocab, hidden]`. The tables
below are the whole knowledge about the families' own names.

    embedding.weight                      [vocab, hidden]
    positions.weight                      [positions, hidden]       gpt2
    layers.{i}.attention_norm.weight      [hidden]                  and .bias in gpt2
    layers.{i}.attention.{q,k,v}.weight   [hidden, heads*head_dim]  and .bias where the base has one
    layers.{i}.attention.o.weight         [heads*head_dim, hidden]
    layers.{i}.mlp_norm.weight            [hidden]
    layers.{i}.mlp.{gate,up}.weight       [hidden, ffn]             no gate in gpt2
    layers.{i}.mlp.down.weight            [ffn, hidden]
    final_norm.weight                     [hidden]
    head.weight                           [vocab, hidden]           only where it is not tied
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pl_compile.config.decoder import DecoderConfig
from pl_compile.errors import BaseModelError, list_problems
from pl_compile.weights.checkpoint import Checkpoint

Weights = dict[str, NDArray[np.float32]]

# The two whose rows are the vocabulary's.
TABLES = ("embedding.weight", "head.weight")


@dataclass(frozen=True)
class _Source:
    """Where one of our weights is found: a tensor, transposed or not, and a third of it or all."""

    name: str
    transposed: bool = False
    third: int | None = None

    def read(self, checkpoint: Checkpoint) -> NDArray[np.float32]:
        array = np.asarray(checkpoint.tensor(self.name), np.float32)
        if self.third is not None:
            array = np.split(array, 3, axis=-1)[self.third]
        return np.ascontiguousarray(array.T if self.transposed else array)


def load_weights(checkpoint: Checkpoint, config: DecoderConfig) -> Weights:
    """All weights of a base under our names, float32.

    Raises:
        BaseModelError: tensors are missing or have another shape than the config says.
    """
    weights: Weights = {}
    problems = []
    for name in _sources(config):
        try:
            weights[name] = load_weight(checkpoint, config, name)
        except _UnfitError as error:
            problems.append(error.found)
    if problems:
        raise BaseModelError(_reading(checkpoint), found=list_problems(problems))
    return weights


def load_weight(checkpoint: Checkpoint, config: DecoderConfig, name: str) -> NDArray[np.float32]:
    """One weight of a base under our name, float32.

    Raises:
        BaseModelError: its tensor is missing or has another shape than the config says.
    """
    source, shape = _sources(config)[name], weight_shapes(config)[name]
    stored = checkpoint.names
    # The published GPT-2 files leave out the prefix that a model with a head saves.
    theirs = source.name if source.name in stored else source.name.partition(".")[2]
    if theirs not in stored:
        raise _UnfitError(_reading(checkpoint), found=f"'{source.name}' is missing")
    array = replace(source, name=theirs).read(checkpoint)
    if array.shape != shape:
        found = f"'{theirs}' gives {name} {array.shape}, expected {shape}"
        raise _UnfitError(_reading(checkpoint), found=found)
    return array


class _UnfitError(BaseModelError):
    """A tensor that is not what the config says."""


def _reading(checkpoint: Checkpoint) -> str:
    return f"reading the weights of {checkpoint.folder}"


def weight_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every weight that a base of this config has, with its shape."""
    shapes = _shapes(config)
    return {
        name: shapes[name.split(".", 2)[-1] if name.startswith("layers.") else name]
        for name in _sources(config)
    }


def _sources(config: DecoderConfig) -> dict[str, _Source]:
    sources = dict(_FAMILIES[config.family](config))
    if not config.tied:
        sources["head.weight"] = _Source("lm_head.weight")
    return sources


def _shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every weight; those of a layer without their "layers.{i}."."""
    hidden, ffn = config.hidden, config.ffn
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    matrices = {
        "attention.q": (hidden, queries),
        "attention.k": (hidden, keys),
        "attention.v": (hidden, keys),
        "attention.o": (queries, hidden),
        "mlp.gate": (hidden, ffn),
        "mlp.up": (hidden, ffn),
        "mlp.down": (ffn, hidden),
    }
    norms = ("attention_norm", "mlp_norm", "final_norm")
    return {
        "embedding.weight": (config.vocab, hidden),
        "positions.weight": (config.positions, hidden),
        "head.weight": (config.vocab, hidden),
        **{f"{name}.weight": shape for name, shape in matrices.items()},
        **{f"{name}.bias": shape[1:] for name, shape in matrices.items()},
        **{f"{name}.{part}": (hidden,) for name in norms for part in ("weight", "bias")},
    }


def _llama(config: DecoderConfig) -> Iterator[tuple[str, _Source]]:
    yield "embedding.weight", _Source("model.embed_tokens.weight")
    yield "final_norm.weight", _Source("model.norm.weight")
    for i in range(config.layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        yield f"{ours}.attention_norm.weight", _Source(f"{theirs}.input_layernorm.weight")
        yield f"{ours}.mlp_norm.weight", _Source(f"{theirs}.post_attention_layernorm.weight")
        for part in "qkvo":
            name = f"{theirs}.self_attn.{part}_proj"
            yield f"{ours}.attention.{part}.weight", _Source(f"{name}.weight", transposed=True)
            if config.attention_bias:
                yield f"{ours}.attention.{part}.bias", _Source(f"{name}.bias")
        for part in ("gate", "up", "down"):
            name = f"{theirs}.mlp.{part}_proj"
            yield f"{ours}.mlp.{part}.weight", _Source(f"{name}.weight", transposed=True)
            if config.mlp_bias:
                yield f"{ours}.mlp.{part}.bias", _Source(f"{name}.bias")


def _gpt2(config: DecoderConfig) -> Iterator[tuple[str, _Source]]:
    yield "embedding.weight", _Source("transformer.wte.weight")
    yield "positions.weight", _Source("transformer.wpe.weight")
    for part in ("weight", "bias"):
        yield f"final_norm.{part}", _Source(f"transformer.ln_f.{part}")
        for i in range(config.layers):
            ours, theirs = f"layers.{i}", f"transformer.h.{i}"
            yield f"{ours}.attention_norm.{part}", _Source(f"{theirs}.ln_1.{part}")
            yield f"{ours}.mlp_norm.{part}", _Source(f"{theirs}.ln_2.{part}")
            for third, name in enumerate("qkv"):
                source = _Source(f"{theirs}.attn.c_attn.{part}", third=third)
                yield f"{ours}.attention.{name}.{part}", source
            yield f"{ours}.attention.o.{part}", _Source(f"{theirs}.attn.c_proj.{part}")
            yield f"{ours}.mlp.up.{part}", _Source(f"{theirs}.mlp.c_fc.{part}")
            yield f"{ours}.mlp.down.{part}", _Source(f"{theirs}.mlp.c_proj.{part}")


_FAMILIES: dict[str, Callable[[DecoderConfig], Iterator[tuple[str, _Source]]]] = {
    "llama": _llama,
    "gpt2": _gpt2,
}
