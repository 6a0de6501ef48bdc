"""The windows of a base's layers, as the definition of its family asks for them."""

from typing import Any, cast

from pl_compile.config.decoder import DecoderConfig
from pl_compile.families.blocks import Blocks
from pl_compile.families.registry import FAMILIES


def smallest_window(config: DecoderConfig) -> int:
    """How many tokens a token sees in the layer where it sees the fewest; 0 if it sees all."""
    blocks = _NotedWindows(config)
    FAMILIES[config.family].definition(cast(Blocks[None], blocks))
    return min(blocks.windows, default=0)


class _NotedWindows:
    """`families.blocks.Blocks` that compute nothing and note the windows of attentions."""

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config
        self.windows: list[int] = []

    def layer(self, index: int) -> "_NotedWindows":
        return self

    def attention(self, *given: Any, window: int = 0, **settings: Any) -> None:
        if window:
            self.windows.append(window)

    def __getattr__(self, name: str) -> Any:
        """Every other block."""
        return lambda *given, **settings: None
