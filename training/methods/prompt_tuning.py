"""Prompt tuning: the rows themselves are the parameters (Lester et al. 2021, arXiv:2104.08691)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pl_compile.config.task import TaskConfig
from pl_compile.config.train import TrainConfig
from pl_compile.errors import ConfigError
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.methods.prompt_method import PromptMethod


class PromptTuning(PromptMethod):
    """One trainable matrix per task.

    Args:
        initial: float32 `[virtual, hidden]` for each task.
    """

    def __init__(self, initial: Sequence[Tensor]) -> None:
        super().__init__()
        self.prompts = nn.ParameterList(nn.Parameter(rows.clone()) for rows in initial)

    def rows(self, task: int) -> Tensor:
        """The task's matrix."""
        rows: Tensor = self.prompts[task]
        return rows


def build_prompt_tuning(
    config: TrainConfig, tasks: Sequence[TaskConfig], base: FrozenBase, tokenizer: Tokenizer
) -> PromptTuning:
    """Prompt tuning started as `config.prompt_tuning.init` says.

    Raises:
        ConfigError: `init: text` and a task without `init_text`.
    """
    generator = torch.Generator().manual_seed(config.seed)
    start = _STARTS[config.prompt_tuning.init]
    return PromptTuning([start(task, base, tokenizer, generator) for task in tasks])


def _from_text(
    task: TaskConfig, base: FrozenBase, tokenizer: Tokenizer, generator: torch.Generator
) -> Tensor:
    """Embeddings of the text's tokens, repeated or cut to the number of rows (as NeMo does)."""
    ids = tokenizer.encode(task.init_text or "", opens=True, markup=False)
    if not ids:
        raise ConfigError(
            f"starting the prompt of task '{task.taskname}' from text",
            found="no init_text",
            fix="Give the task an init_text, or choose prompt_tuning.init: vocabulary.",
        )
    repeated = (ids * task.total_virtual_tokens)[: task.total_virtual_tokens]
    return base.embeddings_of(torch.tensor(repeated))


def _from_vocabulary(
    task: TaskConfig, base: FrozenBase, tokenizer: Tokenizer, generator: torch.Generator
) -> Tensor:
    """Embeddings of tokens drawn from the commonest 5,000 (the lowest ids of a byte-pair table)."""
    common = min(5000, base.config.vocab)
    drawn = torch.randint(common, (task.total_virtual_tokens,), generator=generator)
    return base.embeddings_of(drawn)


def _random(
    task: TaskConfig, base: FrozenBase, tokenizer: Tokenizer, generator: torch.Generator
) -> Tensor:
    """Xavier-normal numbers."""
    rows = torch.empty(task.total_virtual_tokens, base.hidden)
    return nn.init.xavier_normal_(rows, generator=generator)


_STARTS: dict[str, Callable[[TaskConfig, FrozenBase, Tokenizer, torch.Generator], Tensor]] = {
    "text": _from_text,
    "vocabulary": _from_vocabulary,
    "random": _random,
}
