"""Memory for what the backward pass needs, allocated once and used again by each micro-batch.

Micro-batches differ in length, and each saves hundreds of megabytes in pieces of many sizes. A heap
fragments until it is half as large again. Here the pieces are laid end to end.
"""

import math

import torch
from torch import Tensor

_BLOCK = 64 << 20
_ALIGNMENT = 64


class Workspace:
    """A stack of memory blocks that the forward pass fills and `reset` empties.

    Only the main memory of a CPU is managed; tensors of other devices are left to torch's caching
    allocator. Tensors from before a `reset` must not be used after it: a micro-batch goes forward
    and backward before the next one.
    """

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._block = 0
        self._used = 0
        self._scratch: dict[tuple[str, torch.dtype], Tensor] = {}

    def reset(self) -> None:
        """Frees everything that was taken."""
        self._block = self._used = 0

    def empty(self, *shape: int, like: Tensor) -> Tensor:
        """An uninitialised tensor with dtype and device of `like`."""
        if like.device.type != "cpu":
            return like.new_empty(shape)
        size = math.prod(shape) * like.element_size()
        if size > _BLOCK:
            return like.new_empty(shape)
        if self._used + size > _BLOCK and self._blocks:
            self._block, self._used = self._block + 1, 0
        if self._block == len(self._blocks):
            self._blocks.append(torch.empty(_BLOCK, dtype=torch.uint8))
        piece = self._blocks[self._block][self._used : self._used + size]
        self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        # `.data` gives the piece its own version counter. Otherwise autograd would take writing one
        # piece for overwriting all others of the block.
        return piece.view(like.dtype).view(shape).data

    def scratch(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """An uninitialised tensor whose memory is used again by the next `scratch` of that name."""
        if like.device.type != "cpu":
            return like.new_empty(shape)
        size = math.prod(shape)
        held = self._scratch.get((name, like.dtype))
        if held is None or held.numel() < size:
            # Somewhat more than is asked for: the next micro-batch may be a little longer.
            held = self._scratch[name, like.dtype] = like.new_empty(size + size // 8)
        return held[:size].view(shape)

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy of `tensor` that lives until `reset`."""
        if tensor.device.type != "cpu":
            return tensor
        return self.empty(*tensor.shape, like=tensor).copy_(tensor)
