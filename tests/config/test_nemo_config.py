import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pl_compile.config.read import build, override, read_yaml
from pl_compile.config.task import TaskConfig
from pl_compile.config.train import (
    CheckpointConfig,
    DataConfig,
    EarlyStoppingConfig,
    OptimConfig,
    PTuningConfig,
    ScheduleConfig,
    TrainConfig,
    TrainerConfig,
    ValidationConfig,
    WandbConfig,
)
from pl_compile.errors import ConfigError
from pl_compile.importers.nemo_config.keys import KEYS, REQUIRED, Moved
from pl_compile.importers.nemo_config.reading import from_nemo, is_nemo

PAGE = Path(__file__).parents[2] / "docs" / "nemo-config.md"
RTE = "<|VIRTUAL_PROMPT_0|>{premise}\n{hypothesis}\nAnswer: {answer}"

# Every key of the stock file of v1.16, with its value there; the two templates are shorter.
STOCK = r"""
name: megatron_virtual_prompt_gpt

trainer:
  devices: 1
  num_nodes: 1
  accelerator: gpu
  precision: 16
  logger: False
  enable_checkpointing: False
  replace_sampler_ddp: False
  max_epochs: 3
  max_steps: -1
  log_every_n_steps: 10
  val_check_interval: 1.0
  gradient_clip_val: 1.0
  resume_from_checkpoint: null
  benchmark: False

exp_manager:
  explicit_log_dir: null
  exp_dir: null
  name: ${name}
  create_wandb_logger: False
  wandb_logger_kwargs:
    project: null
    name: null
  resume_if_exists: True
  resume_ignore_no_checkpoint: True
  create_checkpoint_callback: True
  checkpoint_callback_params:
    monitor: val_loss
    save_top_k: 2
    mode: min
    save_nemo_on_train_end: False
    filename: 'megatron_gpt_prompt_tune--{val_loss:.3f}-{step}'
    model_parallel_size: ${model.tensor_model_parallel_size}
    save_best_model: True
  create_early_stopping_callback: True
  early_stopping_callback_params:
    monitor: "val_loss"
    mode: "min"
    min_delta: 0.001
    patience: 10
    verbose: True

model:
  seed: 1234
  nemo_path: ${name}.nemo
  virtual_prompt_style: 'p-tuning'
  tensor_model_parallel_size: 1
  pipeline_model_parallel_size: 1
  global_batch_size: 8
  micro_batch_size: 4
  validation_global_batch_size: ${model.global_batch_size}
  validation_micro_batch_size: ${model.micro_batch_size}
  validation_drop_last: False
  restore_path: null
  language_model_path: ???
  save_nemo_on_validation_end: True
  existing_tasks: ['boolq']
  new_tasks: ['rte']
  sequence_parallel: False
  activations_checkpoint_granularity: null
  activations_checkpoint_method: null
  activations_checkpoint_num_layers: null
  task_templates:
  - taskname: "boolq"
    prompt_template: "<|VIRTUAL_PROMPT_0|> {passage} <|VIRTUAL_PROMPT_1|> {question} {answer}"
    total_virtual_tokens: 30
    virtual_token_splits: [20, 10]
    truncate_field: "passage"
    answer_only_loss: True
    answer_field: "answer"
  - taskname: "rte"
    prompt_template: "<|VIRTUAL_PROMPT_0|>{premise}\n{hypothesis}\nAnswer: {answer}"
    total_virtual_tokens: 9
    virtual_token_splits: [9]
    truncate_field: null
    answer_only_loss: True
    answer_field: "answer"
  prompt_tuning:
    new_prompt_init_methods: ['text']
    new_prompt_init_text: ['some init text goes here']
  p_tuning:
    encoder_type: "tpmlp"
    dropout: 0.0
    num_layers: 2
    encoder_hidden: 2048
    init_std: 0.023
  data:
    train_ds: [data/rte_train.jsonl,]
    validation_ds: [data/rte_val.jsonl,]
    add_eos: True
    shuffle: True
    num_workers: 8
    pin_memory: True
    train_cache_data_path: null
    validation_cache_data_path: null
    test_cache_data_path: null
    load_cache: False
  optim:
    name: fused_adam
    lr: 1e-4
    weight_decay: 0.01
    betas:
    - 0.9
    - 0.98
    sched:
      name: CosineAnnealing
      warmup_steps: 50
      min_lr: 0.0
      constant_steps: 0
      monitor: val_loss
      reduce_on_plateau: false
"""

