"""Prompt tuning: the rows themselves are the parameters (Lester et al. 2021, arXiv:2104.08691)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pl_compile.config.task import TaskConfig
from pl_compile.config.train import TrainConfig
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.methods.first_tokens import first_tokens
from pl_compile.training.methods.prompt_method import PromptMethod
from pl_compile.training.soft_prompt import SoftPrompt


class PromptTuning(PromptMethod):
    """One trainable matrix per task.

    Args:
        initial: float32 `[virtual, hidden]` for each task.
    """

    def __init__(self, initial: Sequence[Tensor]) -> None:
        super().__init__()
        self.prompts = nn.ParameterList(nn.Parameter(rows.clone()) for rows in initial)

    def prompt(self, task: int) -> SoftPrompt:
        """The task's matrix."""
        return SoftPrompt(rows=self.prompts[task])


def build_prompt_tuning(
    config: TrainConfig, tasks: Sequence[TaskConfig], base: FrozenBase, tokenizer: Tokenizer
) -> PromptTuning:
    """Prompt tuning started as `config.prompt_tuning.init` says.

    Raises:
        ConfigError: `init: text` and a task without `init_text`.
    """
    generator = torch.Generator().manual_seed(config.seed)

    def first_rows(task: TaskConfig) -> Tensor:
        init = config.prompt_tuning.init
        if init == "random":
            rows = torch.empty(task.total_virtual_tokens, base.hidden)
            return nn.init.xavier_normal_(rows, generator=generator)
        ids = first_tokens(task, init, base.config.vocab, tokenizer, generator)
        return base.embeddings_of(ids)

    return PromptTuning([first_rows(task) for task in tasks])
