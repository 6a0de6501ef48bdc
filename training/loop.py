"""The training loop, on one screen.

Set the rate, take a batch, forward, backward, add up, clip, step, log, validate, save. In: a `Job`
(base, method, optimiser, schedule, sequences). Out: a trained method; meanwhile records and
checkpoints. Knows nothing of file formats, templates or bundles.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pl_compile.errors import TrainingError
from pl_compile.progress import Bar, Progress
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.data.batches import BatchOrder, for_validation
from pl_compile.training.data.dataset import TrainingSequence
from pl_compile.training.data.packing import pack
from pl_compile.training.methods.prompt_method import PromptMethod
from pl_compile.training.run_state import RunState
from pl_compile.training.schedule import CosineSchedule
from pl_compile.training.team import ALONE, Team

Record = dict[str, Any]

# With a smaller loss scale, a gradient that is infinite or NaN has another cause than the scale.
_SMALLEST_SCALE = 1.0


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the loop.

    Attributes:
        seed: of dropout.
        gradient_clip_val: largest norm of the whole gradient; 0 for none.
        validate_every: steps between validations; the last step always validates.
        save_every: steps between checkpoints; None for after each validation only.
        log_every: steps between training records.
        validation_batch_size: examples per forward pass of a validation.
        max_seconds: wall time after which the current step is the last.
        max_skipped: how many steps in a row may be skipped.
        patience: how many validations in a row may be without a better loss; None for any number.
        min_delta: by how much a validation loss must be lower to count as better.
    """

    seed: int
    gradient_clip_val: float
    validate_every: int
    save_every: int | None
    log_every: int
    validation_batch_size: int
    max_seconds: float
    max_skipped: int
    patience: int | None
    min_delta: float