# The least that NeMo's model takes.
SMALL = """\
model:
  virtual_prompt_style: prompt-tuning
  language_model_path: tiny
  new_tasks: [mood]
  global_batch_size: 8
  micro_batch_size: 4
  task_templates:
  - taskname: mood
    prompt_template: "<|VIRTUAL_PROMPT_0|> {text} mood:{label}"
    total_virtual_tokens: 5
    virtual_token_splits: [5]
    truncate_field: null
  data: {train_ds: [train.jsonl], validation_ds: [val.jsonl]}
  optim: {name: fused_adam, lr: 0.001}
trainer:
  max_epochs: 3
"""

GIVEN_BASE = "model.language_model_path=smollm2-135m"

Writer = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Writes text to `nemo.yaml`."""

    def writer(text: str) -> Path:
        path = tmp_path / "nemo.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return writer


def read(path: Path, *settings: str) -> tuple[TrainConfig, list[str]]:
    root = override(read_yaml(path), settings)
    assert is_nemo(root)
    tree, notes = from_nemo(root)
    return build(TrainConfig, tree, doing=f"reading {path.name}"), notes


def config_of(path: Path, *settings: str) -> TrainConfig:
    return read(path, *settings)[0]


def refusal(path: Path, *settings: str) -> str:
    with pytest.raises(ConfigError) as error:
        read(path, *settings)
    return str(error.value)


def keys_in(text: str) -> set[str]:
    """The full keys of a YAML text with two blanks a level, lists and templates left out."""
    keys, path = set(), [""]
    for line in text.splitlines():
        found = re.match(r"( *)(\w+):(.*)", line)
        # A template's keys stand deeper than the item's dash, as deep as a group's.
        if not found or (path[-1] == "task_templates" and len(found[1]) > 2):
            continue
        path[len(found[1]) // 2 :] = [found[2]]
        keys.add(".".join(path))
    return {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}


# The stock file


def test_the_stock_file_means_the_same_here(write: Writer) -> None:
    path = write(STOCK)

    config = config_of(path, GIVEN_BASE)

    assert config == TrainConfig(
        base="smollm2-135m",
        virtual_prompt_style="p-tuning",
        tasks=(TaskConfig("rte", RTE, 9, (9,), answer_field="answer", whitespace="nemo"),),
        data=DataConfig(
            train=(path.parent / "data/rte_train.jsonl",),
            validation=(path.parent / "data/rte_val.jsonl",),
        ),
        p_tuning=PTuningConfig("tpmlp", 2048, 2, 0.0, 0.023),
        trainer=TrainerConfig(
            max_epochs=3,
            global_batch_size=8,
            micro_batch_size=4,
            validation_batch_size=4,
            precision="fp16",
            log_every_n_steps=10,
        ),
        optim=OptimConfig(lr=1e-4, sched=ScheduleConfig(warmup_steps=50, constant_steps=0)),
        checkpoint=CheckpointConfig(save_top_k=2),
        early_stopping=EarlyStoppingConfig(10, 0.001),
    )


def test_the_stock_file_needs_a_base_and_nothing_else(write: Writer) -> None:
    path = write(STOCK)
    line = STOCK[: STOCK.index("language_model_path")].count("\n") + 1

    assert refusal(path) == (
        f"reading nemo.yaml, a NeMo config: nemo.yaml:{line}: 'model.language_model_path' has no "
        "value yet (???). Give it: --set model.language_model_path=..."
    )


def test_what_has_no_effect_is_reported_once_for_each_reason(write: Writer) -> None:
    _, notes = read(write(STOCK), GIVEN_BASE)

    reasons = [note.partition(" ignored: ")[2] for note in notes]
    assert len(set(reasons)) == len(reasons)
    assert (
        "model.data.num_workers, model.data.pin_memory are ignored: examples are tokenised once "
        "and stay in memory"
    ) in notes
    assert "model.task_templates (boolq) is ignored" in "\n".join(notes)


def test_keys_of_what_is_switched_off_are_reported(write: Writer) -> None:
    path = write(STOCK)
    settings = (
        "model.virtual_prompt_style=prompt-tuning",
        "exp_manager.create_early_stopping_callback=false",
        "exp_manager.create_wandb_logger=false",
        "exp_manager.wandb_logger_kwargs.project=mine",
        "model.report_validation_metric=false",
        "model.validation_metric=accuracy",
        "model.inference.tokens_to_generate=5",
    )

    _, notes = read(path, GIVEN_BASE, *settings)

    assert {
        "model.p_tuning.encoder_type, model.p_tuning.encoder_hidden, model.p_tuning.num_layers, "
        "model.p_tuning.dropout, model.p_tuning.init_std are ignored: "
        "model.virtual_prompt_style is not p-tuning",
        "exp_manager.early_stopping_callback_params.patience, "
        "exp_manager.early_stopping_callback_params.min_delta are ignored: "
        "exp_manager.create_early_stopping_callback is not true",
        "exp_manager.wandb_logger_kwargs.project is ignored: "
        "exp_manager.create_wandb_logger is not true",
        "model.validation_metric, model.inference.tokens_to_generate are ignored: "
        "model.report_validation_metric is not true",
    } <= set(notes)


def test_every_key_of_the_stock_file_is_known() -> None:
    keys = keys_in(STOCK)

    assert len(keys) > 75
    assert keys - set(KEYS) == set()


def test_the_page_has_a_row_for_every_key_and_names_where_it_goes() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Every key")[2]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    documented = [key for first, _ in rows for key in re.findall(r"`([\w.]+)`", first)]

    assert sorted(documented) == sorted(KEYS)
    for first, second in rows:
        for key in re.findall(r"`([\w.]+)`", first):
            rule = KEYS[key]
            if isinstance(rule, Moved):
                assert rule.to in second or f".{rule.to.rpartition('.')[2]}`" in second, key
            assert ("required" in second) == (key in REQUIRED) or len(first.split(",")) > 1, key


def test_where_a_key_goes_is_a_key_of_ours() -> None:
    import dataclasses
    import typing

    for key, rule in KEYS.items():
        if not isinstance(rule, Moved):
            continue
        kind: typing.Any = TrainConfig
        for name in rule.to.split("."):
            hints = typing.get_type_hints(kind)
            assert name in hints, f"{key} goes to {rule.to}, which is not there"
            kind = next(
                (k for k in typing.get_args(hints[name]) if dataclasses.is_dataclass(k)),
                hints[name],
            )


def test_our_own_form_is_not_taken_for_nemos(write: Writer) -> None:
    assert not is_nemo(read_yaml(write("base: tiny\ntrainer: {max_steps: 1}\n")))


# What absent keys mean


def test_absent_keys_mean_what_they_mean_in_nemo(write: Writer) -> None:
    config = config_of(write(SMALL))

    (task,) = config.tasks
    assert (task.answer_only_loss, task.whitespace) == (False, "nemo")
    assert config.trainer.gradient_clip_val == 0
    assert config.optim == OptimConfig(
        lr=0.001,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        sched=ScheduleConfig(warmup_steps=0, min_lr=0.001, constant_steps=0),
    )
    assert (config.p_tuning.encoder_type, config.p_tuning.encoder_hidden) == ("tpmlp", 2048)
    assert config.early_stopping is None
    assert config.logging.wandb is None


def test_a_template_may_say_otherwise(write: Writer) -> None:
    template = "model.task_templates.0"

    (task,) = config_of(
        write(SMALL),
        f"{template}.answer_only_loss=true",
        f"{template}.whitespace=keep",
        f"{template}.choices=[happy, sad]",
    ).tasks

    assert (task.answer_only_loss, task.whitespace) == (True, "keep")
    assert task.choices == ("happy", "sad")


def test_an_mlp_needs_its_width(write: Writer) -> None:
    mlp = ("model.virtual_prompt_style=p-tuning", "model.p_tuning.encoder_type=mlp")

    assert "'model.p_tuning.encoder_hidden' is missing" in refusal(write(SMALL), *mlp)
    given = config_of(write(SMALL), *mlp, "model.p_tuning.encoder_hidden=384")
    assert given.p_tuning.encoder_hidden == 384


def test_a_schedule_without_warm_up_has_none(write: Writer) -> None:
    config = config_of(write(SMALL), "model.optim.sched.name=CosineAnnealing")

    assert config.optim.sched == ScheduleConfig(warmup_steps=0, min_lr=0.0, constant_steps=0)


# Single keys


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("trainer.precision=32", "trainer.precision", "fp32"),
        ("trainer.precision=bf16", "trainer.precision", "bf16"),
        ("trainer.precision=16-mixed", "trainer.precision", "fp16"),
        ("trainer.precision=bf16-mixed", "trainer.precision", "bf16"),
        ("trainer.precision=32-true", "trainer.precision", "fp32"),
        ("trainer.precision=auto", "trainer.precision", "auto"),
        ("trainer.max_steps=-1", "trainer.max_steps", None),
        ("trainer.max_steps=20", "trainer.max_steps", 20),
        ("trainer.max_time='00:03:55:00'", "trainer.max_time", "00:03:55:00"),
        ("trainer.val_check_interval=200", "trainer.val_check_interval", 200),
        ("trainer.val_check_interval=0.25", "trainer.val_check_interval", 0.25),
        ("trainer.gradient_clip_val=0.5", "trainer.gradient_clip_val", 0.5),
        ("model.tensor_model_parallel_size=2", "parallel.tensor_parallel_size", 2),
        ("model.validation_micro_batch_size=3", "trainer.validation_batch_size", 3),
        ("model.activations_checkpoint_granularity=full", "trainer.activation_checkpointing", True),
        ("model.data.shuffle=false", "data.shuffle", False),
        ("model.data.max_seq_length=128", "data.max_seq_length", 128),
        ("model.data.add_bos=true", "data.add_bos", True),
        ("model.seed=7", "seed", 7),
        ("model.lm_finetune=true", "lm_finetune", True),
        ("model.virtual_prompt_style=no-prompts", "virtual_prompt_style", "no-prompts"),
        ("model.p_tuning.encoder_type=BiGLSTM", "p_tuning.encoder_type", "biglstm"),
        ("exp_manager.create_tensorboard_logger=true", "logging.tensorboard", True),
        ("model.optim.name=adamw", "optim.weight_decay", 0.01),
    ],
)
def test_a_key_goes_where_it_belongs(write: Writer, setting: str, key: str, value: object) -> None:
    found: object = config_of(write(SMALL), setting)
    for name in key.split("."):
        found = getattr(found, name)

    assert found == value


@pytest.mark.parametrize(
    ("setting", "instead"),
    [
        ("trainer.precision=64", "Use 32, 16, bf16 or auto."),
        ("trainer.accumulate_grad_batches=4", "model.global_batch_size"),
        ("trainer.limit_val_batches=10", "Give shorter files."),
        ("trainer.resume_from_checkpoint=x.ckpt", "--resume"),
        ("trainer.amp_level=O2", "trainer.precision"),
        ("trainer.plugins=[x]", "torchrun"),
        ("exp_manager.explicit_log_dir=/results", "--output"),
        ("exp_manager.exp_dir=/results", "--output"),
        ("exp_manager.checkpoint_callback_params.monitor=val_accuracy", "validation loss"),
        ("exp_manager.checkpoint_callback_params.save_best_model=false", "plc import checkpoint"),
        ("exp_manager.create_mlflow_logger=true", "create_wandb_logger"),
        ("exp_manager.ema.enable=true", "averaged"),
        ("model.pipeline_model_parallel_size=2", "model.tensor_model_parallel_size"),
        ("model.sequence_parallel=true", "activations_checkpoint_granularity"),
        ("model.activations_checkpoint_granularity=selective", "Use full"),
        ("model.validation_drop_last=true", "Every validation example counts."),
        ("model.batch_size=8", "model.global_batch_size"),
        ("model.encoder_seq_length=2048", "model.data.max_seq_length"),
        ("model.language_model_path=gpt.nemo", "Hugging Face folder"),
        ("model.restore_path=old.nemo", "prompts.safetensors"),
        ("model.virtual_prompt_style=inference", "plc generate"),
        ("model.p_tuning.encoder_type=embedding", "prompt-tuning"),
        ("model.optim.name=distributed_fused_adam", "fused_adam"),
        ("model.optim.sched.name=WarmupHoldPolicy", "CosineAnnealing"),
        ("model.new_tasks=[]", "Name the tasks"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    write: Writer, setting: str, instead: str
) -> None:
    key = setting.partition("=")[0]

    text = refusal(write(SMALL), setting)

    assert f"--set {key}:1: '{key}' is " in text
    assert instead in text


def test_true_is_no_number(write: Writer) -> None:
    assert "is true" in refusal(write(SMALL), "model.pipeline_model_parallel_size=true")


def test_early_stopping_takes_its_own_numbers(write: Writer) -> None:
    group = "exp_manager.early_stopping_callback_params"
    config = config_of(
        write(SMALL), "exp_manager.create_early_stopping_callback=true", f"{group}.patience=2"
    )

    assert config.early_stopping == EarlyStoppingConfig(patience=2, min_delta=0.001)


def test_wandb_needs_a_project(write: Writer) -> None:
    group = "exp_manager.wandb_logger_kwargs"
    on = "exp_manager.create_wandb_logger=true"

    assert f"'{group}.project' is missing" in refusal(write(SMALL), on)
    config = config_of(write(SMALL), on, f"{group}.project=prompts", f"{group}.offline=true")
    assert config.logging.wandb == WandbConfig("prompts", mode="offline", log_artifacts=False)


def test_validation_by_generation_is_taken_over(write: Writer) -> None:
    on = "model.report_validation_metric=true"
    settings = ("model.validation_metric=rouge", "model.inference.tokens_to_generate=30")

    assert config_of(write(SMALL), on, *settings).validation == ValidationConfig(
        generate=True, metric="rouge", max_tokens=30
    )
    assert config_of(write(SMALL), *settings).validation == ValidationConfig()
    assert "Use accuracy, rouge" in refusal(write(SMALL), on, "model.validation_metric=bleu")


def test_steps_and_a_ratio_of_the_same_phase_are_refused(write: Writer) -> None:
    sched = "model.optim.sched"
    named = f"{sched}.name=CosineAnnealing"

    text = refusal(write(SMALL), named, f"{sched}.warmup_steps=5", f"{sched}.warmup_ratio=0.1")

    assert "Give warmup_steps or warmup_ratio, not both." in text
    given = config_of(write(SMALL), named, f"{sched}.constant_ratio=0.1")
    assert given.optim.sched == ScheduleConfig(warmup_steps=0, constant_ratio=0.1)


# Other forms


@pytest.mark.parametrize(
    ("change", "line", "what"),
    [
        (
            "peft: {peft_scheme: ptuning, p_tuning: {virtual_tokens: 10}}",
            2,
            "p-tuning in NeMo 1.20",
        ),
        ("peft: {peft_scheme: lora}", 2, "LoRA in NeMo 1.20"),
        ("peft: {peft_scheme: ia3, lora_tuning: {}}", 2, "'ia3' in NeMo 1.20"),
        ("peft: {peft_scheme: null}", 2, "fine-tuning in NeMo 1.20"),
        ("peft: {}", 2, "fine-tuning in NeMo 1.20"),
        ("adapter_tuning: {type: parallel_adapter}", 2, "adapter tuning"),
        ("lora_tuning: {adapter_dim: 8}", 2, "LoRA"),
        ("_target_: nemo_automodel.NeMoAutoModelForCausalLM", 2, "NeMo Automodel"),
    ],
)
def test_a_form_that_trains_something_else_is_named_once(
    write: Writer, change: str, line: int, what: str
) -> None:
    text = refusal(write(SMALL.replace("model:", f"model:\n  {change}\n  unknown_to_us: 1")))

    key = change.partition(":")[0]
    assert text.startswith(
        f"reading nemo.yaml, a NeMo config: nemo.yaml:{line}: 'model.{key}' is of another form, "
        f"for {what}"
    )
    assert "expected a config of prompt learning (NeMo 1.10 to 1.18" in text
    assert "Did you mean" not in text
    assert "Known keys" not in text


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("model: {restore_from_path: x.nemo, data: {train_ds: {file_names: [a]}}}", "fine-tuning"),
        ("model: {data: {train_ds: {file_names: [a.jsonl]}}}", "fine-tuning"),
        ("model: {num_layers: 12, hidden_size: 768, optim: {lr: 1}}", "training a base"),
        ("gpt_model_file: x.nemo\nvirtual_prompt_model_file: y.nemo", "answers of a trained"),
        ("exp_manager: {}\nmodel: {peft: {peft_scheme: adapter}}", "'adapter' in NeMo 1.20"),
    ],
)
def test_a_form_without_prompt_learning_is_named_once(write: Writer, text: str, what: str) -> None:
    assert f"is of another form, for {what}" in refusal(write(text))
    assert "is missing" not in refusal(write(text))


def test_a_form_that_is_set_on_the_command_line_is_named_there(write: Writer) -> None:
    text = refusal(write(SMALL), "model.peft.peft_scheme=lora")

    assert "--set model.peft.peft_scheme:1: 'model.peft' is of another form, for LoRA" in text


def test_a_key_of_another_form_is_no_misspelling_of_one_that_means_something_else(
    write: Writer,
) -> None:
    path = write(SMALL.replace("language_model_path", "restore_from_path"))

    assert (
        "unknown key 'model.restore_from_path'. "
        "In later NeMo it is the base: here 'model.language_model_path'" in refusal(path)
    )


def test_a_word_at_model_is_no_nemo_config(write: Writer) -> None:
    assert not is_nemo(read_yaml(write("model: gpt2\n")))
    assert is_nemo(read_yaml(write("model:\n")))


def test_what_launcher_and_hydra_read_has_no_effect(write: Writer) -> None:
    launcher = "run: {name: x, results_dir: '${base_results_dir}/${.name}'}\nhydra: {run: 1}\n"
    path = write(launcher + SMALL.replace("trainer:", "trainer:\n  devices: ${multiply:2,4}"))

    config, notes = read(path, "defaults=[_self_]")

    assert config == config_of(write(SMALL))
    assert "run, hydra are ignored: neither Hydra nor NeMo's launcher is used here" in notes
    assert "'defaults' is ['other']. Write what" in refusal(path, "defaults=[other]")


def test_known_keys_are_listed_once_for_each_group(write: Writer) -> None:
    path = write(SMALL.replace("trainer:", "zzz: 1\ntrainer:\n  qqq: 1\n  vvv: 2\n  www: 3"))

    text = refusal(path, "model.task_templates.0.qqq=1", "model.task_templates.0.vvv=1")

    assert [text.count(f"Known keys: {first}") for first in ("name", "devices", "taskname")] == [
        1,
        1,
        1,
    ]
    for key in ("zzz", "trainer.vvv", "trainer.www", "model.task_templates.0.vvv"):
        assert f"unknown key '{key}'" in text


def test_names_that_yaml_takes_for_something_else_are_asked_for_in_quotes(write: Writer) -> None:
    path = write(SMALL.replace("mood]", "2023]").replace("taskname: mood", "taskname: yes"))

    text = refusal(path)

    assert "'model.new_tasks' holds 2023, expected text: write \"2023\", with the quotes" in text
    assert (
        "'model.task_templates.0.taskname' is yes, which YAML reads as True, expected text: write "
        '"yes", with the quotes' in text
    )


# Tasks


def test_an_existing_table_and_its_tasks_are_carried_over(write: Writer) -> None:
    path = write(STOCK.replace("restore_path: null", "restore_path: runs/a/prompts.safetensors"))

    config = config_of(path, GIVEN_BASE)

    assert config.existing_table == path.parent / "runs/a/prompts.safetensors"
    assert config.existing_tasks == ("boolq",)
    assert [task.taskname for task in config.tasks] == ["rte"]


def test_a_task_is_new_or_existing(write: Writer) -> None:
    text = refusal(
        write(STOCK),
        GIVEN_BASE,
        "model.restore_path=prompts.safetensors",
        "model.new_tasks=[rte, boolq]",
    )

    assert "task 'boolq' of model.new_tasks is in model.existing_tasks too" in text


def test_a_new_task_without_a_template_is_refused_with_the_near_name(write: Writer) -> None:
    text = refusal(write(SMALL), "model.new_tasks=[mod]")

    assert "task 'mod' of model.new_tasks has no template in model.task_templates" in text
    assert "Did you mean 'mood'?" in text


def test_tasks_stand_in_the_order_of_new_tasks(write: Writer) -> None:
    config = config_of(write(STOCK), GIVEN_BASE, "model.new_tasks=[rte, boolq]")

    assert [task.taskname for task in config.tasks] == ["rte", "boolq"]


def test_first_texts_pair_with_new_tasks(write: Writer) -> None:
    settings = (
        GIVEN_BASE,
        "model.virtual_prompt_style=prompt-tuning",
        "model.new_tasks=[rte, boolq]",
        "model.prompt_tuning.new_prompt_init_methods=[text, text]",
        "model.prompt_tuning.new_prompt_init_text=[entailed, yes or no]",
    )

    config = config_of(write(STOCK), *settings)

    assert config.prompt_tuning.init == "text"
    assert {t.taskname: t.init_text for t in config.tasks} == {
        "rte": "entailed",
        "boolq": "yes or no",
    }


def test_first_texts_are_not_needed_for_random_rows(write: Writer) -> None:
    key = "model.prompt_tuning.new_prompt_init_methods"

    config = config_of(write(SMALL), f"{key}=[random]")

    assert config.prompt_tuning.init == "random"
    assert config.tasks[0].init_text is None


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            ("new_prompt_init_methods=[text]", "new_prompt_init_text=[]"),
            "'model.prompt_tuning.new_prompt_init_text' has 0, expected one for each of the 1",
        ),
        (
            ("new_prompt_init_methods=[random, random]",),
            "'model.prompt_tuning.new_prompt_init_methods' has 2, expected one for each of the 1",
        ),
        (("new_prompt_init_methods=[xavier]",), "'xavier' is not known: use text or random."),
        (
            ("new_prompt_init_text=[a mood]",),
            "'model.prompt_tuning.new_prompt_init_methods' is missing",
        ),
        (
            ("new_prompt_init_methods=[text, random]", "new_prompt_init_text=[a, null]"),
            "All tasks of a run start in one way.",
        ),
    ],
)
def test_lists_that_do_not_pair_with_new_tasks_are_refused(
    write: Writer, settings: tuple[str, ...], problem: str
) -> None:
    text = refusal(write(SMALL), *(f"model.prompt_tuning.{setting}" for setting in settings))

    assert problem in text


# References and places


def test_references_are_resolved_whole_and_within_a_text(write: Writer) -> None:
    path = write(
        SMALL.replace("tiny", "${trainer.max_epochs}-${model.micro_batch_size}").replace(
            "train.jsonl", r"'\${x}.jsonl'"
        )
    )

    config = config_of(path, "model.validation_micro_batch_size=${model.micro_batch_size}")

    assert config.base == "3-4"
    assert config.data.train == (path.parent / "${x}.jsonl",)
    assert config.trainer.validation_batch_size == 4


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("${oc.env:HOME}", "is not a reference to a key of this file"),
        ("${eval:1+1}", "is not a reference to a key of this file"),
        ("${.seed}", "is not a reference to a key of this file"),
        ("${model.sead}", "is not a key of this file"),
        ("${model.seed}", "refers to itself"),
        ("x${model.data}", "is not a single value"),
    ],
)
def test_other_references_are_refused_with_their_place(
    write: Writer, reference: str, why: str
) -> None:
    path = write(
        f"{SMALL}  log_every_n_steps: 1\n".replace("model:", f"model:\n  seed: {reference}")
    )

    text = refusal(path)

    assert "nemo.yaml:2: '${" in text
    assert why in text
    assert text.count("nemo.yaml:") == 1


@pytest.mark.parametrize("width", [1, 10])
def test_references_that_grow_without_end_are_refused(write: Writer, width: int) -> None:
    keys = [f"  k{i}: '{f'${{exp_manager.k{i + 1}}}' * width}'" for i in range(11 - width // 2)]
    path = write("\n".join([SMALL, "exp_manager:", *keys, f"  k{len(keys)}: xxxxxxxxxx"]))

    assert "is one reference too many" in refusal(path)


def test_references_to_a_long_text_are_refused_in_time(write: Writer) -> None:
    path = write(f"{SMALL}exp_manager: {{name: {'x' * 100_000}, version: x}}\n")
    settings = f"exp_manager.exp_dir={'${exp_manager.name}' * 5000}"

    assert "makes a text that is too long" in refusal(path, settings)


def test_a_setting_replaces_a_reference_before_it_is_resolved(write: Writer) -> None:
    path = write(SMALL.replace("model:", "model:\n  seed: ${oc.env:SEED}"))

    assert config_of(path, "model.seed=5").seed == 5


def test_a_wrong_type_is_named_as_the_user_wrote_it(write: Writer) -> None:
    path = write(
        SMALL.replace("lr: 0.001", "lr: fast").replace(
            "total_virtual_tokens: 5", "total_virtual_tokens: five"
        )
    )

    text = refusal(path)

    assert "nemo.yaml:14: 'model.optim.lr' is 'fast', expected a number" in text
    assert (
        "nemo.yaml:10: 'model.task_templates.0.total_virtual_tokens' is 'five', expected a whole "
        "number"
    ) in text


def test_a_number_out_of_range_is_named_with_its_place(write: Writer) -> None:
    text = refusal(write(SMALL.replace("lr: 0.001", "lr: -1, sched: {name: CosineAnnealing}")))

    assert "nemo.yaml:14: checking 'optim': " in text
    assert "lr -1.0, expected above 0" in text


def test_everything_that_is_wrong_is_said_at_once(write: Writer) -> None:
    path = write(
        SMALL.replace("global_batch_size: 8", "global_batchsize: 8")
        .replace("fused_adam", "sgd")
        .replace("truncate_field", "truncate_feild")
        .replace("trainer:", "trainer:\n  max_step: 3\n  save_top_k: 2")
    )

    text = refusal(path)

    for line in (
        "nemo.yaml:5: unknown key 'model.global_batchsize'. Did you mean 'global_batch_size'?",
        "nemo.yaml:1: 'model.global_batch_size' is missing",
        "nemo.yaml:12: unknown key 'model.task_templates.0.truncate_feild'. "
        "Did you mean 'truncate_field'?",
        "nemo.yaml:14: 'model.optim.name' is 'sgd'. Use fused_adam or adamw",
        "nemo.yaml:16: unknown key 'trainer.max_step'. Did you mean 'max_steps'?",
        "nemo.yaml:17: unknown key 'trainer.save_top_k'. "
        "Did you mean 'exp_manager.checkpoint_callback_params.save_top_k'?",
    ):
        assert line in text


def test_a_key_of_our_own_form_is_refused_with_the_reason(write: Writer) -> None:
    text = refusal(write(f"base: tiny\n{SMALL}"))

    assert "nemo.yaml:1: unknown key 'base'. It belongs to plc's own form" in text


def test_a_group_that_is_no_mapping_is_refused(write: Writer) -> None:
    assert "'model.p_tuning' is 'mlp', expected a mapping" in refusal(
        write(SMALL), "model.p_tuning=mlp"
    )


def test_an_empty_group_is_no_group(write: Writer) -> None:
    assert config_of(write(SMALL), "model.prompt_tuning=null") == config_of(write(SMALL))


def test_required_keys_are_named(write: Writer) -> None:
    text = refusal(write("exp_manager:\n  name: x\n"))

    assert [key for key in REQUIRED if f"nemo.yaml:1: '{key}' is missing" not in text] == []
