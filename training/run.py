"""A training run from config to prompt table: the page that reads like the flow.

config -> base -> examples -> sequences -> method -> loop -> table
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pl_compile.artifact.files import write_atomically
from pl_compile.artifact.prompt_table import PromptTable, write_prompt_table
from pl_compile.config.read import plain_from_config
from pl_compile.config.train import TrainConfig
from pl_compile.errors import TrainingError
from pl_compile.families.read import read_decoder_config
from pl_compile.progress import SILENT, Progress
from pl_compile.text.notes import notes_on
from pl_compile.text.render import Renderer
from pl_compile.text.template import parse_templates
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.checkpoint import (
    load_checkpoint,
    recorded_precision,
    recorded_start,
    save_checkpoint,
)
from pl_compile.training.compare_tokens import notes_on_tokens
from pl_compile.training.curves import draw_curves
from pl_compile.training.data.batches import BatchOrder
from pl_compile.training.data.dataset import TrainingSequence
from pl_compile.training.data.load import (
    check_every_task_occurs,
    check_lengths,
    load_sequences,
    sequence_rules,
)
from pl_compile.training.loggers import Logger, need_loggers, open_loggers
from pl_compile.training.loop import (
    Job,
    LoopHooks,
    LoopSettings,
    Record,
    mean_loss,
    train,
    validation_losses,
)
from pl_compile.training.methods import METHODS
from pl_compile.training.methods.no_prompts import NoPrompts
from pl_compile.training.new_base import check_new_base, write_new_base
from pl_compile.training.parallel import check_parallel
from pl_compile.training.precision import PrecisionChoice, choose_precision
from pl_compile.training.provenance import record_start
from pl_compile.training.run_folder import (
    RunFolder,
    check_free,
    folder_of_one_process,
    last_checkpoint,
)
from pl_compile.training.run_state import RunState
from pl_compile.training.schedule import schedule_from_config
from pl_compile.training.table import existing_tasks, trained_entries
from pl_compile.training.team import (
    Team,
    device_of_this_process,
    only_the_leader_raises,
    processes,
    team_of,
)
from pl_compile.weights.bases import find_base
from pl_compile.weights.fingerprint import identify_base
from pl_compile.weights.open_base import open_base


@dataclass(frozen=True)
class Scores:
    """Scores of generated answers on the validation examples.

    Attributes:
        metrics: by taskname and metric, in percent.
        predictions: task, prompt, answer and expected answer of each.
    """

    metrics: Mapping[str, Mapping[str, float]]
    predictions: Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Helpers:
    """Functions from outside of training that a run may call; the driver gives them.

    Attributes:
        score: answers the validation examples with the current prompts; None for never. In a run
            without prompts, it gets None for the table.
        bundle: compiles the table into a folder for the loggers; None for never.
    """

    score: Callable[[TrainConfig, FrozenBase, Tokenizer, PromptTable | None], Scores] | None = None
    bundle: Callable[[Path, Path, Path], None] | None = None


@dataclass(frozen=True)
class TaskResult:
    """The result of a task; losses are per answer token on the validation examples."""

    taskname: str
    virtual_tokens: int
    train_examples: int
    validation_examples: int
    loss_without_prompt: float | None
    loss_with_prompt: float | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        table: the prompt table's file; None in a run without prompts.
        base: the new base's folder, where the base was trained too; else None.
        steps: optimiser steps done.
        best_step: the step whose prompts the table holds.
        skipped: steps without an update, because a loss or gradient was infinite or NaN.
        ended: why it ended before the last step: "max_time" or "early_stopping"; else empty.
        precision: the precision that the base computed in, and why.
        trained: how many numbers were trained.
        frozen: how many numbers of the base stayed as they were.
        seconds: wall time of the whole run.
        tasks: one result per task.
    """

    table: Path | None
    base: Path | None
    steps: int
    best_step: int
    skipped: int
    ended: str
    precision: PrecisionChoice
    trained: int
    frozen: int
    seconds: float
    tasks: tuple[TaskResult, ...]


