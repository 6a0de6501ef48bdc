"""The training loop, on one screen.

Set the rate, take a batch, forward, backward, clip, step, log, evaluate, save. In: a frozen base, a
method, rendered sequences and a plan. Out: a trained method, and on the way records and
checkpoints. Knows nothing of files' formats, templates or bundles.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pl_compile.errors import TrainingError
from pl_compile.progress import Progress
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.checkpoint import RunState
from pl_compile.training.data.batches import BatchPlan, MicroBatch, collate, in_length_order
from pl_compile.training.data.dataset import TrainingSequence
from pl_compile.training.methods import stacked_rows
from pl_compile.training.methods.prompt_method import PromptMethod
from pl_compile.training.schedule import CosineSchedule

Record = dict[str, Any]
RowsOf = Callable[[Tensor], Tensor]  # int64 [batch] tasks -> float [batch, virtual, hidden]


@dataclass(frozen=True)
class LoopSettings:
    """How the loop moves.

    Attributes:
        seed: of dropout.
        gradient_clip_val: largest norm of the whole gradient; 0 for none.
        validate_every: steps between validations; the last step always validates.
        log_every: steps between training records.
    """

    seed: int
    gradient_clip_val: float
    validate_every: int
    log_every: int


@dataclass(frozen=True)
class LoopCallbacks:
    """What the loop hands out.

    Attributes:
        log: takes each record.
        improved: called when the validation loss is the lowest so far.
        save: called after each validation, with where the run stands.
    """

    log: Callable[[Record], None]
    improved: Callable[[RunState], None]
    save: Callable[[RunState], None]


def train(
    base: FrozenBase,
    method: PromptMethod,
    optimizer: torch.optim.Optimizer,
    schedule: CosineSchedule,
    plan: BatchPlan,
    training: Sequence[TrainingSequence],
    validation: Sequence[TrainingSequence],
    settings: LoopSettings,
    callbacks: LoopCallbacks,
    state: RunState,
    progress: Progress,
) -> RunState:
    """Trains from `state.step` to the schedule's end and returns where the run stands then.

    Raises:
        TrainingError: the loss is not a finite number.
    """
    with progress.bar("training", schedule.max_steps) as bar:
        bar.advance(state.step)
        for step in range(state.step, schedule.max_steps):
            started = time.perf_counter()
            torch.manual_seed((settings.seed << 31) + step)  # dropout: a function of the step
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step)

            method.train()
            micro_batches = [collate([training[i] for i in rows]) for rows in plan.step(step)]
            loss = 0.0
            for batch in micro_batches:
                part = base.loss(batch, stacked_rows(method, batch.tasks)) / len(micro_batches)
                part.backward()  # type: ignore[no-untyped-call]
                loss += part.item()
            _check_finite(f"training step {step + 1}", "a loss", loss)
            limit = settings.gradient_clip_val or math.inf
            norm = torch.nn.utils.clip_grad_norm_(method.parameters(), limit).item()
            _check_finite(f"training step {step + 1}", "a gradient norm", norm)
            optimizer.step()
            optimizer.zero_grad()

            state = replace(state, step=step + 1)
            bar.advance(note=f"loss {loss:.3f}")
            if state.step % settings.log_every == 0:
                callbacks.log(
                    {
                        "step": state.step,
                        "train_loss": loss,
                        "lr": schedule.rate(step),
                        "gradient_norm": norm,
                        "tokens": sum(batch.token_ids.numel() for batch in micro_batches),
                        "seconds": time.perf_counter() - started,
                    }
                )

            if state.step % settings.validate_every == 0 or state.step == schedule.max_steps:
                method.eval()  # without dropout: the rows that the table will hold
                losses = validation_losses(base, lambda t: stacked_rows(method, t), validation)
                mean = mean_loss(losses)
                _check_finite(f"validating after step {state.step}", "a loss", mean or 0.0)
                if mean is not None:
                    callbacks.log({"step": state.step, "val_loss": mean, "by_task": losses})
                if mean is None or state.best_loss is None or mean < state.best_loss:
                    state = replace(state, best_loss=mean, best_step=state.step)
                    callbacks.improved(state)
                callbacks.save(state)
    return state


def validation_losses(
    base: FrozenBase,
    rows_of: RowsOf,
    sequences: Sequence[TrainingSequence],
    *,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda amount: None,
) -> dict[int, float]:
    """Mean loss per target token for each task number that occurs; empty without sequences."""
    sums: dict[int, float] = {}
    counts: dict[int, int] = {}
    with torch.no_grad():
        for rows in in_length_order(sequences, batch_size):
            batch = collate(rows)
            losses = base.token_losses(batch, rows_of(batch.tasks))
            by_row = torch.split(losses, _targets_by_row(batch))
            for row, token_losses in zip(rows, by_row, strict=True):
                sums[row.task] = sums.get(row.task, 0.0) + token_losses.sum().item()
                counts[row.task] = counts.get(row.task, 0) + len(token_losses)
            advance(len(rows))
    # A task whose every target was the first token of a bare prompt has nothing to be measured by.
    return {task: sums[task] / counts[task] for task in sorted(sums) if counts[task]}


def mean_loss(losses: dict[int, float]) -> float | None:
    """The mean over tasks, so that a task with long answers does not outweigh the others."""
    return sum(losses.values()) / len(losses) if losses else None


def _targets_by_row(batch: MicroBatch) -> list[int]:
    counts: list[int] = (batch.targets >= 0).sum(dim=1).tolist()
    return counts


def _check_finite(doing: str, what: str, value: float) -> None:
    """Stops the run before a number that is none reaches the rows or a checkpoint."""
    if not math.isfinite(value):
        raise TrainingError(
            doing,
            found=f"{what} of {value}",
            fix="Lower optim.lr, or train with precision fp32.",
        )
