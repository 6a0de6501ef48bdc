"""The interface of a prompt learning method."""

from abc import ABC, abstractmethod

from torch import nn

from pl_compile.training.soft_prompt import SoftPrompt


class PromptMethod(nn.Module, ABC):
    """Trainable parameters that make the prompts of the tasks of a run.

    Attributes:
        learned_prefix: whether the prompts are keys and values, not rows.
    """

    learned_prefix = False

    @abstractmethod
    def prompt(self, task: int) -> SoftPrompt:
        """The prompt of task number `task`, differentiable."""
