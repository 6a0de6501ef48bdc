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

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pl_compile.checkpoints.checkpoint import Checkpoint
from pl_compile.config.decoder import DEQUANTIZE, DecoderConfig
from pl_compile.config.floats import EXPECTED, FLOATS
from pl_compile.errors import BaseModelError, list_problems

Weights = dict[str, NDArray[np.float32]]

# The two whose rows are the vocabulary's.
TABLES = ("embedding.weight", "head.weight")

_HEAD = "lm_head.weight"
_EMBEDDINGS = {"llama": "model.embed_tokens.weight", "gpt2": "transformer.wte.weight"}
_PREFIXES = {"llama": "model.", "gpt2": "transformer."}

# Tensors that older releases saved beside the weights: the rotary frequencies, which are computed
# from the config, and the causal mask. And, of both, the head of a classifier ("score.weight").
_WITHOUT_EFFECT = {
    "llama": re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"),
    "gpt2": re.compile(r"h\.\d+\.attn\.(masked_)?bias"),
}

# In what causal masks are stored, where not as floats.
_MASKS = ("BOOL", "U8")

# How tensors end that belong to quantised weights: of bitsandbytes, GPTQ and AWQ, FP8 and
# compressed-tensors. No weight of a family ends so.
_OF_CODES = (
    ".SCB",
    ".absmax",
    ".g_idx",
    ".input_scale",
    ".nested_absmax",
    ".nested_quant_map",
    ".quant_map",
    ".qweight",
    ".qzeros",
    ".scales",
    ".weight_format",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_zero_point",
)

