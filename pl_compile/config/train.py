"""What a training run is: base, tasks, data, method, optimiser, loop."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pl_compile.config.task import TaskConfig
from pl_compile.errors import ConfigError, check_all

_TIME = re.compile(r"(\d+:){1,3}\d{1,2}")


@dataclass(frozen=True)
class DataConfig:
    """Which examples, and how they become token ids.

    Attributes:
        train: JSONL or JSON-array files; each example names its task in `taskname`.
        validation: the same, held out.
        max_seq_length: longest sequence in tokens, virtual ones, BOS and EOS included. If None, the
            length that the base was made for.
        min_seq_length: shorter examples are left out and reported.
        add_bos: whether a sequence begins with the base's BOS. Recorded in the prompt table.
        add_eos: whether an answer ends with the base's EOS. Recorded in the prompt table.
        shuffle: whether each epoch has a new order; otherwise the order of the files.
        cache: whether token ids are kept for the next run, under a hash of all that they depend on.
    """

    train: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    max_seq_length: int | None = None
    min_seq_length: int = 1
    add_bos: bool = False
    add_eos: bool = True
    shuffle: bool = True
    cache: bool = True

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
            task's `init_text`, "random" from Xavier-normal numbers. "auto" is the text where a task
            has one, else the vocabulary.
    """

    init: Literal["auto", "text", "vocabulary", "random"] = "auto"


@dataclass(frozen=True)
class PTuningConfig:
    """P-tuning (Liu et al. 2021, arXiv:2103.10385): an encoder shared by the tasks makes the rows.

    Attributes:
        encoder_type: "mlp" (ReLU), "tpmlp" (two layers, tanh GELU, weights drawn with `init_std`),
            "lstm" (bidirectional, with a head of two linear layers) or "biglstm" (the same with an
            embedding as narrow as the LSTM).
        encoder_hidden: inner width. If None, the base's hidden size; for "lstm" half of that in
            each direction. "biglstm" divides the width between its directions.
        num_layers: linear layers of "mlp" (at least 2), layers of the LSTMs (at least 1).
        dropout: between LSTM layers.
        init_std: standard deviation of the first weights of "tpmlp".
    """

    encoder_type: Literal["mlp", "tpmlp", "lstm", "biglstm"] = "mlp"
    encoder_hidden: int | None = None
    num_layers: int = 2
    dropout: float = 0.0
    init_std: float = 0.023

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
                f"init_std {self.init_std}, expected above 0": 0 < self.init_std < math.inf,
            },
        )


@dataclass(frozen=True)
class PrefixTuningConfig:
    """Prefix tuning (Li and Liang 2021, arXiv:2101.00190): keys and values of every layer.

    Attributes:
        init: the tokens that the base is run on to get the first keys and values: "text" takes each
            task's `init_text`, "vocabulary" draws from the 5,000 most common tokens. "auto" is the
            text where a task has one, else the vocabulary.
    """

    init: Literal["auto", "text", "vocabulary"] = "auto"


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up, then half a cosine down to `min_lr`, then a flat tail.

    Attributes:
        warmup_steps: if None, `warmup_ratio` of all steps.
        warmup_ratio: 0 to 1.
        min_lr: the rate at the end.
        constant_steps: length of the tail at `min_lr`; if None, `constant_ratio` of all steps.
        constant_ratio: 0 to 1.
    """

    warmup_steps: int | None = None
    warmup_ratio: float = 0.05
    min_lr: float = 0.0
    constant_steps: int | None = None
    constant_ratio: float = 0.0

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
                    (self.constant_steps or 0) >= 0
                ),
                f"constant_ratio {self.constant_ratio}, expected 0 to 1": (
                    0 <= self.constant_ratio <= 1
                ),
            },
        )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW.

    Attributes:
        lr: the highest rate; the method's own default if None.
        lm_lr: the highest rate of the base's weights, where `lm_finetune` trains them too.
        weight_decay: on every trained tensor.
        betas: decay rates of the first and second moment.
        sched: how the rate changes over the run.
    """

    lr: float | None = None
    lm_lr: float = 1e-5
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
                f"lm_lr {self.lm_lr}, expected above 0": 0 < self.lm_lr < math.inf,
                f"weight_decay {self.weight_decay}, expected 0 or more": self.weight_decay >= 0,
                f"betas {list(self.betas)}, expected numbers from 0 to below 1": all(
                    0 <= beta < 1 for beta in self.betas
                ),
            },
        )


