"""The soft prompt of a task: a method makes it, and the base puts it in its place."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SoftPrompt:
    """A soft prompt: rows or a prefix, or neither.

    Attributes:
        rows: float32 `[virtual, hidden]`: embeddings that stand where the template says.
        prefix_kv: float32 `[layers, 2, kv_heads, virtual, head_dim]`: keys and values that stand
            before everything, as the attention uses them (after rotary positions).
    """

    rows: Tensor | None = None
    prefix_kv: Tensor | None = None
