"""Finds settings of a training config that have no effect, so that none is ignored silently."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from pl_compile.config.train import TrainConfig


def without_effect(config: TrainConfig) -> list[str]:
    """A line for each reason why settings have no effect in a run.

    Only settings that differ from their defaults count: the resolved config of a run lists all
    settings.
    """
    given = list(_given(config))
    found: dict[str, list[str]] = {}

    def note(why: str, *keys: str) -> None:
        for key in keys:
            found.setdefault(why, []).extend(
                name for name in given if name == key or name.startswith(f"{key}.")
            )

    style = config.virtual_prompt_style
    why = f"virtual_prompt_style is {style}"
    own = style.replace("-", "_")
    note(why, *(g for g in ("prompt_tuning", "p_tuning", "prefix_tuning") if g != own))
    if style == "no-prompts":
        note(why, "optim", "checkpoint", "early_stopping")
    elif not config.lm_finetune:
        note("lm_finetune is false", "optim.lm_lr")
    if style == "p-tuning":
        _note_encoder(config, note)
    _note_schedule(config, note)
    if not config.validation.generate:
        note("validation.generate is false", "validation")
    if not config.data.validation:
        note("data.validation names no file", "trainer.validation_batch_size")
        if style != "no-prompts":
            note("data.validation names no file", "checkpoint.save_top_k")
    return texts_without_effect(config) + [_line(keys, why) for why, keys in found.items() if keys]


def texts_without_effect(config: TrainConfig) -> list[str]:
    """A line about the `init_text`s that no prompt of a run starts from; empty where one does."""
    why = _why_no_text(config)
    texts = [f"init_text of task '{task.taskname}'" for task in config.tasks if task.init_text]
    return [_line(texts, why)] if why and texts else []


def _line(keys: list[str], why: str) -> str:
    return f"{', '.join(keys)} {'has' if len(keys) == 1 else 'have'} no effect: {why}"


def _note_encoder(config: TrainConfig, note: Callable[..., None]) -> None:
    encoder = config.p_tuning.encoder_type
    why = f"p_tuning.encoder_type is {encoder}"
    note(why, "p_tuning.num_layers" if encoder == "tpmlp" else "p_tuning.init_std")
    if not encoder.endswith("lstm"):
        note(why, "p_tuning.dropout")
    elif config.p_tuning.num_layers == 1:
        note("p_tuning.num_layers is 1", "p_tuning.dropout")


def _note_schedule(config: TrainConfig, note: Callable[..., None]) -> None:
    if config.virtual_prompt_style == "no-prompts":
        return
    sched = config.optim.sched
    for part, steps in (("warmup", sched.warmup_steps), ("constant", sched.constant_steps)):
        if steps is not None:
            note(f"optim.sched.{part}_steps is given", f"optim.sched.{part}_ratio")


def _why_no_text(config: TrainConfig) -> str:
    """Why no prompt of a run starts from a task's `init_text`; empty where one does."""
    style = config.virtual_prompt_style
    if style == "prompt-tuning" and config.prompt_tuning.init in ("vocabulary", "random"):
        return f"prompt_tuning.init is {config.prompt_tuning.init}"
    if style == "prefix-tuning" and config.prefix_tuning.init == "vocabulary":
        return "prefix_tuning.init is vocabulary"
    if style in ("p-tuning", "no-prompts"):
        return f"virtual_prompt_style is {style}"
    return ""


def _given(group: Any, path: str = "") -> Iterator[str]:
    """The dotted keys below a dataclass whose values are not their defaults."""
    for field in fields(group):
        value, key = getattr(group, field.name), f"{path}{field.name}"
        if is_dataclass(value):
            yield from _given(value, f"{key}.")
        elif value != field.default:
            yield key