@dataclass(frozen=True)
class TrainerConfig:
    """Length of the run, batch sizes, precision.

    Attributes:
        max_epochs: passes over the data. The run ends at the first limit that it reaches.
        max_steps: optimiser steps.
        max_time: wall time as "DD:HH:MM:SS" (or fewer parts), resumed parts of the run included.
        global_batch_size: examples per optimiser step.
        micro_batch_size: examples per forward and backward pass; divides `global_batch_size`.
        validation_batch_size: examples per forward pass of a validation.
        precision: of the frozen base: "fp32", "bf16", "fp16" with loss scaling, or "auto", which is
            bf16 where the hardware has it, else fp32. Trained tensors are always fp32.
        gradient_clip_val: largest norm of the whole gradient; 0 switches clipping off.
        val_check_interval: a whole number of steps, or a fraction of an epoch.
        log_every_n_steps: how often a training loss is written to `metrics.jsonl`.
        max_skipped_steps: the run stops after this many steps in a row with a loss or gradient that
            is infinite or NaN. Single ones are skipped, counted and logged.
        activation_checkpointing: recompute each layer in the backward pass: less memory, a third
            more time.
        compile: let `torch.compile` fuse the base. Needs a C++ compiler, and minutes at the start.
    """

    max_epochs: int | None = None
    max_steps: int | None = None
    max_time: str | None = None
    global_batch_size: int = 16
    micro_batch_size: int = 8
    validation_batch_size: int = 16
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    gradient_clip_val: float = 1.0
    val_check_interval: int | float = 1.0
    log_every_n_steps: int = 1
    max_skipped_steps: int = 5
    activation_checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        """Refuses numbers that no run could honour."""
        doing = "checking 'trainer'"
        if self.max_epochs is None and self.max_steps is None:
            raise ConfigError(
                doing,
                found="no limit",
                expected="max_epochs or max_steps (the rate follows from them; max_time is a "
                "further limit)",
                fix="Give one.",
            )
        checks = {
            f"{key} {value}, expected at least 1": value is None or value >= 1
            for key, value in (
                ("max_epochs", self.max_epochs),
                ("max_steps", self.max_steps),
                ("global_batch_size", self.global_batch_size),
                ("micro_batch_size", self.micro_batch_size),
                ("validation_batch_size", self.validation_batch_size),
                ("log_every_n_steps", self.log_every_n_steps),
                ("max_skipped_steps", self.max_skipped_steps),
            )
        }
        checks |= {
            f"gradient_clip_val {self.gradient_clip_val}, expected 0 or more": (
                self.gradient_clip_val >= 0
            ),
            f"val_check_interval {self.val_check_interval}, expected steps (a whole number from 1) "
            "or a fraction of an epoch (above 0)": 0 < self.val_check_interval < math.inf,
            f"max_time '{self.max_time}', expected '[[DD:]HH:]MM:SS'": (
                self.max_time is None or _TIME.fullmatch(self.max_time) is not None
            ),
        }
        check_all(ConfigError, doing, checks)
        if self.global_batch_size % self.micro_batch_size:
            raise ConfigError(
                doing,
                found=f"global_batch_size {self.global_batch_size}",
                expected=f"a multiple of micro_batch_size {self.micro_batch_size}",
            )

    @property
    def max_seconds(self) -> float:
        """`max_time` in seconds; infinite without one."""
        if self.max_time is None:
            return math.inf
        units = (1, 60, 3600, 86400)
        parts = reversed(self.max_time.split(":"))
        return float(sum(int(part) * unit for part, unit in zip(parts, units, strict=False)))


@dataclass(frozen=True)
class CheckpointConfig:
    """The checkpoints that a run writes.

    Attributes:
        every_n_steps: how often `last.safetensors` is written; if None, after each validation.
        save_top_k: how many of the checkpoints with the lowest validation loss are kept.
    """

    every_n_steps: int | None = None
    save_top_k: int = 1

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        check_all(
            ConfigError,
            "checking 'checkpoint'",
            {
                f"every_n_steps {self.every_n_steps}, expected at least 1": (
                    self.every_n_steps is None or self.every_n_steps >= 1
                ),
                f"save_top_k {self.save_top_k}, expected at least 1": self.save_top_k >= 1,
            },
        )


@dataclass(frozen=True)
class EarlyStoppingConfig:
    """Ends a run whose validation loss no longer falls.

    Attributes:
        patience: validations without a better loss before the run ends.
        min_delta: by how much a loss must be lower to count as better.
    """

    patience: int = 10
    min_delta: float = 0.001

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        check_all(
            ConfigError,
            "checking 'early_stopping'",
            {
                f"patience {self.patience}, expected at least 1": self.patience >= 1,
                f"min_delta {self.min_delta}, expected 0 or more": 0 <= self.min_delta < math.inf,
            },
        )


@dataclass(frozen=True)
class ValidationConfig:
    """Scores of generated answers at each validation, besides its loss.

    Attributes:
        generate: whether answers are generated and scored.
        metric: a key of `metrics.METRICS`, or "auto": the one that fits the task's answers.
        limit: how many examples of each task are answered.
        max_tokens: longest answer. If None, as long as the right answers and some more.
    """

    generate: bool = False
    metric: str = "auto"
    limit: int = 50
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        check_all(
            ConfigError,
            "checking 'validation'",
            {
                f"limit {self.limit}, expected at least 1": self.limit >= 1,
                f"max_tokens {self.max_tokens}, expected at least 1": (
                    self.max_tokens is None or self.max_tokens >= 1
                ),
            },
        )