def run_training(
    config: TrainConfig,
    output: Path,
    *,
    resume: bool = False,
    device: str | None = None,
    progress: Progress = SILENT,
    helpers: Helpers | None = None,
) -> TrainResult:
    """Trains the prompts of all tasks of `config` and writes the run folder `output`.

    With several processes (see `team.py`) only the leader writes. It also reports errors that all
    of them meet; the others raise `SystemExit` then.

    Args:
        config: the run.
        output: gets `prompts.safetensors`, `config.yaml`, `metrics.jsonl`, `history.jsonl`,
            `curves.png` and `checkpoints/`.
        resume: go on from `checkpoints/last.safetensors`, to the same rows and losses.
        device: of torch; if None, a GPU where there is one.
        progress: gets messages.
        helpers: see `Helpers`; needed where `config.validation.generate` is set.

    Raises:
        PlcError: something in config, data, base or on the disk prevents the run.
    """
    with only_the_leader_raises():
        need_loggers(config.logging)
        check_parallel(config, read_decoder_config(find_base(config.base)), processes())
        device = device or device_of_this_process()
    with team_of(config.parallel, device) as team, ExitStack() as folder:

        def take_folder() -> None:
            check_free(output, resume=resume)
            if config.lm_finetune:
                check_new_base(find_base(config.base), output / "base")
            folder.enter_context(folder_of_one_process(output))

        team.lead(take_folder)
        told = progress if team.leads else SILENT
        precision = choose_precision(
            config,
            device,
            recorded=recorded_precision(last_checkpoint(output)) if resume else None,
            team=team,
            say=told.say,
        )
        trainer = replace(config.trainer, precision=precision.chosen)
        config = replace(config, trainer=trainer)
        if resume and config.prompt_tuning.init == "auto":
            # A resumed run does not start its prompts anew, so it keeps the recorded start.
            config = replace(config, prompt_tuning=recorded_start(last_checkpoint(output)))
        run = _Run(config, precision, output, team, device, told, helpers)
        return run.go(resume=resume)


