"""Accounts for every tensor of a base: it is one of its weights, has no effect, or is refused."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pl_compile.checkpoints.checkpoint import Checkpoint
from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.floats import EXPECTED_FLOATS, FLOATS
from pl_compile.errors import BaseModelError, list_problems
from pl_compile.families.family import Family
from pl_compile.families.names import HEAD
from pl_compile.families.read import DEQUANTIZE
from pl_compile.families.registry import FAMILIES
from pl_compile.weights.listed import stored_name, weights_of

# The head of a classifier, which transformers saves beside the weights of any family.
_CLASSIFIER = "score.weight"

# The types that causal masks are stored in, besides floats.
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


def check_tensors(checkpoint: Checkpoint, config: DecoderConfig) -> None:
    """Raises unless all tensors of a base are its weights or have no effect, and none is missing.

    Numbers are read only where a base stores one table twice.

    Raises:
        BaseModelError: tensors that are missing, have another shape than the config says, hold
            something else than floats, or are unknown in this family.
    """
    doing = f"reading the weights of {checkpoint.folder}"
    headers, family = checkpoint.headers, FAMILIES[config.family]
    codes = [
        f"'{name}' ({header.kind})"
        for name, header in headers.items()
        if name.endswith(_OF_CODES)
        or header.kind not in (*FLOATS.values(), *(_MASKS if _has_no_effect(name, family) else ()))
    ]
    if codes:
        raise BaseModelError(
            doing,
            found=f"tensors of codes ({len(codes)}): {', '.join(sorted(codes)[:3])}"
            + (", …" if len(codes) > 3 else ""),
            expected=EXPECTED_FLOATS,
            fix=DEQUANTIZE,
        )
    if config.layers > len(headers):
        # The names of so many layers would fill the memory.
        raise BaseModelError(
            doing,
            found=f"{len(headers)} tensors",
            expected=f"those of {config.layers} layers, as config.json says",
        )
    _check_prefix(checkpoint, family)
    problems, read = [], set()
    for weight in weights_of(config).values():
        name = stored_name(checkpoint, family, weight.stored)
        read.add(name)
        if name not in headers:
            why = ", and config.json does not tie the head to the embedding"
            problems.append(f"'{name}' is missing{why * (weight.name == HEAD)}")
        elif headers[name].shape != (expected := weight.form.stored_shape(weight.shape)):
            problems.append(f"'{name}' is {headers[name].shape}, expected {expected}")
    problems += [
        f"'{name}' is not a tensor of this base as config.json describes it"
        for name in checkpoint.names
        if name not in read and not _has_no_effect(name, family) and name != family.head
    ]
    if problems:
        problems = list(dict.fromkeys(problems))  # several weights may be parts of one tensor
        raise BaseModelError(doing, found=list_problems(problems))
    if config.tied and family.head in headers:
        _check_tied(checkpoint, family.head, stored_name(checkpoint, family, family.embedding))


def _check_prefix(checkpoint: Checkpoint, family: Family) -> None:
    """Raises where all names of tensors are this family's with a prefix before them."""
    embedding = family.embedding.removeprefix(family.prefix)
    prefixes = [
        name.removesuffix(embedding).removesuffix(family.prefix)
        for name in checkpoint.names
        if name.endswith(f".{embedding}")
    ]
    for prefix in filter(None, prefixes):
        if all(name.startswith(prefix) for name in checkpoint.names):
            raise BaseModelError(
                f"reading the weights of {checkpoint.folder}",
                found=f"'{prefix}' before the names of all tensors: a wrapper around the model "
                "was saved",
                expected=f"names such as '{family.embedding}'",
                fix="Save the model itself: of PEFT's, merge_and_unload(); of a data-parallel "
                "model, model.module; of a compiled one, model._orig_mod.",
            )


def _check_tied(checkpoint: Checkpoint, head: str, embedding: str) -> None:
    """Raises unless the LM head in the file equals the embedding, as config.json says."""
    vocab, _ = shape = checkpoint.headers[embedding].shape
    same = checkpoint.headers[head].shape == shape and all(
        _is_same(checkpoint.rows(head, rows), checkpoint.rows(embedding, rows))
        for rows in (slice(row, min(row + _ROWS, vocab)) for row in range(0, vocab, _ROWS))
    )
    if not same:
        raise BaseModelError(
            f"reading the weights of {checkpoint.folder}",
            found=f"'{head}' differs from '{embedding}', and config.json ties the two",
            expected="one table, or tie_word_embeddings false",
            fix="Set tie_word_embeddings in config.json to what the base was trained with; if they "
            f"were tied, take '{head}' out.",
        )


def _is_same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays hold the same numbers, in any types."""
    # Done each time a base is opened. Most are equal bytes, which is checked without a copy.
    if one.dtype == other.dtype and np.array_equal(one.view(np.uint8), other.view(np.uint8)):
        return True
    return np.array_equal(one.astype(np.float32), other.astype(np.float32))


def _has_no_effect(name: str, family: Family) -> bool:
    bare = name.removeprefix(family.prefix)
    return name == _CLASSIFIER or family.without_effect.fullmatch(bare) is not None