@dataclass(frozen=True)
class WandbConfig:
    """A run at Weights & Biases.

    Attributes:
        project: where the run is listed.
        name: of the run; the run folder's name if None.
        entity: user or team; the account's own if None.
        mode: "offline" writes files that `wandb sync` sends later.
        log_artifacts: whether the prompt table and a bundle of it are stored with the run.
    """

    project: str
    name: str | None = None
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"
    log_artifacts: bool = True


@dataclass(frozen=True)
class LoggingConfig:
    """Where records go besides `metrics.jsonl`.

    Attributes:
        tensorboard: whether event files are written to `tensorboard/` in the run folder.
        wandb: the run at Weights & Biases, if any.
    """

    tensorboard: bool = False
    wandb: WandbConfig | None = None


@dataclass(frozen=True)
class ParallelConfig:
    """How the processes that `torchrun` started share the work.

    Attributes:
        tensor_parallel_size: how many processes divide one copy of the base, each with a part of
            every layer. Groups of so many processes are data parallel.
        shard_base: whether the data parallel processes also divide the base's weights and gather
            one layer at a time (FSDP), for a base that does not fit one device.
        timeout_seconds: how long a process waits for another before it gives up.
    """

    tensor_parallel_size: int = 1
    shard_base: bool = False
    timeout_seconds: int = 600

    def __post_init__(self) -> None:
        """Refuses what cannot be combined."""
        check_all(
            ConfigError,
            "checking 'parallel'",
            {
                f"tensor_parallel_size {self.tensor_parallel_size}, expected at least 1": (
                    self.tensor_parallel_size >= 1
                ),
                f"timeout_seconds {self.timeout_seconds}, expected at least 1": (
                    self.timeout_seconds >= 1
                ),
                "shard_base with a tensor_parallel_size above 1, expected one of the two": not (
                    self.shard_base and self.tensor_parallel_size > 1
                ),
            },
        )


@dataclass(frozen=True)
class TrainConfig:
    """A training run: everything that decides its result, with the seed.

    Attributes:
        base: the frozen GPT, by the name it was fetched under or as a Hugging Face folder.
        tasks: the tasks to train now.
        data: the examples.
        trainer: length, batch sizes and precision.
        virtual_prompt_style: the method, a key of `training.methods.METHODS`.
        prompt_tuning: its options.
        p_tuning: its options.
        prefix_tuning: its options.
        optim: optimiser and schedule.
        checkpoint: which checkpoints are kept.
        validation: scores of generated answers.
        early_stopping: when to end before the limits; never if None.
        logging: where records go.
        parallel: how several processes share the work.
        existing_table: a prompt table whose tasks are copied into the new one, byte for byte.
        existing_tasks: which of them; all if None.
        lm_finetune: whether the base's weights are trained too. The run then writes a new base with
            its own fingerprint, and its prompts fit only that base.
        seed: of initial rows, data order and dropout.
    """

    base: str
    tasks: tuple[TaskConfig, ...]
    data: DataConfig
    trainer: TrainerConfig
    virtual_prompt_style: Literal["prompt-tuning", "p-tuning", "prefix-tuning", "no-prompts"] = (
        "prompt-tuning"
    )
    prompt_tuning: PromptTuningConfig = field(default_factory=PromptTuningConfig)
    p_tuning: PTuningConfig = field(default_factory=PTuningConfig)
    prefix_tuning: PrefixTuningConfig = field(default_factory=PrefixTuningConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    early_stopping: EarlyStoppingConfig | None = None
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    existing_table: Path | None = None
    existing_tasks: tuple[str, ...] | None = None
    lm_finetune: bool = False
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
        if self.existing_tasks is not None and self.existing_table is None:
            raise ConfigError(
                "checking 'existing_tasks'",
                found=f"{list(self.existing_tasks)} without a table to take them from",
                expected="existing_table",
            )
        if (self.early_stopping or self.validation.generate) and not self.data.validation:
            key = "early_stopping" if self.early_stopping else "validation.generate"
            raise ConfigError(
                f"checking '{key}'",
                found="no data.validation",
                expected="held-out examples to validate on",
            )
        if self.lm_finetune:
            self._check_lm_finetune()

    def _check_lm_finetune(self) -> None:
        style, precision = self.virtual_prompt_style, self.trainer.precision
        for found, expected in (
            (
                "existing_table" if self.existing_table is not None else "",
                "none: its prompts do not fit a base whose weights change",
            ),
            (
                f"virtual_prompt_style {style}" if style == "no-prompts" else "",
                "a method that trains prompts with the base",
            ),
            (
                f"trainer.precision {precision}" if precision not in ("auto", "fp32") else "",
                "fp32: what is trained loses small steps in fewer digits",
            ),
        ):
            if found:
                raise ConfigError("checking 'lm_finetune'", found=found, expected=expected)
