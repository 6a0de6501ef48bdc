"""What a family's definition uses: found by calling it, without numbers."""

from dataclasses import dataclass, field, replace
from typing import Any

from pl_compile.config.decoder import DecoderConfig
from pl_compile.families.blocks import Blocks, Definition
from pl_compile.families.names import POSITIONS, layer_name


@dataclass(frozen=True)
class Named:
    """What a definition gives to its blocks: names, such as `layers.0.mlp.down`, and windows.

    Attributes:
        weights: of all weights but embedding and head.
        summed: of those products that are `Blocks.row_parallel`.
        norms: of the norms of whole activations; those of heads are not among them.
        windows: of the attentions that have one, in tokens.
    """

    weights: set[str] = field(default_factory=set)
    summed: set[str] = field(default_factory=set)
    norms: set[str] = field(default_factory=set)
    windows: set[int] = field(default_factory=set)


def names_of(definition: Definition, config: DecoderConfig) -> Named:
    """What a definition gives to its blocks.

    Args:
        definition: of a family.
        config: of one of its bases.
    """
    noting = _NotingBlocks(config)
    blocks: Blocks[object] = noting
    definition(blocks)
    return noting.named


# A definition only hands its values on, so one thing can stand for all of them.
_VALUE = object()


@dataclass(frozen=True)
class _NotingBlocks:
    """Blocks that compute nothing, and note the names that they are given."""

    config: DecoderConfig
    named: Named = field(default_factory=Named)
    index: int | None = None

    def layer(self, index: int) -> "_NotingBlocks":
        return replace(self, index=index)

    def _note(self, name: str) -> str:
        full = name if self.index is None else f"{layer_name(self.index)}.{name}"
        self.named.weights.add(full)
        return full

    def learned_positions(self) -> object:
        self.named.weights.add(POSITIONS.removesuffix(".weight"))
        return _VALUE

    def linear(self, x: object, name: str) -> object:
        self._note(name)
        return _VALUE

    def row_parallel(self, x: object, name: str) -> object:
        self.named.summed.add(self._note(name))
        return _VALUE

    def rms_norm(self, x: object, name: str) -> object:
        self.named.norms.add(self._note(name))
        return _VALUE

    layer_norm = rms_norm

    def attention(
        self,
        *parts: object,
        window: int = 0,
        head_norms: tuple[str, str] | None = None,
        **options: Any,
    ) -> object:
        if window:
            self.named.windows.add(window)
        for name in head_norms or ():
            self._note(name)
        return _VALUE

    def _any(self, *values: object, **options: Any) -> object:
        return _VALUE

    embedding = with_virtual_rows = swiglu = geglu = gelu = add = scale = last_token = head = _any
