"""The face of a prompt learning method."""

from abc import ABC, abstractmethod

from torch import nn

from pl_compile.training.prompt import Prompt


class PromptMethod(nn.Module, ABC):
    """Trainable parameters that make the prompts of the tasks of a run.

    Attributes:
        learned_prefix: whether the prompts are keys and values, not rows.
    """

    learned_prefix = False

    @abstractmethod
    def prompt(self, task: int) -> Prompt:
        """The prompt of task number `task`, differentiable."""
