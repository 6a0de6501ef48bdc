"""What a training run is: base, tasks, data, method, optimiser, loop."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pl_compile.config.task import TaskConfig
from pl_compile.errors import ConfigError, check_all


@dataclass(frozen=True)
class DataConfig:
    """Which examples, and how they become token ids.

    Attributes:
        train: JSONL or JSON-array files; each example names its task in `taskname`.
        validation: the same, held out.
        max_seq_length: longest sequence in tokens, virtual ones, BOS and EOS included; what the
            base was made for if None.
        min_seq_length: shorter examples are left out and reported.
        add_bos: whether a sequence opens with the base's BOS. Recorded in the prompt table.
        add_eos: whether an answer ends with the base's EOS. Recorded in the prompt table.
    """

    train: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    max_seq_length: int | None = None
    min_seq_length: int = 1
    add_bos: bool = False
    add_eos: bool = True

    def __post_init__(self) -> None:
        """Refuses lengths that no sequence could have, and no data."""
        check_all(
            ConfigError,
            "checking 'data'",
            {
                "train names no file": len(self.train) > 0,
                f"max_seq_length {self.max_seq_length}, expected at least 2": (
                    self.max_seq_length is None or self.max_seq_length >= 2
                ),
                f"min_seq_length {self.min_seq_length}, expected at least 1": (
                    self.min_seq_length >= 1
                ),
            },
        )


@dataclass(frozen=True)
class PromptTuningConfig:
    """Prompt tuning (Lester et al. 2021, arXiv:2104.08691): the rows themselves are trained.

    Attributes:
        init: "vocabulary" starts from embeddings of sampled tokens, "text" from those of each
            task's `init_text`, "random" from Xavier-normal numbers.
    """

    init: Literal["vocabulary", "text", "random"] = "vocabulary"


@dataclass(frozen=True)
class PTuningConfig:
    """P-tuning (Liu et al. 2021, arXiv:2103.10385): an encoder shared by the tasks makes the rows.

    Attributes:
        encoder_type: "mlp" or "lstm" (bidirectional, with a head of two linear layers).
        encoder_hidden: inner width; the base's hidden size if None, per direction half of it for
            "lstm".
        num_layers: linear layers of "mlp" (at least 2), LSTM layers of "lstm" (at least 1).
        dropout: between LSTM layers.
    """

    encoder_type: Literal["mlp", "lstm"] = "mlp"
    encoder_hidden: int | None = None
    num_layers: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuses numbers that no encoder could have."""
        check_all(
            ConfigError,
            "checking 'p_tuning'",
            {
                f"encoder_hidden {self.encoder_hidden}, expected at least 1": (
                    self.encoder_hidden is None or self.encoder_hidden >= 1
                ),
                f"num_layers {self.num_layers}, expected at least 1": self.num_layers >= 1,
                f"dropout {self.dropout}, expected from 0 to below 1": 0 <= self.dropout < 1,
            },
        )


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up, then half a cosine down to `min_lr`, then a flat tail.

    Attributes:
        warmup_steps: if None, `warmup_ratio` of all steps.
        warmup_ratio: 0 to 1.
        min_lr: the rate at the end.
        constant_steps: length of the tail at `min_lr`.
    """

    warmup_steps: int | None = None
    warmup_ratio: float = 0.05
    min_lr: float = 0.0
    constant_steps: int = 0

    def __post_init__(self) -> None:
        """Refuses numbers that no schedule could honour."""
        check_all(
            ConfigError,
            "checking 'optim.sched'",
            {
                f"warmup_steps {self.warmup_steps}, expected 0 or more": (
                    (self.warmup_steps or 0) >= 0
                ),
                f"warmup_ratio {self.warmup_ratio}, expected 0 to 1": 0 <= self.warmup_ratio <= 1,
                f"min_lr {self.min_lr}, expected 0 or more": self.min_lr >= 0,
                f"constant_steps {self.constant_steps}, expected 0 or more": (
                    self.constant_steps >= 0
                ),
            },
        )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW.

    Attributes:
        lr: the highest rate; the method's own default if None.
        weight_decay: on every trained tensor.
        betas: decay rates of the first and second moment.
        sched: how the rate moves.
    """

    lr: float | None = None
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    sched: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        """Refuses numbers that AdamW cannot take."""
        check_all(
            ConfigError,
            "checking 'optim'",
            {
                f"lr {self.lr}, expected above 0": self.lr is None or 0 < self.lr < math.inf,
                f"weight_decay {self.weight_decay}, expected 0 or more": self.weight_decay >= 0,
                f"betas {list(self.betas)}, expected numbers from 0 to below 1": all(
                    0 <= beta < 1 for beta in self.betas
                ),
            },
        )


