"""What a family says of a weight: our name and shape, where files have it, how ranks divide it.

`families.names` lists our names. A family yields one `Weight` for each of its weights but the
embedding and the head, which all families have. `product_weights`, `rms_norm_weight` and
`layer_norm_weights` make the usual ones.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.ranks import Divided
from pl_compile.shapes import Float32

# The lengths of an array's axes.
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """How a checkpoint stores a weight.

    Attributes:
        from_stored: our weight of a stored tensor; both float32.
        stored_shape: the tensor's shape, of our weight's shape.
    """

    from_stored: Callable[[Float32], Float32]
    stored_shape: Callable[[Sizes], Sizes]


AS_IS = Form(lambda array: array, lambda shape: shape)
TRANSPOSED = Form(lambda array: array.T, lambda shape: shape[::-1])


def third(index: int) -> Form:
    """A third of a tensor's columns: queries, keys and values lie side by side in it."""
    return Form(
        lambda array: np.split(array, 3, axis=-1)[index],
        lambda shape: (*shape[:-1], 3 * shape[-1]),
    )


@dataclass(frozen=True)
class Cut:
    """How ranks divide a weight.

    Attributes:
        axis: 0 for the rows of a matrix: each rank then computes a term of a sum, so that its
            product must be `Blocks.row_parallel`. -1 for the columns of a matrix, and for a bias.
        divided: what of the base lies along that axis.
    """

    axis: Literal[0, -1]
    divided: Divided


@dataclass(frozen=True)
class Weight:
    """A weight of a base.

    Attributes:
        name: ours.
        shape: ours, of the whole base.
        stored: the tensor's name in a checkpoint.
        form: how it lies there.
        cut: how ranks divide it; None where each rank has it whole.
    """

    name: str
    shape: Sizes
    stored: str
    form: Form = AS_IS
    cut: Cut | None = None


@dataclass(frozen=True)
class Biases:
    """Which products of a layer have biases.

    Attributes:
        attention_bias: q, k, v and the attention's output.
        mlp_bias: those of the feed-forward part.
    """

    attention_bias: bool
    mlp_bias: bool


def product_weights(
    config: DecoderConfig, name: str, stored: str, form: Form, *, bias: bool
) -> Iterator[Weight]:
    """The weight of a product of a layer, and its bias.

    Columns of q, k, v, gate and up are divided with their biases; so are the rows of o and down,
    whose biases are added to the sum over all ranks (Megatron, arXiv:1909.08053).

    Args:
        config: the base.
        name: ours, `layers.{i}.attention.q`, say. Its last part says which product it is, and so
            its sizes and how it is divided: q, k, v, o, gate, up or down.
        stored: the checkpoint's, without ".weight".
        form: how the weight lies there; a bias lies as it is, or is the same part of a tensor.
        bias: whether there is one.

    Raises:
        KeyError: a name that ends otherwise.
    """
    inputs, outputs, cut = _products(config)[name.rpartition(".")[2]]
    yield Weight(f"{name}.weight", (inputs, outputs), f"{stored}.weight", form, cut)
    if bias:
        of_bias = AS_IS if form is TRANSPOSED else form
        whole = cut.axis == 0
        yield Weight(f"{name}.bias", (outputs,), f"{stored}.bias", of_bias, None if whole else cut)


def _products(config: DecoderConfig) -> dict[str, tuple[int, int, Cut]]:
    """Inputs, outputs and cut of each product of a layer, by the last part of its name."""
    hidden, ffn = config.hidden, config.ffn
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
        "q": (hidden, queries, Cut(-1, "queries")),
        "k": (hidden, keys, Cut(-1, "keys")),
        "v": (hidden, keys, Cut(-1, "keys")),
        "o": (queries, hidden, Cut(0, "queries")),
        "gate": (hidden, ffn, Cut(-1, "ffn")),
        "up": (hidden, ffn, Cut(-1, "ffn")),
        "down": (ffn, hidden, Cut(0, "ffn")),
    }


def rms_norm_weight(width: int, name: str, stored: str, form: Form = AS_IS) -> Weight:
    """The weight of a root mean square norm of vectors of a width; names without ".weight"."""
    return Weight(f"{name}.weight", (width,), f"{stored}.weight", form)


def layer_norm_weights(width: int, name: str, stored: str) -> Iterator[Weight]:
    """The weight and the bias of a layer norm of vectors of a width."""
    for part in ("weight", "bias"):
        yield Weight(f"{name}.{part}", (width,), f"{stored}.{part}")
