"""What a prompt learning method makes for a task, and a base puts in its place."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """A prompt; at most one of the two is there.

    Attributes:
        rows: float32 `[virtual, hidden]`: embeddings that stand where the template says.
        prefix_kv: float32 `[layers, 2, kv_heads, virtual, head_dim]`: keys and values that stand
            before everything, as the attention uses them (after rotary positions).
    """

    rows: Tensor | None = None
    prefix_kv: Tensor | None = None