@dataclass(frozen=True)
class TrainerConfig:
    """How long, in which portions, in which numbers.

    Attributes:
        max_epochs: passes over the data; the run ends at whichever limit comes first.
        max_steps: optimiser steps.
        global_batch_size: examples per optimiser step.
        micro_batch_size: examples per forward and backward pass; divides `global_batch_size`.
        precision: of the frozen base ("fp32", "bf16"); what is trained is always fp32.
        gradient_clip_val: largest norm of the whole gradient; 0 switches clipping off.
        val_check_interval: a whole number of steps, or a fraction of an epoch.
        log_every_n_steps: how often a training loss is written to `metrics.jsonl`.
    """

    max_epochs: int | None = None
    max_steps: int | None = None
    global_batch_size: int = 16
    micro_batch_size: int = 8
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_clip_val: float = 1.0
    val_check_interval: int | float = 1.0
    log_every_n_steps: int = 1

    def __post_init__(self) -> None:
        """Refuses numbers that no run could honour."""
        doing = "checking 'trainer'"
        if self.max_epochs is None and self.max_steps is None:
            raise ConfigError(
                doing, found="no limit", expected="max_epochs or max_steps", fix="Give one."
            )
        checks = {
            f"{key} {value}, expected at least 1": value is None or value >= 1
            for key, value in (
                ("max_epochs", self.max_epochs),
                ("max_steps", self.max_steps),
                ("global_batch_size", self.global_batch_size),
                ("micro_batch_size", self.micro_batch_size),
                ("log_every_n_steps", self.log_every_n_steps),
            )
        }
        checks |= {
            f"gradient_clip_val {self.gradient_clip_val}, expected 0 or more": (
                self.gradient_clip_val >= 0
            ),
            f"val_check_interval {self.val_check_interval}, expected steps (a whole number from 1) "
            "or a fraction of an epoch (above 0)": 0 < self.val_check_interval < math.inf,
        }
        check_all(ConfigError, doing, checks)
        if self.global_batch_size % self.micro_batch_size:
            raise ConfigError(
                doing,
                found=f"global_batch_size {self.global_batch_size}",
                expected=f"a multiple of micro_batch_size {self.micro_batch_size}",
            )


@dataclass(frozen=True)
class TrainConfig:
    """A training run: everything that decides its result, with the seed.

    Attributes:
        base: the frozen GPT, by the name it was fetched under or as a Hugging Face folder.
        tasks: the tasks to train now.
        data: the examples.
        trainer: length, portions and numbers of the loop.
        virtual_prompt_style: the method, a key of `training.methods.METHODS`.
        prompt_tuning: its options.
        p_tuning: its options.
        optim: optimiser and schedule.
        existing_table: a prompt table whose tasks are carried into the new one, byte for byte.
        seed: of initial rows, data order and dropout.
    """

    base: str
    tasks: tuple[TaskConfig, ...]
    data: DataConfig
    trainer: TrainerConfig
    virtual_prompt_style: Literal["prompt-tuning", "p-tuning"] = "prompt-tuning"
    prompt_tuning: PromptTuningConfig = field(default_factory=PromptTuningConfig)
    p_tuning: PTuningConfig = field(default_factory=PTuningConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    existing_table: Path | None = None
    seed: int = 1234

    def __post_init__(self) -> None:
        """Refuses an empty or ambiguous list of tasks."""
        check_all(
            ConfigError,
            "checking 'seed'",
            {f"{self.seed}, expected 0 to 2**32 - 1": 0 <= self.seed < 2**32},
        )
        names = [task.taskname for task in self.tasks]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if not names or doubled:
            raise ConfigError(
                "checking 'tasks'",
                found=f"the taskname {doubled[0]} twice" if doubled else "none",
                expected="at least one task, each name once",
            )
