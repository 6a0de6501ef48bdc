"""No prompts: the base alone, with the same templates, data and scores. Trains no parameters."""

from collections.abc import Sequence

from pl_compile.config.task import TaskConfig
from pl_compile.config.train import TrainConfig
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.methods.prompt_method import PromptMethod
from pl_compile.training.soft_prompt import SoftPrompt


class NoPrompts(PromptMethod):
    """Soft prompts without tokens."""

    def prompt(self, task: int) -> SoftPrompt:
        """An empty soft prompt."""
        return SoftPrompt()


def build_no_prompts(
    config: TrainConfig, tasks: Sequence[TaskConfig], base: FrozenBase, tokenizer: Tokenizer
) -> NoPrompts:
    """The baseline."""
    return NoPrompts()
