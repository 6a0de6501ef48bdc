"""P-tuning: an encoder, shared by the tasks of a run, makes the rows (arXiv:2103.10385).

The encoder reads a learned embedding. Its first rows are replaced by the base's embeddings of the
taskname, so that one encoder can serve several tasks (NeMo's form). After training only the rows
that it made are kept.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pl_compile.config.task import TaskConfig
from pl_compile.config.train import TrainConfig
from pl_compile.errors import ConfigError
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.methods.encoders import ENCODERS, PromptEncoder
from pl_compile.training.methods.prompt_method import PromptMethod
from pl_compile.training.soft_prompt import SoftPrompt


class PTuning(PromptMethod):
    """A shared encoder conditioned on the taskname.

    Args:
        encoder: makes the rows.
        names: float32 `[tokens, hidden]` for each task: the base's embeddings of its name.
    """

    def __init__(self, encoder: PromptEncoder, names: Sequence[Tensor]) -> None:
        super().__init__()
        self.encoder = encoder
        # Each name replaces exactly as many rows as it has tokens. (NeMo pads the names of a batch
        # to one length, so padding replaced rows in training that the export then kept.)
        self._names = [name[: encoder.virtual] for name in names]

    def prompt(self, task: int) -> SoftPrompt:
        """The encoder's output for the task."""
        return SoftPrompt(rows=self.encoder(self._names[task]))


def build_p_tuning(
    config: TrainConfig, tasks: Sequence[TaskConfig], base: FrozenBase, tokenizer: Tokenizer
) -> PTuning:
    """P-tuning with the encoder that `config.p_tuning` names.

    Raises:
        ConfigError: tasks of different virtual-token counts, or too few layers.
    """
    counts = {task.taskname: task.total_virtual_tokens for task in tasks}
    if len(set(counts.values())) > 1:
        raise ConfigError(
            "building the p-tuning encoder",
            found=f"total_virtual_tokens {counts}",
            expected="one number for all tasks tuned together",
            fix="Make them equal, or train the tasks one after another with existing_table.",
        )
    torch.manual_seed(config.seed)
    names = [
        base.embeddings_of(torch.tensor(tokenizer.encode(task.taskname, opens=True, markup=False)))
        for task in tasks
    ]
    virtual = tasks[0].total_virtual_tokens
    for index, name in enumerate(names):
        for other in range(index):
            if torch.equal(name[:virtual], names[other][:virtual]):
                raise ConfigError(
                    "building the p-tuning encoder",
                    found=f"tasks '{tasks[other].taskname}' and '{tasks[index].taskname}' have "
                    f"names with the same first {virtual} tokens",
                    expected="names that differ there, since the encoder tells tasks apart by them",
                    fix="Rename one, or give more virtual tokens.",
                )
    return PTuning(
        ENCODERS[config.p_tuning.encoder_type](config.p_tuning, virtual, base.hidden), names
    )
