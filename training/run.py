"""A training run from config to prompt table: the page that reads like the flow.

config -> base -> tokenizer and templates -> examples -> sequences -> method -> loop -> table
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pl_compile.artifact.files import write_atomically
from pl_compile.artifact.prompt_table import (
    BaseIdentity,
    PromptTable,
    TaskEntry,
    read_prompt_table,
    write_prompt_table,
)
from pl_compile.config.decoder import read_decoder_config
from pl_compile.config.read import build, override, read_yaml
from pl_compile.config.train import TrainConfig
from pl_compile.errors import ConfigError, TrainingError, list_problems
from pl_compile.progress import SILENT, Progress
from pl_compile.text.examples import read_examples
from pl_compile.text.render import Renderer, SequenceRules
from pl_compile.text.template import Template, parse_template
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.checkpoint import RunState, load_checkpoint, save_checkpoint
from pl_compile.training.curves import draw_curves
from pl_compile.training.data.batches import BatchPlan
from pl_compile.training.data.dataset import TrainingSequence, render_examples
from pl_compile.training.loop import (
    LoopCallbacks,
    LoopSettings,
    mean_loss,
    train,
    validation_losses,
)
from pl_compile.training.methods import METHODS
from pl_compile.training.methods.prompt_method import PromptMethod
from pl_compile.training.run_folder import RunFolder, check_free, folder_of_one_process
from pl_compile.training.schedule import schedule_from_config
from pl_compile.weights.bases import find_base
from pl_compile.weights.checkpoint import Checkpoint, fingerprint_base


@dataclass(frozen=True)
class TaskResult:
    """How a task came out; losses are per answer token on the validation examples."""

    taskname: str
    virtual_tokens: int
    train_examples: int
    validation_examples: int
    loss_without_prompt: float | None
    loss_with_prompt: float | None


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    Attributes:
        table: the prompt table's file.
        steps: optimiser steps done.
        best_step: the step whose prompts the table holds.
        trained: trainable numbers.
        frozen: numbers of the base.
        seconds: wall time of the whole run.
        tasks: one result per task.
    """

    table: Path
    steps: int
    best_step: int
    trained: int
    frozen: int
    seconds: float
    tasks: tuple[TaskResult, ...]


def read_train_config(path: Path, settings: Sequence[str] = ()) -> TrainConfig:
    """The config of a file with `--set` overrides.

    Raises:
        ConfigError: whatever is wrong with the file, the overrides or a template.
    """
    config = build(TrainConfig, override(read_yaml(path), settings), doing=f"reading {path}")
    parse_templates(config)
    # Absolute from here on: the resolved config must mean the same wherever it is read.
    data = replace(
        config.data,
        train=tuple(file.absolute() for file in config.data.train),
        validation=tuple(file.absolute() for file in config.data.validation),
    )
    existing = config.existing_table and config.existing_table.absolute()
    base = next(
        (str(f.absolute()) for f in (Path(config.base), path.parent / config.base) if f.is_dir()),
        config.base,
    )
    return replace(config, base=base, data=data, existing_table=existing)


def parse_templates(config: TrainConfig) -> dict[str, Template]:
    """The template of each task, by taskname.

    Raises:
        ConfigError: the problems of all templates together.
    """
    templates: dict[str, Template] = {}
    problems: list[str] = []
    for task in config.tasks:
        try:
            templates[task.taskname] = parse_template(task)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("reading the tasks", found=list_problems(problems))
    return templates


def run_training(
    config: TrainConfig, output: Path, *, resume: bool = False, progress: Progress = SILENT
) -> TrainResult:
    """Trains the prompts of all tasks of `config` and writes the run folder `output`.

    Args:
        config: the run.
        output: gets `prompts.safetensors`, `config.yaml`, `metrics.jsonl`, `curves.png` and
            `checkpoints/{last,best}.safetensors`.
        resume: go on from `checkpoints/last.safetensors`, to the same rows and losses.
        progress: who is told.

    Raises:
        PlcError: anything in config, data, base or disk that keeps the run from its end.
    """
    check_free(output, resume=resume)
    with folder_of_one_process(output):
        return _run(config, output, resume=resume, progress=progress)


