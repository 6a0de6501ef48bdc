"""Norms and MLPs of a frozen base, computed in fewer passes and with less saved.

`replace_layers` gives a new `forward` to the modules of a transformers model that its family names;
the others keep their own. The results are those of the modules up to rounding.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pl_compile.training.frozen.workspace import Workspace


def replace_layers(
    model: nn.Module, fast_layers: Mapping[str, str], workspace: Workspace | None
) -> int:
    """Replaces the modules that can be replaced, and returns how many these were.

    Args:
        model: of transformers; none of its weights may need a gradient. Modules whose weights are
            divided among processes keep their own `forward`.
        fast_layers: the name in `FAST` of the function that replaces the modules of a class, by the
            name of the class.
        workspace: keeps what the backward pass needs; None leaves that to torch.
    """
    replaced = 0
    for module in model.modules():
        name = fast_layers.get(type(module).__name__)
        biased = any(name.endswith("bias") for name, _ in module.named_parameters())
        divided = any(isinstance(parameter, DTensor) for parameter in module.parameters())
        if name is not None and not (biased or divided):
            module.forward = partial(FAST[name], module, workspace)
            replaced += 1
    return replaced


def _rms_norm(module: Any, workspace: Workspace | None, hidden: Tensor) -> Tensor:
    output: Tensor = _RmsNorm.apply(hidden, module.weight, module.variance_epsilon, workspace)  # type: ignore[no-untyped-call]
    return output


def _swiglu_mlp(module: Any, workspace: Workspace | None, hidden: Tensor) -> Tensor:
    weights = (module.gate_proj.weight, module.up_proj.weight, module.down_proj.weight)
    output: Tensor = _SwiGlu.apply(hidden, *weights, workspace)  # type: ignore[no-untyped-call]
    return output


def _gelu_tanh(module: Any, workspace: Workspace | None, hidden: Tensor) -> Tensor:
    return nn.functional.gelu(hidden, approximate="tanh")


# The functions by the names that families use (`Family.fast_layers`).
FAST: dict[str, Callable[[Any, Workspace | None, Tensor], Tensor]] = {
    "rms_norm": _rms_norm,
    "swiglu_mlp": _swiglu_mlp,
    "gelu_tanh": _gelu_tanh,
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
            keep = workspace.keep if workspace else (lambda tensor: tensor)
            # Even the small one: a small piece of the heap that stays would lie where a large one
            # was, and the next large one would no longer fit there.
            ctx.save_for_backward(keep(x), weight, keep(inverse))
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
    """`(silu(x @ gate.T) * (x @ up.T)) @ down.T`; keeps only the two inner products."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, workspace: Workspace | None
    ) -> Tensor:
        flat = x.flatten(0, -2)
        shape = (len(flat), len(gate))
        needs_grad = ctx.needs_input_grad[0]
        kept = workspace if needs_grad else None
        gated = torch.mm(flat, gate.T, out=_kept(kept, shape, x))
        raised = torch.mm(flat, up.T, out=_kept(kept, shape, x))
        if needs_grad:
            ctx.save_for_backward(gated, raised, gate, up, down)
            ctx.workspace = workspace
        product: Tensor = torch.ops.aten.silu.out(gated, out=_scratch(workspace, "product", gated))
        return (product.mul_(raised) @ down.T).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        gated, raised, gate, up, down = ctx.saved_tensors
        flat = grad.flatten(0, -2)
        d_product = torch.mm(flat, down, out=_scratch(ctx.workspace, "d_product", gated))
        d_raised = torch.ops.aten.silu.out(gated, out=_scratch(ctx.workspace, "product", gated))
        d_raised.mul_(d_product)
        d_gated = torch.ops.aten.silu_backward.grad_input(
            d_product.mul_(raised), gated, grad_input=_scratch(ctx.workspace, "d_gated", gated)
        )
        d_input = torch.addmm(d_gated @ gate, d_raised, up).view(grad.shape)
        return d_input, None, None, None, None


def _kept(workspace: Workspace | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Memory for a result, kept for the backward pass; from the workspace if there is one."""
    return like.new_empty(shape) if workspace is None else workspace.empty(*shape, like=like)


def _scratch(workspace: Workspace | None, name: str, like: Tensor) -> Tensor:
    """Memory for an intermediate result, of the shape of `like`."""
    if workspace is None:
        return torch.empty_like(like)
    return workspace.scratch(name, *like.shape, like=like)
