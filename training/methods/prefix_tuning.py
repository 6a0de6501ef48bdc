"""Prefix tuning: keys and values of every layer are the parameters (arXiv:2101.00190).

They start as the keys and values that the base computes for real tokens. So training starts from a
sensible place and is stable without an encoder. They stand before everything, at positions 0 to
`virtual - 1`, and are stored unchanged as the prefix KV of a bundle.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pl_compile.config.task import TaskConfig
from pl_compile.config.train import TrainConfig
from pl_compile.errors import ConfigError
from pl_compile.text.template import parse_template
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.methods.first_tokens import first_tokens
from pl_compile.training.methods.prompt_method import PromptMethod
from pl_compile.training.soft_prompt import SoftPrompt


class PrefixTuning(PromptMethod):
    """One trainable tensor per task.

    Args:
        initial: float32 `[layers, 2, kv_heads, virtual, head_dim]` for each task.
    """

    learned_prefix = True

    def __init__(self, initial: Sequence[Tensor]) -> None:
        super().__init__()
        self.prefixes = nn.ParameterList(nn.Parameter(prefix.clone()) for prefix in initial)

    def prompt(self, task: int) -> SoftPrompt:
        """The task's keys and values."""
        return SoftPrompt(prefix_kv=self.prefixes[task])


def build_prefix_tuning(
    config: TrainConfig, tasks: Sequence[TaskConfig], base: FrozenBase, tokenizer: Tokenizer
) -> PrefixTuning:
    """Prefix tuning started as `config.prefix_tuning.init` says.

    Raises:
        ConfigError: a template with virtual tokens elsewhere than at its start, or `init: text` and
            a task without `init_text`.
    """
    generator = torch.Generator().manual_seed(config.seed)
    initial = []
    for task in tasks:
        if not parse_template(task).opens_with_all_virtual_tokens:
            raise ConfigError(
                f"starting the prefix of task '{task.taskname}'",
                found="a template with virtual tokens after its start",
                expected="one marker, at the very start: a prefix stands before everything",
                fix="Move the marker to the start, or choose prompt-tuning or p-tuning.",
            )
        ids = first_tokens(task, config.prefix_tuning.init, base.config.vocab, tokenizer, generator)
        if config.data.add_bos and base.config.bos_id is not None:
            ids = torch.cat([torch.tensor([base.config.bos_id]), ids[:-1]])
        initial.append(base.keys_and_values(ids))
    return PrefixTuning(initial)
