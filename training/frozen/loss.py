"""Cross-entropy with a frozen LM head, some targets at a time.

The gradient of a target's loss with respect to its hidden state needs only the logits, so it is
computed while they exist. The logits of a whole batch never exist together.
"""

from typing import Any

import torch
from torch import Tensor

# Targets at a time: 128 rows of float32 logits over 50,000 tokens are 25 MB.
_TARGETS = 128


def frozen_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The loss of each target, float32 `[targets]`.

    Args:
        hidden: `[targets, hidden]`.
        weight: `[vocab, hidden]`, frozen.
        targets: int64 `[targets]`.
    """
    loss: Tensor = _FrozenCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return loss


class _FrozenCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets), _TARGETS):
            part = slice(start, start + _TARGETS)
            logs = torch.log_softmax((hidden[part] @ weight.T).float(), -1)
            chosen = targets[part, None]
            losses[part] = -logs.gather(1, chosen)[:, 0]
            if gradient is not None:
                logs.exp_().scatter_add_(1, chosen, torch.full_like(chosen, -1, dtype=logs.dtype))
                gradient[part] = logs.to(weight.dtype) @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad[:, None]).to(gradient.dtype), None, None
