"""Norms and MLPs of a frozen base, computed in fewer passes and with less saved.

`replace_layers` gives the modules of a transformers model that are in `_FORWARDS` another
`forward`; the rest keep their own. The results are those of the modules up to rounding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pl_compile.training.frozen.workspace import Workspace


def replace_layers(model: nn.Module, workspace: Workspace | None) -> int:
    """Replaces what can be and returns how many modules that were.

    Args:
        model: of transformers; none of its weights may need a gradient.
        workspace: keeps what the backward pass needs; None leaves that to torch.
    """
    replaced = 0
    for module in model.modules():
        forward = _FORWARDS.get(type(module).__name__)
        biased = any(name.endswith("bias") for name, _ in module.named_parameters())
        if forward is not None and not biased:
            module.forward = partial(forward, module, workspace)
            replaced += 1
    return replaced


def _llama_norm(module: Any, workspace: Workspace | None, hidden: Tensor) -> Tensor:
    output: Tensor = _RmsNorm.apply(hidden, module.weight, module.variance_epsilon, workspace)  # type: ignore[no-untyped-call]
    return output


def _llama_mlp(module: Any, workspace: Workspace | None, hidden: Tensor) -> Tensor:
    weights = (module.gate_proj.weight, module.up_proj.weight, module.down_proj.weight)
    output: Tensor = _SwiGlu.apply(hidden, *weights, workspace)  # type: ignore[no-untyped-call]
    return output


def _gelu_tanh(module: Any, workspace: Workspace | None, hidden: Tensor) -> Tensor:
    return nn.functional.gelu(hidden, approximate="tanh")


# By the class's name, so that no family's module is imported before it is used.
_FORWARDS: dict[str, Callable[[Any, Workspace | None, Tensor], Tensor]] = {
    "LlamaRMSNorm": _llama_norm,
    "LlamaMLP": _llama_mlp,
    "NewGELUActivation": _gelu_tanh,
}


class _RmsNorm(torch.autograd.Function):
    """`weight * x / sqrt(mean(x^2) + epsilon)`, in float32 inside."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, epsilon: float, workspace: Workspace | None
    ) -> Tensor:
        wide = x.float()
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(workspace.keep(x) if workspace else x, weight, inverse)
        return (wide * inverse).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, weight, inverse = ctx.saved_tensors
        normed = x.float() * inverse
        grad = (grad * weight).float()
        along = (grad * normed).mean(-1, keepdim=True)
        result = normed.mul_(along).neg_().add_(grad).mul_(inverse)
        return result.to(x.dtype), None, None, None


class _SwiGlu(torch.autograd.Function):
    """`(silu(x @ gate.T) * (x @ up.T)) @ down.T`; keeps both inner products and nothing else."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, workspace: Workspace | None
    ) -> Tensor:
        flat = x.flatten(0, -2)
        shape = (len(flat), len(gate))
        if workspace is not None and ctx.needs_input_grad[0]:
            gated, raised = (workspace.empty(*shape, like=x) for _ in range(2))
        else:
            gated, raised = (x.new_empty(shape) for _ in range(2))
        torch.mm(flat, gate.T, out=gated)
        torch.mm(flat, up.T, out=raised)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(gated, raised, gate, up, down)
        return (nn.functional.silu(gated).mul_(raised) @ down.T).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        gated, raised, gate, up, down = ctx.saved_tensors
        flat = grad.flatten(0, -2)
        d_product = flat @ down
        d_raised = nn.functional.silu(gated).mul_(d_product)
        d_gated = torch.ops.aten.silu_backward(d_product.mul_(raised), gated)
        return (
            torch.addmm(d_gated @ gate, d_raised, up).view(grad.shape),
            None,
            None,
            None,
            None,
        )