def _run(config: TrainConfig, output: Path, *, resume: bool, progress: Progress) -> TrainResult:
    started = time.perf_counter()
    templates = parse_templates(config)

    folder = find_base(config.base)
    progress.say(f"loading {folder}")
    fingerprint = fingerprint_base(Checkpoint(folder), read_decoder_config(folder))
    base = FrozenBase(folder, config.trainer.precision)
    identity = BaseIdentity(config.base, fingerprint, base.hidden, base.config.vocab)
    existing = _existing_table(config, identity)
    tokenizer = Tokenizer.from_folder(folder)

    rules = _rules(config, base)
    renderers = {name: Renderer(t, tokenizer, rules) for name, t in templates.items()}
    training = _sequences(config, config.data.train, templates, renderers, base, progress)
    _check_every_task_occurs(config, training)
    validation = (
        _sequences(config, config.data.validation, templates, renderers, base, progress)
        if config.data.validation
        else []
    )

    row = METHODS[config.virtual_prompt_style]
    method = row.build(config, config.tasks, base, tokenizer)
    trained = sum(p.numel() for p in method.parameters())
    progress.say(f"trained: {trained:,} numbers ({config.virtual_prompt_style})")
    progress.say(f"frozen:  {base.parameters:,} numbers ({config.base})")
    before = base.digest()

    plan = _plan(config, training)
    max_steps = _max_steps(config, plan)
    lr = row.default_lr if config.optim.lr is None else config.optim.lr
    schedule = schedule_from_config(config.optim.sched, lr, max_steps)
    optimizer = torch.optim.AdamW(
        method.parameters(), lr, config.optim.betas, weight_decay=config.optim.weight_decay
    )

    run = RunFolder(output, config, fingerprint)
    state = RunState()
    if resume:
        state = load_checkpoint(run.last, method, optimizer, run.identity)
        progress.say(f"resuming after step {state.step}")
    run.open(state.step)
    baseline = run.baseline
    if baseline is None:
        baseline = _baseline(base, validation, progress)
        for number, loss in baseline.items():
            progress.say(f"no-prompt loss of '{config.tasks[number].taskname}': {loss:.3f}")
        run.log({"step": 0, "baseline_by_task": baseline, "baseline": mean_loss(baseline)})

    def improved(state: RunState) -> None:
        table = existing.with_entries(_entries(config, method, rules))
        write_prompt_table(table, run.table)
        save_checkpoint(run.best, state, method, optimizer, run.identity)

    state = train(
        base,
        method,
        optimizer,
        schedule,
        plan,
        training,
        validation,
        LoopSettings(
            seed=config.seed,
            gradient_clip_val=config.trainer.gradient_clip_val,
            validate_every=_interval(config.trainer.val_check_interval, plan.steps_per_epoch),
            log_every=config.trainer.log_every_n_steps,
        ),
        LoopCallbacks(
            log=run.log,
            improved=improved,
            save=lambda state: save_checkpoint(run.last, state, method, optimizer, run.identity),
        ),
        state,
        progress,
    )
    if base.digest() != before:
        raise AssertionError("the frozen base changed during training")
    write_atomically(run.curves, draw_curves(run.records, mean_loss(baseline)))
    return TrainResult(
        table=run.table,
        steps=state.step,
        best_step=state.best_step,
        trained=trained,
        frozen=base.parameters,
        seconds=time.perf_counter() - started,
        tasks=_results(config, training, validation, baseline, run.losses_at(state.best_step)),
    )


def _existing_table(config: TrainConfig, identity: BaseIdentity) -> PromptTable:
    if config.existing_table is None:
        return PromptTable(identity, {})
    table = read_prompt_table(config.existing_table)
    table.check_base(identity.fingerprint, config.base)
    table.check_free(task.taskname for task in config.tasks)  # now, not after hours of training
    return table


