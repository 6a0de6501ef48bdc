"""No prompts: the base alone, through the same templates, data and scores. Trains nothing."""

from collections.abc import Sequence

from pl_compile.config.task import TaskConfig
from pl_compile.config.train import TrainConfig
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.methods.prompt_method import PromptMethod
from pl_compile.training.prompt import Prompt


class NoPrompts(PromptMethod):
    """Prompts of no tokens."""

    def prompt(self, task: int) -> Prompt:
        """Nothing."""
        return Prompt()


def build_no_prompts(
    config: TrainConfig, tasks: Sequence[TaskConfig], base: FrozenBase, tokenizer: Tokenizer
) -> NoPrompts:
    """The baseline."""
    return NoPrompts()