class _Run:
    """A run: its parts, and what it does at validations and checkpoints."""

    def __init__(
        self,
        config: TrainConfig,
        precision: PrecisionChoice,
        output: Path,
        team: Team,
        device: str,
        progress: Progress,
        helpers: Helpers | None,
    ) -> None:
        self._started = time.perf_counter()
        self._config, self._progress, self._helpers = config, progress, helpers or Helpers()
        self._precision, self._output, self._team = precision, output, team
        if team.size > 1:
            progress.say(
                f"{team.size} processes: {team.data_size} data parallel, "
                f"{team.tensor_size} tensor parallel"
            )
        self._folder = find_base(config.base)
        progress.say(f"loading {self._folder}")
        checkpoint, decoder = open_base(self._folder)
        identity = identify_base(config.base, checkpoint, decoder)
        self._kept = existing_tasks(config, identity)
        tokenizer = self._tokenizer = Tokenizer.from_folder(self._folder, vocab=decoder.vocab)
        templates = parse_templates(config.tasks)
        for note in notes_on(tokenizer, templates.values()):
            progress.say(note)

        check_lengths(config, decoder, progress)
        rules = sequence_rules(config, decoder, tokenizer)
        if team.leads:
            renderers = [Renderer(t, tokenizer, rules) for t in templates.values()]
            for note in notes_on_tokens(renderers, self._folder):
                progress.say(note)
        sources = (config.data.train, config.data.validation)

        def load() -> list[list[TrainingSequence]]:
            return [
                load_sequences(config, paths, decoder, tokenizer, rules, progress)
                for paths in sources
            ]

        # The other processes find what the leader has rendered in the cache.
        sequences = team.after_leader(load) if config.data.cache else load()
        self._training, self._validation = sequences
        check_every_task_occurs(config, self._training)

        self._base = FrozenBase(
            self._folder,
            precision.chosen,
            config=decoder,
            device=device,
            trainable=config.lm_finetune,
            activation_checkpointing=config.trainer.activation_checkpointing,
            compile=config.trainer.compile,
            team=team,
            shard=config.parallel.shard_base,
        )
        self._method = METHODS[config.virtual_prompt_style].build(
            config, config.tasks, self._base, tokenizer
        )
        # A learned prefix starts as the keys and values of BOS and a text, so BOS is inside it.
        self._rules = replace(rules, bos_id=None) if self._method.learned_prefix else rules
        self._run = RunFolder(output, config, identity.fingerprint, writes=team.leads)
        self._loggers: list[Logger] = []

    def go(self, *, resume: bool) -> TrainResult:
        """Trains, and writes the table."""
        config, progress = self._config, self._progress
        trained = sum(p.numel() for p in self._method.parameters())
        progress.say(f"trained: {trained:,} numbers ({config.virtual_prompt_style})")
        progress.say(
            f"{'tuned' if config.lm_finetune else 'frozen'}:  "
            f"{self._base.parameters:,} numbers ({config.base})"
        )
        before = self._base.digest()
        job = self._job() if trained else None
        state = RunState()
        if resume and job is not None:
            state = load_checkpoint(self._run.last, job, self._run.identity)
            if state.ended == "max_time" and state.seconds < config.trainer.max_seconds:
                state = replace(state, ended="")  # it has more time now
            progress.say(f"resuming after step {state.step}")
        self._team.check_equal("the beginning", self._digest(state.step, self._run.identity))
        self._team.lead(lambda: self._record_start(state, resume))
        self._team.after_leader(lambda: self._run.open(state.step))
        self._loggers = self._team.lead(lambda: self._open_loggers(state)) or []
        try:
            baseline = self._baseline()
            if job is None:
                self._score(state)
            else:
                if state.step:
                    self._team.lead(partial(self._follow, job, state))
                hooks = LoopHooks(self._log, self._score, self._save(job))
                state = train(job, hooks, state, progress)
            if not config.lm_finetune and self._base.digest() != before:
                raise AssertionError("the frozen base changed during training")
            if self._team.leads:
                curves = draw_curves(self._run.records, mean_loss(baseline))
                write_atomically(self._run.curves, curves)
            result = self._result(state, baseline, trained)
            self._finish_loggers()
        except BaseException:
            for logger in self._loggers:
                logger.abort()
            raise
        return result

    def _record_start(self, state: RunState, resumed: bool) -> None:
        # Written first: by this file the next run knows that the other files belong to a run.
        precision = asdict(self._precision)
        record_start(self._output, sys.argv, state.step, resumed=resumed, precision=precision)

    def _open_loggers(self, state: RunState) -> list[Logger]:
        return open_loggers(
            self._config.logging,
            self._output,
            plain_from_config(self._config),
            resumed_at=state.step,
            say=self._progress.say,
        )

    def _digest(self, *also: Any) -> bytes:
        """A digest of the current prompts, and of what else must be the same in all processes."""
        digest = hashlib.sha256(json.dumps(also, sort_keys=True).encode())
        for tensor in self._method.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.digest()

    def _job(self) -> Job:
        config = self._config
        trainer, optim = config.trainer, config.optim
        if len(self._training) < trainer.global_batch_size:
            raise TrainingError(
                "planning the batches",
                found=f"{len(self._training)} usable training examples",
                expected=f"at least one global batch of {trainer.global_batch_size}",
                fix="Lower trainer.global_batch_size (and micro_batch_size), or add examples.",
            )
        order = BatchOrder(
            len(self._training),
            trainer.global_batch_size,
            trainer.micro_batch_size,
            config.seed,
            config.data.shuffle,
        )
        lr = METHODS[config.virtual_prompt_style].default_lr if optim.lr is None else optim.lr
        groups: list[dict[str, Any]] = [{"params": list(self._method.parameters())}]
        if config.lm_finetune:
            groups.append(
                {"params": list(self._base.model.parameters()), "ratio": optim.lm_lr / lr}
            )
        optimizer = torch.optim.AdamW(groups, lr, optim.betas, weight_decay=optim.weight_decay)
        stopping = config.early_stopping
        return Job(
            self._base,
            self._method.to(self._base.device),
            optimizer,
            torch.amp.GradScaler(
                self._base.device.type,
                enabled=self._precision.chosen == "fp16",
                growth_interval=1000,
            ),
            schedule_from_config(optim.sched, lr, _max_steps(config, order)),
            order,
            self._training,
            self._validation,
            LoopSettings(
                seed=config.seed,
                gradient_clip_val=trainer.gradient_clip_val,
                validate_every=_interval(trainer.val_check_interval, order.steps_per_epoch),
                save_every=config.checkpoint.every_n_steps,
                log_every=trainer.log_every_n_steps,
                validation_batch_size=trainer.validation_batch_size,
                max_seconds=trainer.max_seconds,
                max_skipped=trainer.max_skipped_steps,
                patience=stopping.patience if stopping else None,
                min_delta=stopping.min_delta if stopping else 0.0,
            ),
            self._team,
        )

    def _baseline(self) -> dict[int, float]:
        """Validation losses of the base alone, with the same text without virtual tokens."""
        if self._run.baseline is not None:
            return self._run.baseline
        bare = [sequence.without_virtual() for sequence in self._validation]
        with self._progress.bar("no-prompt baseline", len(bare)) as bar:
            losses = validation_losses(
                self._base,
                NoPrompts(),
                bare,
                batch_size=self._config.trainer.validation_batch_size,
                team=self._team,
                advance=bar.advance,
            )
        for task, loss in losses.items():
            name = self._config.tasks[task].taskname
            self._progress.say(f"no-prompt loss of '{name}': {loss:.3f}")
        self._log({"step": 0, "baseline_by_task": losses, "baseline": mean_loss(losses)})
        return losses

    def _log(self, record: Record) -> None:
        self._run.log(record)
        for logger in self._loggers:
            logger.log(self._run.records[-1])

    def _new_table(self) -> PromptTable:
        """A table of only the trained prompts, as they are now."""
        entries = trained_entries(self._config, self._method, self._rules, self._base.hidden)
        return PromptTable(self._kept.base, entries)

    def _score(self, state: RunState) -> Mapping[str, Mapping[str, float]]:
        if not self._config.validation.generate or self._helpers.score is None:
            return {}
        trains = any(True for _ in self._method.parameters())
        table = self._new_table() if trains else None
        score = partial(self._helpers.score, self._config, self._base, self._tokenizer, table)
        # A part of a divided base cannot answer alone: all answer, and the leader's scores count.
        scores = score() if self._base.divided else self._team.lead(score)
        if scores is None or not self._team.leads:
            return {}
        for logger in self._loggers:
            logger.predictions(state.step, scores.predictions)
        if not trains:
            self._log({"step": state.step, "val_metrics": scores.metrics})
        return scores.metrics

    def _save(self, job: Job) -> Callable[[RunState], None]:
        def save(state: RunState) -> None:
            self._team.check_equal("the prompts", self._digest(state.step))
            self._team.lead(lambda: write(state))

        def write(state: RunState) -> None:
            table = self._new_table()
            if self._config.lm_finetune:
                # These prompts fit weights that no folder holds yet. They must not seem to fit the
                # old weights.
                table = replace(table, base=replace(table.base, fingerprint=self._base.digest()))
            save_checkpoint(self._run.last, state, job, table, self._run.identity)
            self._follow(job, state)

        return save

    def _follow(self, job: Job, state: RunState) -> None:
        """Writes the table and the best checkpoints after a checkpoint that follows a validation.

        A resumed run does so again, since a kill may have come before it.
        """
        if state.best_step == state.step:
            table = self._new_table()
            if self._config.lm_finetune:
                fingerprint = write_new_base(self._base, self._folder, self._run.new_base)
                name = str(self._run.new_base.absolute())
                table = replace(table, base=replace(table.base, name=name, fingerprint=fingerprint))
            write_prompt_table(
                PromptTable(table.base, self._kept.entries).with_entries(table.entries),
                self._run.table,
            )
            save_checkpoint(self._run.best, state, job, table, self._run.identity)
        most = self._config.checkpoint.save_top_k
        place = self._run.among_best(state, most) if most > 1 else None
        if place is not None:
            write_atomically(place, self._run.last.read_bytes())
            self._run.drop_worse(most)

    def _finish_loggers(self) -> None:
        if not self._loggers:
            return
        artifacts = [self._run.table] if self._run.table.is_file() else []
        wandb = self._config.logging.wandb
        if artifacts and self._helpers.bundle is not None and wandb and wandb.log_artifacts:
            bundle = self._output / "bundle"
            folder = self._run.new_base if self._config.lm_finetune else self._folder
            self._helpers.bundle(self._run.table, folder, bundle)
            artifacts.append(bundle)
        for logger in self._loggers:
            logger.finish(artifacts)

    def _result(self, state: RunState, baseline: Mapping[int, float], trained: int) -> TrainResult:
        best = self._run.losses_at(state.best_step)
        metrics = self._run.metrics_at(state.best_step)
        results = []
        for index, task in enumerate(self._config.tasks):
            loss, without = best.get(index), baseline.get(index)
            if loss is not None and without is not None and loss >= without:
                self._progress.say(
                    f"warning: the prompt of '{task.taskname}' does not beat the base without it: "
                    f"loss {loss:.3f} against {without:.3f}. Train longer, or change optim.lr or "
                    "the initial text."
                )
            results.append(
                TaskResult(
                    task.taskname,
                    task.total_virtual_tokens,
                    sum(sequence.task == index for sequence in self._training),
                    sum(sequence.task == index for sequence in self._validation),
                    without,
                    loss,
                    metrics.get(task.taskname, {}),
                )
            )
        return TrainResult(
            table=self._run.table if trained else None,
            base=self._run.new_base if self._config.lm_finetune else None,
            steps=state.step,
            best_step=state.best_step,
            skipped=state.skipped,
            ended=state.ended,
            precision=self._precision,
            trained=trained + (self._base.parameters if self._config.lm_finetune else 0),
            frozen=0 if self._config.lm_finetune else self._base.parameters,
            seconds=time.perf_counter() - self._started,
            tasks=tuple(results),
        )


def _max_steps(config: TrainConfig, order: BatchOrder) -> int:
    limits = [config.trainer.max_steps]
    if config.trainer.max_epochs is not None:
        limits.append(config.trainer.max_epochs * order.steps_per_epoch)
    return min(limit for limit in limits if limit is not None)


def _interval(val_check_interval: float, steps_per_epoch: int) -> int:
    if isinstance(val_check_interval, int):
        return val_check_interval
    return max(1, round(val_check_interval * steps_per_epoch))
