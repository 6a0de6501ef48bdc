"""The numbers that describe a base: one frozen `DecoderConfig` for every family.

The graph, the caches and the parts of ranks follow from it. `families.read` makes it from the
`config.json` of a Hugging Face folder.
"""

from dataclasses import dataclass
from typing import Any

from pl_compile.config.sizes import size_checks
from pl_compile.errors import BaseModelError, check_all


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder-only GPT.

    Attributes:
        family: a row of `families.registry`.
        layers: decoder blocks.
        hidden: width of the residual stream.
        heads: query heads; `heads % kv_heads == 0`.
        kv_heads: key and value heads.
        head_dim: width of one head.
        ffn: inner width of the feed-forward part.
        vocab: rows of the embedding. In a graph, this id and larger ones are virtual tokens.
        positions: longest sequence the base was made for, virtual tokens included.
        norm_eps: epsilon of every normalisation.
        tied: whether the LM head is the transposed embedding.
        rope_theta: base of the rotary frequencies; 0 where positions are learned.
        bos_id: token that opens a sequence, if the base has one.
        embedding_scale: the embedding of a token is multiplied by it before the first layer. The
            rows of prompts are not: they are learned as the first layer sees them.
        logits_scale: the products of the head are multiplied by it.
        logits_cap: after that, logits become `logits_cap * tanh(logits / logits_cap)`; 0: they
            stay.
        own: a frozen dataclass with the numbers that only this family has and reads; they are a
            part of the fingerprint. None where there are no such numbers.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    positions: int
    norm_eps: float
    tied: bool
    rope_theta: float = 0.0
    bos_id: int | None = None
    embedding_scale: float = 1.0
    logits_scale: float = 1.0
    logits_cap: float = 0.0
    own: Any = None

    def __post_init__(self) -> None:
        """Refuses sizes that no decoder could have."""
        sizes = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "positions")
        doing = "reading the sizes of the base"
        check_all(BaseModelError, doing, size_checks({name: getattr(self, name) for name in sizes}))
        checks = {
            f"{self.heads} query heads on {self.kv_heads} key heads, expected a multiple": (
                self.heads % self.kv_heads == 0
            ),
            f"head_dim {self.head_dim}, expected an even number: rotary positions turn pairs": (
                self.rope_theta == 0 or self.head_dim % 2 == 0
            ),
        }
        check_all(BaseModelError, doing, checks)