@dataclass(frozen=True)
class Job:
    """What is trained, and on which data.

    Attributes:
        base: computes losses.
        method: makes prompts.
        optimizer: of the method's parameters, and of the base's where it is trained too.
        scaler: scales the loss of an fp16 base; does nothing otherwise.
        schedule: the rate of each step, for the first parameter group; others keep their ratio.
        order: which sequences form a step.
        training: the sequences.
        validation: held-out ones.
        settings: of the loop.
        team: the processes that share the work.
    """

    base: FrozenBase
    method: PromptMethod
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedule: CosineSchedule
    order: BatchOrder
    training: Sequence[TrainingSequence]
    validation: Sequence[TrainingSequence]
    settings: LoopSettings
    team: Team = ALONE

    @property
    def parameters(self) -> list[Tensor]:
        """All trained tensors."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]


@dataclass(frozen=True)
class LoopHooks:
    """What the loop calls.

    Attributes:
        log: gets each record.
        score: called at each validation; gives scores of generated answers by taskname; may be
            empty.
        save: gets the state of the run.
    """

    log: Callable[[Record], None]
    score: Callable[[RunState], Mapping[str, Mapping[str, float]]]
    save: Callable[[RunState], None]


def train(job: Job, hooks: LoopHooks, state: RunState, progress: Progress) -> RunState:
    """Trains from `state.step` to the end and returns the state at the end.

    Raises:
        TrainingError: too many steps in a row with a loss or gradient that is infinite or NaN.
    """
    settings, last_step = job.settings, job.schedule.max_steps
    clock = time.monotonic() - state.seconds
    with progress.bar("training", last_step) as bar:
        bar.advance(state.step)
        while state.step < last_step and not state.ended:
            state = replace(_one_step(job, hooks, state, bar), seconds=time.monotonic() - clock)
            bar.advance(note=f"loss {state.loss:.3f}")
            over = state.seconds >= settings.max_seconds
            if math.isfinite(settings.max_seconds) and job.team.any(over):
                state = replace(state, ended="max_time")
            is_last = state.step == last_step or bool(state.ended)
            if state.step % settings.validate_every == 0 or is_last:
                state = _validate(job, hooks, state, bar)
                hooks.save(state)
            elif settings.save_every and state.step % settings.save_every == 0:
                hooks.save(state)
    return state


def _one_step(job: Job, hooks: LoopHooks, state: RunState, bar: Bar) -> RunState:
    started = time.perf_counter()
    step, rate = state.step, job.schedule.rate(state.step - state.skipped)
    _set_rate(job.optimizer, rate)
    job.method.train()

    micro_batches = job.order.step(step)
    losses = torch.full([len(micro_batches)], 0.0)
    tokens = torch.zeros(1)
    for number, rows in job.team.share(list(enumerate(micro_batches))):
        batch = pack([job.training[i] for i in rows], learned_prefix=job.method.learned_prefix)
        batch = batch.to(job.base.device)
        torch.manual_seed(_dropout_seed(job.settings.seed, step, number))
        prompts = {group.task: job.method.prompt(group.task) for group in batch.groups}
        of_targets = job.base.token_losses(batch, prompts)
        loss = of_targets.mean() if len(of_targets) else of_targets.sum()
        job.scaler.scale(loss / len(micro_batches)).backward()  # type: ignore[no-untyped-call]
        losses[number] = loss.item()
        tokens += len(batch.token_ids)
        bar.advance(0, note=f"loss {losses[number]:.3f}")
    job.team.add_up([losses, tokens, *_gradients(job.parameters)])
    job.scaler.unscale_(job.optimizer)
    limit = job.settings.gradient_clip_val or math.inf
    norm = torch.nn.utils.clip_grad_norm_(job.parameters, limit).item()
    loss_of_step = losses.mean().item()

    sound = math.isfinite(loss_of_step) and math.isfinite(norm)
    if sound:
        job.scaler.step(job.optimizer)
    scale = job.scaler.get_scale()
    job.scaler.update()  # halves the scale after an overflow
    job.optimizer.zero_grad()
    state = replace(state, step=step + 1, loss=loss_of_step)
    if not sound:
        sound_loss = losses.isfinite().tolist()
        bad = [rows for rows, ok in zip(micro_batches, sound_loss, strict=True) if not ok]
        bad = bad or micro_batches
        return _skipped(job, hooks, state, norm, [i for rows in bad for i in rows], scale)
    if state.step % job.settings.log_every == 0:
        record = {
            "step": state.step,
            "train_loss": loss_of_step,
            "lr": rate,
            "gradient_norm": norm,
            "tokens": int(tokens.item()),
            "seconds": time.perf_counter() - started,
        }
        hooks.log(record | ({"loss_scale": scale} if job.scaler.is_enabled() else {}))
    return replace(state, skipped_in_row=0)


def _skipped(
    job: Job, hooks: LoopHooks, state: RunState, norm: float, rows: Sequence[int], scale: float
) -> RunState:
    """Skips a step whose loss or gradient is infinite or NaN; the rate stays where it is."""
    what = f"a loss of {state.loss}" if not math.isfinite(state.loss) else f"a gradient of {norm}"
    places = [job.training[i].where for i in rows]
    hooks.log({"step": state.step, "skipped": what, "skipped_rows": places})
    # A loss scale that is too large is found by halving it. That is not a fault of the batch.
    searching = job.scaler.is_enabled() and scale > _SMALLEST_SCALE
    in_row = state.skipped_in_row + (not searching)
    if in_row >= job.settings.max_skipped:
        shown = ", ".join(places[:8]) + (" …" if len(places) > 8 else "")
        raise TrainingError(
            f"training step {state.step}",
            found=f"{what}, {in_row} skipped steps in a row; the last on {shown}",
            fix="Lower optim.lr, train with precision fp32, or look at these examples.",
        )
    return replace(state, skipped=state.skipped + 1, skipped_in_row=in_row)


def _validate(job: Job, hooks: LoopHooks, state: RunState, bar: Bar) -> RunState:
    job.method.eval()  # without dropout: the prompts that the table will hold
    losses = validation_losses(
        job.base,
        job.method,
        job.validation,
        batch_size=job.settings.validation_batch_size,
        team=job.team,
        advance=lambda _: bar.advance(0, note="validating"),
    )
    mean = mean_loss(losses)
    if mean is not None and not math.isfinite(mean):
        raise TrainingError(
            f"validating after step {state.step}",
            found=f"a loss of {mean}",
            fix="Lower optim.lr, or train with precision fp32.",
        )
    if mean is not None:
        hooks.log({"step": state.step, "val_loss": mean, "by_task": losses})
    scores = hooks.score(state)
    if scores:
        hooks.log({"step": state.step, "val_metrics": scores})
    best = state.best_loss
    if mean is None or best is None or mean < best:
        state = replace(state, best_loss=mean, best_step=state.step)
    reference = state.stop_loss
    if mean is None or reference is None or mean < reference - job.settings.min_delta:
        return replace(state, stop_loss=mean, waited=0)
    state = replace(state, waited=state.waited + 1)
    if job.settings.patience is not None and state.waited >= job.settings.patience:
        return replace(state, ended="early_stopping")
    return state


def validation_losses(
    base: FrozenBase,
    method: PromptMethod,
    sequences: Sequence[TrainingSequence],
    *,
    batch_size: int = 16,
    team: Team = ALONE,
    advance: Callable[[int], None] = lambda amount: None,
) -> dict[int, float]:
    """Mean loss per target token for each task number that occurs; empty without sequences."""
    tasks = max((sequence.task for sequence in sequences), default=-1) + 1
    sums = torch.zeros(2, tasks, dtype=torch.float64)
    with torch.no_grad():
        prompts = {task: method.prompt(task) for task in range(tasks)}
        batches = for_validation(sequences, batch_size)
        for start in range(0, len(batches), team.data_size):
            turn = batches[start : start + team.data_size]
            # A process without rows of its own repeats others': a sharded base needs equal passes.
            rows = turn[team.data_rank % len(turn)]
            batch = pack(rows, learned_prefix=method.learned_prefix).to(base.device)
            losses = base.token_losses(batch, prompts).double().cpu()
            if team.data_rank < len(turn):
                sums[0].index_add_(0, batch.target_tasks.cpu(), losses)
                sums[1].index_add_(0, batch.target_tasks.cpu(), torch.ones_like(losses))
            advance(sum(map(len, turn)))
    team.add_up([sums])
    # Left out: a task where each target is the first token of a bare prompt has no losses.
    return {task: loss / count for task, (loss, count) in enumerate(sums.T.tolist()) if count}


def mean_loss(losses: Mapping[int, float]) -> float | None:
    """The mean over tasks, so that a task with long answers does not outweigh the others."""
    return sum(losses.values()) / len(losses) if losses else None


def _dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """The seed of a micro-batch; it does not depend on the process."""
    return int(np.random.SeedSequence([seed, step, micro_batch]).generate_state(1)[0])


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("ratio", 1.0)


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """All gradients; zero where a process had no examples of a task."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