def _rules(config: TrainConfig, base: FrozenBase) -> SequenceRules:
    for wanted, key, token_id in (
        (config.data.add_bos, "add_bos", base.config.bos_id),
        (config.data.add_eos, "add_eos", base.config.eos_id),
    ):
        if wanted and token_id is None:
            raise ConfigError(
                f"reading data.{key}",
                found=f"true, but the base '{config.base}' names no such token",
                fix=f"Set data.{key}: false.",
            )
    return SequenceRules(
        base.config.bos_id if config.data.add_bos else None,
        base.config.eos_id if config.data.add_eos else None,
    )


def _sequences(
    config: TrainConfig,
    paths: Sequence[Path],
    templates: Mapping[str, Template],
    renderers: Mapping[str, Renderer],
    base: FrozenBase,
    progress: Progress,
) -> list[TrainingSequence]:
    limit = min(config.data.max_seq_length or base.config.positions, base.config.positions)
    sequences, report = render_examples(
        read_examples(paths, templates),
        renderers,
        max_length=limit,
        min_length=config.data.min_seq_length,
        progress=progress,
    )
    for line in report.lines():
        progress.say(line)
    return sequences


def _check_every_task_occurs(config: TrainConfig, training: Sequence[TrainingSequence]) -> None:
    for index, task in enumerate(config.tasks):
        if not any(sequence.task == index for sequence in training):
            raise TrainingError(
                f"reading the examples of task '{task.taskname}'",
                found="none that can be used for training",
                expected="at least one",
                fix="Add examples, shorten its prompt, or take the task out of the config.",
            )


def _plan(config: TrainConfig, training: Sequence[TrainingSequence]) -> BatchPlan:
    trainer = config.trainer
    if len(training) < trainer.global_batch_size:
        raise TrainingError(
            "planning the batches",
            found=f"{len(training)} usable training examples",
            expected=f"at least one global batch of {trainer.global_batch_size}",
            fix="Lower trainer.global_batch_size (and micro_batch_size), or add examples.",
        )
    lengths = tuple(map(len, training))
    return BatchPlan(lengths, trainer.global_batch_size, trainer.micro_batch_size, config.seed)


def _max_steps(config: TrainConfig, plan: BatchPlan) -> int:
    limits = [config.trainer.max_steps]
    if config.trainer.max_epochs is not None:
        limits.append(config.trainer.max_epochs * plan.steps_per_epoch)
    return min(limit for limit in limits if limit is not None)


def _interval(val_check_interval: float, steps_per_epoch: int) -> int:
    if isinstance(val_check_interval, int):
        return val_check_interval
    return max(1, round(val_check_interval * steps_per_epoch))


def _baseline(
    base: FrozenBase, validation: Sequence[TrainingSequence], progress: Progress
) -> dict[int, float]:
    """Validation losses of the base alone, given the same text without virtual tokens."""
    bare = [sequence.without_virtual() for sequence in validation]
    nothing = torch.zeros(1, 1, base.hidden)
    with progress.bar("no-prompt baseline", len(bare)) as bar:
        return validation_losses(
            base, lambda tasks: nothing.expand(len(tasks), -1, -1), bare, advance=bar.advance
        )


def _entries(
    config: TrainConfig, method: PromptMethod, rules: SequenceRules
) -> dict[str, TaskEntry]:
    method.eval()
    with torch.no_grad():
        rows = [method.rows(index).numpy().copy() for index in range(len(config.tasks))]
    return {
        task.taskname: TaskEntry(
            task, rows[index], rules.bos_id, rules.eos_id, config.virtual_prompt_style
        )
        for index, task in enumerate(config.tasks)
    }


def _results(
    config: TrainConfig,
    training: Sequence[TrainingSequence],
    validation: Sequence[TrainingSequence],
    baseline: Mapping[int, float],
    best: Mapping[int, float],
) -> tuple[TaskResult, ...]:
    return tuple(
        TaskResult(
            task.taskname,
            task.total_virtual_tokens,
            sum(sequence.task == index for sequence in training),
            sum(sequence.task == index for sequence in validation),
            baseline.get(index),
            best.get(index),
        )
        for index, task in enumerate(config.tasks)
    )
