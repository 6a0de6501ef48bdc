"""Where a run stands: what the loop carries from step to step and a checkpoint stores."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RunState:
    """Where a run stands. Data order and dropout follow from seed and step.

    Attributes:
        step: steps done, skipped ones included.
        loss: of the last step.
        best_loss: lowest validation loss so far; None before the first validation.
        best_step: when it was reached.
        skipped: steps without an update, because a number was none.
        skipped_in_row: the last of them without a sound one between.
        stop_loss: what a validation loss must be below to count as better for early stopping.
        waited: validations since then.
        seconds: wall time of all its parts.
        ended: why the run ended before its last step: "max_time" or "early_stopping"; else empty.
    """

    step: int = 0
    loss: float = 0.0
    best_loss: float | None = None
    best_step: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    stop_loss: float | None = None
    waited: int = 0
    seconds: float = 0.0
    ended: str = ""