# How many rows of two tables are compared at a time.
_ROWS = 1024


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

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the tensor that has a weight of this shape."""
        if self.third is not None:
            shape = (*shape[:-1], 3 * shape[-1])
        return shape[::-1] if self.transposed else shape


def load_weights(checkpoint: Checkpoint, config: DecoderConfig) -> Weights:
    """All weights, under our names, of a base that `check_tensors` took: float32.

    Tensors are asked for in the order of their names, as a `FingerprintedCheckpoint` sums them.
    """
    stored = {
        ours: replace(source, name=_stored_name(checkpoint, config, source.name))
        for ours, source in _sources(config).items()
    }
    in_order = sorted(stored, key=lambda ours: stored[ours].name)
    return {ours: stored[ours].read(checkpoint) for ours in in_order}


def load_weight(checkpoint: Checkpoint, config: DecoderConfig, name: str) -> NDArray[np.float32]:
    """One weight, under our name, of a base that `check_tensors` took: float32."""
    source = _sources(config)[name]
    stored = _stored_name(checkpoint, config, source.name)
    return replace(source, name=stored).read(checkpoint)


def check_tensors(checkpoint: Checkpoint, config: DecoderConfig) -> None:
    """Accounts for every tensor of a base: it is read, has no effect, or is refused.

    No number is read, but where a base has one table twice.

    Raises:
        BaseModelError: tensors that are missing, have another shape than the config says, hold
            something else than floats, or are none of this family's.
    """
    doing = f"reading the weights of {checkpoint.folder}"
    headers = checkpoint.headers
    codes = [
        f"'{name}' ({header.kind})"
        for name, header in headers.items()
        if name.endswith(_OF_CODES)
        or header.kind not in (*FLOATS.values(), *(_MASKS if _has_no_effect(name, config) else ()))
    ]
    if codes:
        raise BaseModelError(
            doing,
            found=f"tensors of codes ({len(codes)}): {', '.join(sorted(codes)[:3])}"
            + (", …" if len(codes) > 3 else ""),
            expected=EXPECTED,
            fix=DEQUANTIZE,
        )
    if config.layers > len(headers):
        # A table of so many layers would fill the memory.
        raise BaseModelError(
            doing,
            found=f"{len(headers)} tensors",
            expected=f"those of {config.layers} layers, as config.json says",
        )
    _check_prefix(checkpoint, config)
    problems, read = [], set()
    shapes = weight_shapes(config)
    for ours, source in _sources(config).items():
        name = _stored_name(checkpoint, config, source.name)
        read.add(name)
        if name not in headers:
            why = ", and config.json does not tie the head to the embedding" * (name == _HEAD)
            problems.append(f"'{name}' is missing{why}")
        elif headers[name].shape != (expected := source.stored_shape(shapes[ours])):
            problems.append(f"'{name}' is {headers[name].shape}, expected {expected}")
    problems += [
        f"'{name}' is no tensor of this base as config.json describes it"
        for name in checkpoint.names
        if name not in read and not _has_no_effect(name, config) and name != _HEAD
    ]
    if problems:
        problems = list(dict.fromkeys(problems))  # q, k and v of GPT-2 are one tensor
        raise BaseModelError(doing, found=list_problems(problems))
    if config.tied and _HEAD in headers:
        _check_tied(checkpoint, _stored_name(checkpoint, config, _EMBEDDINGS[config.family]))


def _check_prefix(checkpoint: Checkpoint, config: DecoderConfig) -> None:
    """Raises where all tensors have the names of this family, with something before them."""
    embedding = _EMBEDDINGS[config.family].removeprefix(_PREFIXES[config.family])
    prefixes = [
        name.removesuffix(embedding).removesuffix(_PREFIXES[config.family])
        for name in checkpoint.names
        if name.endswith(f".{embedding}")
    ]
    for prefix in filter(None, prefixes):
        if all(name.startswith(prefix) for name in checkpoint.names):
            raise BaseModelError(
                f"reading the weights of {checkpoint.folder}",
                found=f"'{prefix}' before the names of all tensors: something that holds the model "
                "was saved",
                expected=f"names such as '{_EMBEDDINGS[config.family]}'",
                fix="Save the model itself: of PEFT's, merge_and_unload(); of a data-parallel "
                "model, model.module; of a compiled one, model._orig_mod.",
            )


def _check_tied(checkpoint: Checkpoint, embedding: str) -> None:
    """Raises unless the head that a file has is the embedding, to which config.json ties it."""
    vocab, _ = shape = checkpoint.headers[embedding].shape
    same = checkpoint.headers[_HEAD].shape == shape and all(
        _is_same(checkpoint.rows(_HEAD, rows), checkpoint.rows(embedding, rows))
        for rows in (slice(row, min(row + _ROWS, vocab)) for row in range(0, vocab, _ROWS))
    )
    if not same:
        raise BaseModelError(
            f"reading the weights of {checkpoint.folder}",
            found=f"'{_HEAD}' is another table than '{embedding}', and config.json ties the two",
            expected="one table, or tie_word_embeddings false",
            fix="Set tie_word_embeddings in config.json to what the base was trained with; if they "
            f"were tied, take '{_HEAD}' out.",
        )


def _is_same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays hold the same numbers, whatever types they are stored in."""
    # Asked each time a base is opened; most are the same bytes, which is seen without a copy.
    if one.dtype == other.dtype and np.array_equal(one.view(np.uint8), other.view(np.uint8)):
        return True
    return np.array_equal(one.astype(np.float32), other.astype(np.float32))


def _stored_name(checkpoint: Checkpoint, config: DecoderConfig, name: str) -> str:
    """A tensor's name in these files: the published GPT-2s, and all bare models, have no prefix."""
    bare = name.removeprefix(_PREFIXES[config.family])
    return bare if name not in checkpoint.headers and bare in checkpoint.headers else name


def _has_no_effect(name: str, config: DecoderConfig) -> bool:
    bare = name.removeprefix(_PREFIXES[config.family])
    return name == "score.weight" or _WITHOUT_EFFECT[config.family].fullmatch(bare) is not None


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
        sources["head.weight"] = _Source(_HEAD)
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
