"""A step of each method on a device that has no numbers, in a process of its own.

torch lets a program name a device of its own ("PrivateUse1"); its tensors here are fakes, which
know shapes, types and devices alone. So an operand that stayed on the CPU is an error, and so is
every question that would wait for a GPU's numbers (`.item()`, `nonzero`, indexing by a mask).
Called with a folder for bases; prints one line for each step.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration

from pl_compile.config.train import PTuningConfig
from pl_compile.families.registry import FAMILIES
from pl_compile.testing import write_tiny_base
from pl_compile.text.render import Rendered
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.data.dataset import TrainingSequence
from pl_compile.training.data.packing import pack
from pl_compile.training.methods.encoders import ENCODERS
from pl_compile.training.methods.p_tuning import PTuning
from pl_compile.training.methods.prefix_tuning import PrefixTuning
from pl_compile.training.methods.prompt_tuning import PromptTuning

DEVICE = "pretended"
FAKES = FakeTensorMode(allow_non_fake_inputs=False)
VIRTUAL = torch.arange(3)


class OnDevice(TorchFunctionMode):
    """Makes fakes of what is moved to the device, and of what is made there."""

    def __torch_function__(
        self, function: Any, types: Any, given: Any = (), options: Any = None
    ) -> Any:
        options = options or {}
        named = [str(each) for each in (*given[1:], *options.values())]
        there = any(name.startswith(DEVICE) for name in named)
        if function is torch.Tensor.to and there and not isinstance(given[0], FakeTensor):
            with FAKES:
                return torch.empty(given[0].shape, dtype=given[0].dtype, device=DEVICE)
        if str(options.get("device", "")).startswith(DEVICE):
            with FAKES:
                return function(*given, **options)
        return function(*given, **options)


def move(module: Any) -> None:
    """Gives a module parameters and buffers on the device."""
    with FAKES:
        for part in module.modules():
            for name, value in part._parameters.items():
                if value is not None:
                    there = torch.empty(value.shape, dtype=value.dtype, device=DEVICE)
                    kept = torch.nn.Parameter(there, requires_grad=value.requires_grad)
                    part._parameters[name] = kept
            for name, value in part._buffers.items():
                if value is not None:
                    there = torch.empty(value.shape, dtype=value.dtype, device=DEVICE)
                    part._buffers[name] = there


def rows() -> list[TrainingSequence]:
    """Of two tasks, of lengths that need padding."""
    found = []
    for index in range(5):
        real = np.arange(5, 12 + 2 * index)
        ids = np.concatenate([np.zeros(len(VIRTUAL), np.int64), real])
        virtual = np.where(np.arange(len(ids)) < len(VIRTUAL), np.arange(len(ids)), -1)
        rendered = Rendered(ids, virtual, len(ids) - 2)
        in_loss = np.arange(len(ids)) >= len(ids) - 2
        found.append(TrainingSequence(index % 2, rendered, in_loss))
    return found


def method_of(name: str, base: FrozenBase) -> Any:
    """A method for both tasks."""
    if name == "prompt-tuning":
        return PromptTuning([base.embeddings_of(VIRTUAL)] * 2)
    if name == "prefix-tuning":
        return PrefixTuning([base.keys_and_values(VIRTUAL)] * 2)
    encoder = ENCODERS[name](PTuningConfig(), len(VIRTUAL), base.hidden)
    return PTuning(encoder, [base.embeddings_of(VIRTUAL + task) for task in range(2)])


def main() -> None:
    """All families, methods and precisions."""
    backend_registration._setup_privateuseone_for_python_backend(DEVICE)
    for family in FAMILIES:
        folder = write_tiny_base(Path(sys.argv[1]) / family, family)
        for name in ("prompt-tuning", "mlp", "tpmlp", "prefix-tuning"):
            for precision in ("fp32", "bf16"):
                base = FrozenBase(folder, precision)
                method = method_of(name, base)
                move(base.model)
                move(method)
                base.device = torch.device(DEVICE)
                with OnDevice():
                    batch = pack(rows(), learned_prefix=method.learned_prefix).to(base.device)
                    prompts = {task: method.prompt(task) for task in range(2)}
                    losses = base.token_losses(batch, prompts)
                    torch.autograd.backward(losses.mean())
                places = {losses.device.type}
                places |= {p.grad.device.type for p in method.parameters() if p.grad is not None}
                print(family, name, precision, *sorted(places))


if __name__ == "__main__":
    main()
