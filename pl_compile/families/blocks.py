"""What a family's definition is written in: blocks that it is given, so that it knows no library.

A definition is a pure function from blocks to logits. The compiler gives blocks that append nodes
to an ONNX graph; a test gives blocks of numpy and compares the numbers with transformers.
"""

from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pl_compile.config.decoder import DecoderConfig

V = TypeVar("V")

# Of rotary positions: float64 `[pairs]`, the angle by which a position turns each pair.
Frequencies = NDArray[np.float64]


class Blocks(Protocol[V]):
    """The parts of a decoder: values in, values out.

    Activations are `[batch, seq, hidden]` unless said otherwise. A name is that of a weight in
    `families.names`, without ".weight"; in the blocks of a layer, without "layers.{i}." too.
    """

    @property
    def config(self) -> DecoderConfig:
        """The base, or a rank's part of it."""
        ...

    def layer(self, index: int) -> "Blocks[V]":
        """The blocks of a layer: its names, and its cache."""
        ...

    def embedding(self) -> V:
        """The embedding's row of each token; anything at virtual tokens."""
        ...

    def with_virtual_rows(self, x: V) -> V:
        """`x`, and at virtual tokens the rows of the prompts as they were learned."""
        ...

    def learned_positions(self) -> V:
        """The row of each token's position."""
        ...

    def linear(self, x: V, name: str) -> V:
        """`x @ weight + bias`, the bias where the base has one."""
        ...

    def row_parallel(self, x: V, name: str) -> V:
        """`linear` of a weight whose rows are divided among ranks: the sum over all of them.

        Each rank has its part of `x` and of the weight, whose `Cut` says so; the bias is added
        once, to the sum.
        """
        ...

    def rms_norm(self, x: V, name: str) -> V:
        """Root mean square normalisation (arXiv:1910.07467); each rank has all of `x`."""
        ...

    def layer_norm(self, x: V, name: str) -> V:
        """Layer normalisation (arXiv:1607.06450); each rank has all of `x`."""
        ...

    def attention(
        self,
        query: V,
        key: V,
        value: V,
        *,
        rotary: Frequencies | None = None,
        scale: float | None = None,
        window: int = 0,
        softcap: float = 0.0,
        head_norms: tuple[str, str] | None = None,
    ) -> V:
        """Causal attention over the layer's cache, to which it adds keys and values.

        Args:
            query: `[batch, seq, heads * head_dim]`.
            key: `[batch, seq, kv_heads * head_dim]`.
            value: as `key`.
            rotary: turns queries and keys by their positions: the first `pairs` numbers of a head
                against the next `pairs`; the rest stays as it is.
            scale: of the scores; one over the root of `head_dim` by default.
            window: how many tokens one sees, itself included; 0: all before it.
            softcap: scores become `softcap * tanh(scores / softcap)`; 0: they stay.
            head_norms: names of the root mean square norms of each query head and of each key head,
                before they are turned; their weights are `[head_dim]`.

        Returns:
            `[batch, seq, heads * head_dim]`.
        """
        ...

    def swiglu(self, gate: V, up: V) -> V:
        """`silu(gate) * up` (arXiv:2002.05202)."""
        ...

    def geglu(self, gate: V, up: V) -> V:
        """`gelu(gate) * up` (arXiv:2002.05202), with the tanh form of GELU."""
        ...

    def gelu(self, x: V) -> V:
        """The tanh form of GELU (arXiv:1606.08415)."""
        ...

    def add(self, x: V, y: V) -> V:
        """`x + y`."""
        ...

    def scale(self, x: V, factor: float) -> V:
        """`x * factor`."""
        ...

    def last_token(self, x: V) -> V:
        """`[batch, hidden]`: each row's last real token."""
        ...

    def head(self, x: V) -> V:
        """Logits `[batch, vocab]` of `[batch, hidden]`, as `config` scales and caps them."""
        ...


class Definition(Protocol):
    """A family, from the embedding to the logits."""

    def __call__(self, b: Blocks[V], /) -> V:
        """Logits `[batch, vocab]` of each row's last token."""
        ...


def rotary_frequencies(theta: float, width: int) -> Frequencies:
    """`theta^(-2i / width)` for each pair `i` of so many numbers (arXiv:2104.09864)."""
    exponents = np.arange(0, width, 2, dtype=np.float64) / width
    return np.asarray(theta**-exponents)
