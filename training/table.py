"""The content of a run's prompt table: the prompts that it trained, and existing ones it keeps."""

from collections.abc import Mapping

import torch

from pl_compile.artifact.prompt_table import (
    BaseIdentity,
    PromptTable,
    TaskEntry,
    read_prompt_table,
)
from pl_compile.config.train import TrainConfig
from pl_compile.errors import ConfigError, unknown_name
from pl_compile.text.render import SequenceRules
from pl_compile.training.methods.prompt_method import PromptMethod


def existing_tasks(config: TrainConfig, identity: BaseIdentity) -> PromptTable:
    """The existing tasks that are kept, byte for byte.

    Raises:
        ArtifactError: the table cannot be read, or has a task with the name of a new one.
        FingerprintError: it was trained on another base.
        ConfigError: `existing_tasks` names one that it does not have.
    """
    if config.existing_table is None:
        return PromptTable(identity, {})
    table = read_prompt_table(config.existing_table)
    table.check_base(identity, config.base)
    wanted = table.entries if config.existing_tasks is None else config.existing_tasks
    for name in wanted:
        if name not in table.entries:
            found, fix = unknown_name(name, tuple(table.entries), what="task")
            raise ConfigError(f"taking tasks from {config.existing_table}", found=found, fix=fix)
    kept = PromptTable(table.base, {name: table.entries[name] for name in wanted})
    kept.check_free(task.taskname for task in config.tasks)  # before hours of training
    return kept


def trained_entries(
    config: TrainConfig, method: PromptMethod, rules: SequenceRules, hidden: int
) -> Mapping[str, TaskEntry]:
    """The prompts as they are now, by taskname.

    Args:
        config: the run.
        method: makes them, without dropout.
        rules: of the training sequences.
        hidden: width of the base.
    """
    method.eval()
    entries = {}
    for index, task in enumerate(config.tasks):
        with torch.no_grad():
            prompt = method.prompt(index)
        rows, prefix = (
            None if tensor is None else tensor.detach().float().cpu().numpy().copy()
            for tensor in (prompt.rows, prompt.prefix_kv)
        )
        if rows is None:
            rows = torch.zeros(0, hidden).numpy()
        entries[task.taskname] = TaskEntry(task, rows, rules, config.virtual_prompt_style, prefix)
    return entries
