"""Prompt learning methods, one file each; all are a `PromptMethod`.

A method is a torch module whose `prompt(task)` is a function of its parameters. The loop trains the
parameters, the table stores the prompts; neither asks which method it holds. To add one: a file
here and a row in `METHODS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pl_compile.config.task import TaskConfig
from pl_compile.config.train import TrainConfig
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.methods.no_prompts import build_no_prompts
from pl_compile.training.methods.p_tuning import build_p_tuning
from pl_compile.training.methods.prefix_tuning import build_prefix_tuning
from pl_compile.training.methods.prompt_method import PromptMethod
from pl_compile.training.methods.prompt_tuning import build_prompt_tuning

Builder = Callable[[TrainConfig, Sequence[TaskConfig], FrozenBase, Tokenizer], PromptMethod]


@dataclass(frozen=True)
class Method:
    """A row of the table of methods.

    Attributes:
        build: makes the trainable module.
        default_lr: a learning rate that suits small and middle-sized bases without tuning.
    """

    build: Builder
    default_lr: float


METHODS = {
    "prompt-tuning": Method(build_prompt_tuning, default_lr=1e-2),
    "p-tuning": Method(build_p_tuning, default_lr=1e-3),
    "prefix-tuning": Method(build_prefix_tuning, default_lr=2e-2),
    "no-prompts": Method(build_no_prompts, default_lr=1e-2),
}
