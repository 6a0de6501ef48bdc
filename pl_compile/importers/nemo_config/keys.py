"""Every key of a NeMo prompt learning config, and what is done with it.

The keys are those of NeMo's stock file from v1.10 to v1.18, of the parts of Lightning and of
`exp_manager` that such files use, and a few that its user guide names. `docs/nemo-config.md` is
this table for people; a test compares the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Moved:
    """The value goes to a key of `TrainConfig`.

    Attributes:
        to: that key, with dots.
        unset: values that mean "not given".
    """

    to: str
    unset: tuple[Any, ...] = (None,)


@dataclass(frozen=True)
class Only:
    """The values listed have no effect here; any other value is refused.

    Attributes:
        values: what is accepted.
        instead: what to use for the rest, as a sentence.
    """

    values: tuple[Any, ...]
    instead: str


@dataclass(frozen=True)
class Ignored:
    """Accepted, and without effect here.

    Attributes:
        why: a phrase; keys with the same one are reported together.
    """

    why: str


@dataclass(frozen=True)
class Read:
    """Read together with other keys by a function of `reading.py`."""


Rule = Moved | Only | Ignored | Read

_PROCESSES = "the processes are those that torchrun starts, on the devices they find"
_LIGHTNING = "Lightning is not used here"
_FOLDER = "the run folder is --output, and its files have fixed names"
_RESUME = "a run goes on when 'plc train' is given --resume, and is never overwritten"
_WRITTEN = "prompts.safetensors is written at each better validation"
_LOADER = "examples are tokenised once and stay in memory"
_CACHE = "token ids are cached under the hash of all that made them"
_REMADE = "with activation checkpointing each layer is recomputed by itself"
_SAMPLING = "answers are written greedily in validation; 'plc generate' samples"
_LOGGER_OFF = "that logger is not there"

_OUTPUT = "Set it to null and give the run folder: plc train --output DIR."
_VAL_LOSS = "The validation loss, the lower the better, decides what is kept."
_OTHER_LOGGER = "Use exp_manager.create_wandb_logger or create_tensorboard_logger."
_WHOLE_DATA = "Give shorter files."
_NONE = (None,)
_OFF = (None, False)

_HYDRA = "neither Hydra nor NeMo's launcher is used here"

_TRAINER: Mapping[str, Rule] = {
    "devices": Ignored(_PROCESSES),
    "num_nodes": Ignored(_PROCESSES),
    "accelerator": Ignored(_PROCESSES),
    "strategy": Ignored(_PROCESSES),
    "precision": Read(),
    "logger": Ignored(_LIGHTNING),
    "enable_checkpointing": Ignored(_LIGHTNING),
    "replace_sampler_ddp": Ignored(_LIGHTNING),
    "use_distributed_sampler": Ignored(_LIGHTNING),
    "benchmark": Ignored(_LIGHTNING),
    "num_sanity_val_steps": Ignored(_LIGHTNING),
    "enable_progress_bar": Ignored(_LIGHTNING),
    "enable_model_summary": Ignored(_LIGHTNING),
    "max_epochs": Moved("trainer.max_epochs", unset=(None, -1)),
    "max_steps": Moved("trainer.max_steps", unset=(None, -1)),
    "max_time": Moved("trainer.max_time"),
    "log_every_n_steps": Moved("trainer.log_every_n_steps"),
    "val_check_interval": Moved("trainer.val_check_interval"),
    "check_val_every_n_epoch": Only((None, 1), "Use trainer.val_check_interval, in steps."),
    "limit_train_batches": Only((None, 1.0), _WHOLE_DATA),
    "limit_val_batches": Only((None, 1.0), _WHOLE_DATA),
    "limit_test_batches": Ignored("'plc eval --limit' does it"),
    "accumulate_grad_batches": Only(
        (None, 1), "model.global_batch_size over model.micro_batch_size is the accumulation."
    ),
    "gradient_clip_val": Read(),
    "gradient_clip_algorithm": Only((None, "norm"), "The norm of the whole gradient is clipped."),
    "resume_from_checkpoint": Only(_NONE, "Set it to null and give plc train --resume."),
    # Of older Lightning.
    "gpus": Ignored(_PROCESSES),
    "progress_bar_refresh_rate": Ignored(_LIGHTNING),
    "weights_summary": Ignored(_LIGHTNING),
    "checkpoint_callback": Ignored(_LIGHTNING),
    "plugins": Only((None, []), "Leave them out: torchrun starts the processes."),
    "amp_level": Only(_NONE, "trainer.precision says all of it."),
    "amp_backend": Only((None, "native"), "Mixed precision is torch's own."),
}

_CHECKPOINT: Mapping[str, Rule] = {
    "monitor": Only((None, "val_loss"), _VAL_LOSS),
    "mode": Only((None, "min"), _VAL_LOSS),
    "save_top_k": Moved("checkpoint.save_top_k"),
    "save_last": Only((None, True), "last.safetensors is always kept: a run resumes from it."),
    "every_n_train_steps": Moved("checkpoint.every_n_steps", unset=(None, 0)),
    "every_n_epochs": Only((None, 1), "Use every_n_train_steps."),
    "save_nemo_on_train_end": Ignored(_WRITTEN),
    "always_save_nemo": Ignored(_WRITTEN),
    "save_best_model": Only(
        (None, True),
        "The table of a run holds its best prompts; "
        "'plc import checkpoint RUN/checkpoints/last.safetensors' gives the last ones.",
    ),
    "filename": Ignored(_FOLDER),
    "prefix": Ignored(_FOLDER),
    "postfix": Ignored(_FOLDER),
    "dirpath": Only(_NONE, _OUTPUT),
    "model_parallel_size": Ignored("model.tensor_model_parallel_size says it"),
    "verbose": Ignored(_LIGHTNING),
}

_EARLY_STOPPING: Mapping[str, Rule] = {
    "monitor": Only((None, "val_loss"), _VAL_LOSS),
    "mode": Only((None, "min"), _VAL_LOSS),
    "patience": Read(),
    "min_delta": Read(),
    "verbose": Ignored(_LIGHTNING),
    "strict": Ignored(_LIGHTNING),
    "check_finite": Ignored(_LIGHTNING),
    "log_rank_zero_only": Ignored(_LIGHTNING),
    "check_on_train_epoch_end": Only(_OFF, "Early stopping looks at each validation."),
    "stopping_threshold": Only(_NONE, "Use patience and min_delta."),
    "divergence_threshold": Only(_NONE, "A run whose loss is not a number ends by itself."),
}

_WANDB = ("project", "name", "entity", "offline", "log_model")

_EXP_MANAGER: Mapping[str, Rule] = {
    "explicit_log_dir": Only(_NONE, _OUTPUT),
    "exp_dir": Only(_NONE, _OUTPUT),
    "name": Ignored(_FOLDER),
    "version": Ignored(_FOLDER),
    "use_datetime_version": Ignored(_FOLDER),
    "resume_if_exists": Ignored(_RESUME),
    "resume_ignore_no_checkpoint": Ignored(_RESUME),
    "resume_past_end": Ignored(_RESUME),
    "create_tensorboard_logger": Moved("logging.tensorboard"),
    "summary_writer_kwargs": Only((None, {}), "Event files are written to RUN/tensorboard."),
    "create_wandb_logger": Read(),
    **{f"wandb_logger_kwargs.{key}": Read() for key in _WANDB},
    "create_mlflow_logger": Only(_OFF, _OTHER_LOGGER),
    "mlflow_logger_kwargs": Ignored(_LOGGER_OFF),
    "create_dllogger_logger": Only(_OFF, _OTHER_LOGGER),
    "dllogger_logger_kwargs": Ignored(_LOGGER_OFF),
    "create_checkpoint_callback": Only((None, True), "A run always keeps its checkpoints."),
    **{f"checkpoint_callback_params.{key}": rule for key, rule in _CHECKPOINT.items()},
    "create_early_stopping_callback": Read(),
    **{f"early_stopping_callback_params.{key}": rule for key, rule in _EARLY_STOPPING.items()},
    "log_step_timing": Ignored(_LIGHTNING),
    "step_timing_kwargs": Ignored(_LIGHTNING),
    "log_local_rank_0_only": Ignored(_LIGHTNING),
    "log_global_rank_0_only": Ignored(_LIGHTNING),
    "files_to_copy": Only((None, []), "Copy them yourself."),
    "ema.enable": Only(_OFF, "There are no averaged weights; the best prompts are kept."),
    "ema.decay": Ignored("there are no averaged weights"),
}

_DATA: Mapping[str, Rule] = {
    "train_ds": Moved("data.train"),
    "validation_ds": Moved("data.validation"),
    "test_ds": Ignored("'plc eval --data' scores test data"),
    "add_eos": Moved("data.add_eos"),
    "add_bos": Moved("data.add_bos"),
    "shuffle": Moved("data.shuffle"),
    "max_seq_length": Moved("data.max_seq_length"),
    "min_seq_length": Moved("data.min_seq_length"),
    "num_workers": Ignored(_LOADER),
    "pin_memory": Ignored(_LOADER),
    "train_cache_data_path": Ignored(_CACHE),
    "validation_cache_data_path": Ignored(_CACHE),
    "test_cache_data_path": Ignored(_CACHE),
    "load_cache": Ignored(_CACHE),
}

_OPTIM: Mapping[str, Rule] = {
    "name": Read(),
    "lr": Moved("optim.lr"),
    "weight_decay": Read(),
    "betas": Read(),
    "eps": Only((None, 1e-8, "1e-8", "1e-08"), "AdamW's eps is 1e-8."),
    "amsgrad": Only(_OFF, "AdamW runs without it."),
    "sched.name": Read(),
    "sched.warmup_steps": Read(),
    "sched.warmup_ratio": Read(),
    "sched.constant_steps": Read(),
    "sched.constant_ratio": Read(),
    "sched.min_lr": Moved("optim.sched.min_lr"),
    "sched.max_steps": Only(_NONE, "The schedule is as long as the run: trainer.max_steps."),
    "sched.last_epoch": Only((None, -1), "--resume goes on where the schedule was."),
    "sched.monitor": Ignored("the schedule follows the steps"),
    "sched.reduce_on_plateau": Only(_OFF, "Use exp_manager.create_early_stopping_callback."),
}

_INFERENCE: Mapping[str, Rule] = {
    "tokens_to_generate": Read(),
    **{
        key: Ignored(_SAMPLING)
        for key in (
            "greedy",
            "top_k",
            "top_p",
            "temperature",
            "repetition_penalty",
            "min_tokens_to_generate",
            "add_BOS",
            "all_probs",
            "compute_logprob",
            "end_strings",
        )
    },
}

_MODEL: Mapping[str, Rule] = {
    "seed": Moved("seed"),
    "nemo_path": Ignored(_FOLDER),
    "virtual_prompt_style": Read(),
    "tensor_model_parallel_size": Moved("parallel.tensor_parallel_size"),
    "pipeline_model_parallel_size": Only(
        (None, 1), "Use model.tensor_model_parallel_size, and torchrun for data parallel training."
    ),
    "global_batch_size": Moved("trainer.global_batch_size"),
    "micro_batch_size": Moved("trainer.micro_batch_size"),
    "batch_size": Only(_NONE, "Use model.global_batch_size and model.micro_batch_size."),
    "validation_global_batch_size": Ignored("the validation loss does not depend on it"),
    "validation_micro_batch_size": Moved("trainer.validation_batch_size"),
    "validation_drop_last": Only(_OFF, "Every validation example counts."),
    "report_validation_metric": Read(),
    "validation_metric": Read(),
    "restore_path": Read(),
    "language_model_path": Read(),
    "save_nemo_on_validation_end": Ignored(_WRITTEN),
    "existing_tasks": Read(),
    "new_tasks": Read(),
    "task_templates": Read(),
    "lm_finetune": Moved("lm_finetune"),
    "encoder_seq_length": Only(_NONE, "Use model.data.max_seq_length."),
    "sequence_parallel": Only(_OFF, "Use model.activations_checkpoint_granularity: full."),
    "activations_checkpoint_granularity": Read(),
    "activations_checkpoint_method": Ignored(_REMADE),
    "activations_checkpoint_num_layers": Ignored(_REMADE),
    "activations_checkpoint_layers_per_pipeline": Ignored(_REMADE),
    "prompt_tuning.new_prompt_init_methods": Read(),
    "prompt_tuning.new_prompt_init_text": Read(),
    "p_tuning.encoder_type": Read(),
    "p_tuning.encoder_hidden": Read(),
    "p_tuning.num_layers": Moved("p_tuning.num_layers"),
    "p_tuning.dropout": Moved("p_tuning.dropout"),
    "p_tuning.init_std": Moved("p_tuning.init_std"),
    **{f"data.{key}": rule for key, rule in _DATA.items()},
    **{f"optim.{key}": rule for key, rule in _OPTIM.items()},
    **{f"inference.{key}": rule for key, rule in _INFERENCE.items()},
}

KEYS: Mapping[str, Rule] = {
    "name": Ignored(_FOLDER),
    "run": Ignored(_HYDRA),
    "hydra": Ignored(_HYDRA),
    "defaults": Only(
        (None, [], ["_self_"]), "Write what the other files hold into this one: Hydra is not used."
    ),
    **{f"trainer.{key}": rule for key, rule in _TRAINER.items()},
    **{f"exp_manager.{key}": rule for key, rule in _EXP_MANAGER.items()},
    **{f"model.{key}": rule for key, rule in _MODEL.items()},
}

# Hints for unknown keys that only happen to resemble a key, or to have the name of one elsewhere.
HINTS: Mapping[str, str] = {
    "model.restore_from_path": "In later NeMo it is the base: here 'model.language_model_path'.",
    "model.answer_only_loss": "It belongs to each of 'model.task_templates'.",
}


def has_no_effect(key: str) -> bool:
    """Whether a key is accepted and its value is not used."""
    return isinstance(KEYS.get(key), Ignored)


# Without these NeMo does not start either.
REQUIRED = (
    "model.virtual_prompt_style",
    "model.language_model_path",
    "model.new_tasks",
    "model.task_templates",
    "model.global_batch_size",
    "model.micro_batch_size",
    "model.data.train_ds",
    "model.optim.name",
    "model.optim.lr",
)
