"""The learning rate as a function of the step: warm-up, half a cosine, a flat tail.

Both forms of NeMo's `CosineAnnealing`, exactly: without a tail the warm-up is `(t+1)/(w+1)`, with
one it is Megatron's `t/w`.
"""

import math
from dataclasses import dataclass

from pl_compile.config.train import ScheduleConfig
from pl_compile.errors import ConfigError


@dataclass(frozen=True)
class CosineSchedule:
    """Rates for steps 0 to `max_steps`.

    Attributes:
        lr: the highest rate.
        min_lr: the rate of the tail.
        warmup_steps: length of the warm-up.
        constant_steps: length of the tail.
        max_steps: the last step.
    """

    lr: float
    min_lr: float
    warmup_steps: int
    constant_steps: int
    max_steps: int

    def __post_init__(self) -> None:
        """Refuses phases that do not fit into the run."""
        if self.min_lr > self.lr:
            raise ConfigError(
                "checking 'optim.sched'",
                found=f"min_lr {self.min_lr}",
                expected=f"at most lr {self.lr}",
            )
        if self.warmup_steps + self.constant_steps > self.max_steps:
            raise ConfigError(
                "checking 'optim.sched'",
                found=f"{self.warmup_steps} warm-up and {self.constant_steps} constant steps",
                expected=f"together at most the run's {self.max_steps} steps",
            )

    def rate(self, step: int) -> float:
        """The learning rate of step `step` (from 0)."""
        warmup, tail = self.warmup_steps, self.constant_steps
        decay = self.max_steps - warmup - tail
        if warmup > 0 and step <= warmup:
            return self.lr * (step / warmup if tail else (step + 1) / (warmup + 1))
        if step > warmup + decay or decay == 0:
            return self.min_lr
        half_cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / decay))
        return self.min_lr + (self.lr - self.min_lr) * half_cosine


def schedule_from_config(config: ScheduleConfig, lr: float, max_steps: int) -> CosineSchedule:
    """The schedule of a run of `max_steps` steps whose highest rate is `lr`.

    Raises:
        ConfigError: warm-up and tail are longer than the run, or `min_lr` is above `lr`.
    """
    warmup = config.warmup_steps
    if warmup is None:
        warmup = round(config.warmup_ratio * max_steps)
    tail = config.constant_steps
    if tail is None:
        tail = round(config.constant_ratio * max_steps)
    return CosineSchedule(lr, config.min_lr, warmup, tail, max_steps)
