"""Which products a family's definition sums over ranks: found by calling it, without numbers."""

from dataclasses import dataclass, field, replace
from typing import Any

from pl_compile.config.decoder import DecoderConfig
from pl_compile.families.blocks import Blocks, Definition
from pl_compile.families.names import layer_name


def row_parallel_products(definition: Definition, config: DecoderConfig) -> set[str]:
    """The names of the products that are `Blocks.row_parallel`, such as `layers.0.mlp.down`.

    Args:
        definition: of a family.
        config: of one of its bases.
    """
    noting = _NotingBlocks(config)
    blocks: Blocks[object] = noting
    definition(blocks)
    return noting.summed


# A definition only hands its values on, so one thing can stand for all of them.
_VALUE = object()


@dataclass(frozen=True)
class _NotingBlocks:
    """Blocks that compute nothing, and note the names that `row_parallel` is given."""

    config: DecoderConfig
    summed: set[str] = field(default_factory=set)
    index: int = 0

    def layer(self, index: int) -> "_NotingBlocks":
        return replace(self, index=index)

    def row_parallel(self, x: object, name: str) -> object:
        self.summed.add(f"{layer_name(self.index)}.{name}")
        return _VALUE

    def _any(self, *values: object, **options: Any) -> object:
        return _VALUE

    embedding = with_virtual_rows = learned_positions = linear = rms_norm = layer_norm = _any
    attention = swiglu = geglu = gelu = add = scale = last_token = head = _any
