"""The face of a prompt learning method."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class PromptMethod(nn.Module, ABC):
    """Trainable parameters that make the virtual tokens of the tasks of a run."""

    @abstractmethod
    def rows(self, task: int) -> Tensor:
        """The virtual tokens of task number `task`: float32 `[virtual, hidden]`, differentiable."""
