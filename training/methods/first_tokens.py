"""Real tokens that a prompt starts from."""

import torch
from torch import Tensor

from pl_compile.config.task import TaskConfig
from pl_compile.errors import ConfigError, DataError
from pl_compile.text.tokenizer import Tokenizer

# The lowest ids of a byte-pair vocabulary are its most common tokens.
_COMMON = 5000


def first_tokens(
    task: TaskConfig, init: str, vocab: int, tokenizer: Tokenizer, generator: torch.Generator
) -> Tensor:
    """The tokens that a task's prompt starts from: int64 `[virtual]`.

    Args:
        task: whose prompt.
        init: "text", "vocabulary", or "auto": the text where the task has one.
        vocab: rows of the base's embedding.
        tokenizer: the base's.
        generator: draws the tokens of a vocabulary.

    Raises:
        ConfigError: as for `tokens_of_text`.
    """
    if init == "text" or (init == "auto" and task.init_text):
        return tokens_of_text(task, tokenizer)
    return tokens_of_vocabulary(task, vocab, generator)


def tokens_of_text(task: TaskConfig, tokenizer: Tokenizer) -> Tensor:
    """The text's tokens, repeated or cut to the number of rows: int64 `[virtual]` (NeMo's rule).

    Raises:
        ConfigError: the task has no `init_text`, or one with a token that the base has no row for.
    """
    doing = f"starting the prompt of task '{task.taskname}' from text"
    try:
        ids = tokenizer.encode(task.init_text or "", opens=True, markup=False)
    except DataError as error:
        raise ConfigError(doing, found=str(error)) from error
    if not ids:
        raise ConfigError(
            doing,
            found="no init_text",
            fix="Give the task an init_text, or choose init: vocabulary.",
        )
    return torch.tensor((ids * task.total_virtual_tokens)[: task.total_virtual_tokens])


def tokens_of_vocabulary(task: TaskConfig, vocab: int, generator: torch.Generator) -> Tensor:
    """Tokens drawn from the most common ones: int64 `[virtual]`."""
    return torch.randint(min(_COMMON, vocab), (task.total_virtual_tokens,), generator=generator)
