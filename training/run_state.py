"""The state of a run, which the loop updates at each step and a checkpoint stores."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RunState:
    """The state of a run. Data order and dropout follow from seed and step.

    Attributes:
        step: steps done, skipped ones included.
        loss: of the last step.
        best_loss: lowest validation loss so far; None before the first validation.
        best_step: when it was reached.
        skipped: steps without an update, because a loss or gradient was infinite or NaN.
        skipped_in_row: how many of them came last, without another step between.
        stop_loss: what a validation loss must be below to count as better for early stopping.
        waited: validations since one was better.
        seconds: wall time, resumed parts included.
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
