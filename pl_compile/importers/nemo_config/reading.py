"""Translates a NeMo prompt learning config into one of ours.

In: the tree of a YAML file with NeMo's keys, overrides included. Out: the tree of a `TrainConfig`
that means the same, each value with the place where the user wrote it. Where NeMo's default for an
absent key differs from ours, NeMo's is written out. No key is ignored silently: each is honoured,
refused by name, or reported as without effect.
"""

from collections.abc import Iterable
from dataclasses import fields, replace

from pl_compile.config.interpolate import MISSING, resolve
from pl_compile.config.read import (
    KnownKeys,
    Node,
    found_in,
    node_from_plain,
    text_expected,
    unknown_key,
)
from pl_compile.config.task import TaskConfig
from pl_compile.errors import ConfigError, did_you_mean, list_problems
from pl_compile.importers.nemo_config.file import NemoFile
from pl_compile.importers.nemo_config.forms import refuse_other_forms
from pl_compile.importers.nemo_config.keys import REQUIRED, has_no_effect

_PRECISIONS = {
    "auto": "auto",  # not NeMo's: what the hardware has
    "16": "fp16",
    "16-mixed": "fp16",
    "bf16": "bf16",
    "bf16-mixed": "bf16",
    "32": "fp32",
    "32-true": "fp32",
}
# Defaults of the optimisers' classes in NeMo: weight decay, and betas.
_DECAY = {"fused_adam": 0.0, "adam": 0.0, "adamw": 0.01}
_BETAS = (0.9, 0.999)
_TPMLP_HIDDEN = 2048
_TASK_KEYS = tuple(field.name for field in fields(TaskConfig))

_STYLE = "model.virtual_prompt_style"
_METHODS = "model.prompt_tuning.new_prompt_init_methods"
_TEXTS = "model.prompt_tuning.new_prompt_init_text"


def is_nemo(root: Node) -> bool:
    """Whether a config has one of NeMo's groups at its top, or `gpt_model_file` (for inference)."""
    if not isinstance(root.data, dict):
        return False
    groups = [root.data[key].data for key in ("model", "exp_manager") if key in root.data]
    return any(isinstance(group, dict | None) for group in groups) or "gpt_model_file" in root.data


def from_nemo(root: Node) -> tuple[Node, list[str]]:
    """The tree of a `TrainConfig`, and a line for each group of keys that have no effect here.

    Raises:
        ConfigError: the file is of another form of NeMo. Or it has unknown or missing keys, values
            that cannot be honoured, or references that cannot be resolved: all of them in one
            message, each with its place.
    """
    problems: list[str] = []
    doing = f"reading {root.where.rpartition(':')[0]}, a NeMo config"
    refuse_other_forms(root, doing)
    file = NemoFile(resolve(root, problems, without=has_no_effect), problems)
    for key in REQUIRED:
        file.require(key)
    file.apply_rules()
    _trainer(file)
    _wandb(file)
    _early_stopping(file)
    _validation(file)
    _optimizer(file)
    _schedule(file)
    _paths(file)
    _method(file)
    _tasks(file)
    if problems:
        raise ConfigError(doing, found=list_problems(list(dict.fromkeys(problems))))
    return file.tree(), file.notes()


def _trainer(file: NemoFile) -> None:
    key = "trainer.precision"
    precision = str(file.value(key, 32))
    if precision in _PRECISIONS:
        file.write(key, key, _PRECISIONS[precision])
    else:
        file.refuse(key, "Use 32, 16, bf16 or auto.")
    key = "trainer.gradient_clip_val"
    file.write(key, key, file.value(key, 0.0))  # if absent, Lightning does not clip, but we do
    key = "model.activations_checkpoint_granularity"
    granularity = file.value(key)
    if granularity == "full":
        file.write(key, "trainer.activation_checkpointing", True)
    elif granularity is not None:
        file.refuse(key, "Use full, or null.")


def _wandb(file: NemoFile) -> None:
    group = "exp_manager.wandb_logger_kwargs"
    if not file.flag("exp_manager.create_wandb_logger"):
        keys = (f"{group}.{name}" for name in ("project", "name", "entity", "offline", "log_model"))
        file.ignore_given(keys, "exp_manager.create_wandb_logger is not true")
        return
    file.require(f"{group}.project")
    for name in ("project", "name", "entity"):
        if file.value(f"{group}.{name}") is not None:
            file.move(f"{group}.{name}", f"logging.wandb.{name}")
    mode = "offline" if file.flag(f"{group}.offline") else "online"
    file.write(f"{group}.offline", "logging.wandb.mode", mode)
    artifacts = file.value(f"{group}.log_model") in (True, "all")
    file.write(f"{group}.log_model", "logging.wandb.log_artifacts", artifacts)


def _early_stopping(file: NemoFile) -> None:
    group = "exp_manager.early_stopping_callback_params"
    defaults = {"patience": 10, "min_delta": 0.001}
    if not file.flag("exp_manager.create_early_stopping_callback"):
        keys = (f"{group}.{name}" for name in defaults)
        file.ignore_given(keys, "exp_manager.create_early_stopping_callback is not true")
        return
    for name, default in defaults.items():
        key = f"{group}.{name}"
        file.write(key, f"early_stopping.{name}", file.value(key, default))


def _validation(file: NemoFile) -> None:
    if not file.flag("model.report_validation_metric"):
        file.ignore_given(
            ("model.validation_metric", "model.inference.tokens_to_generate"),
            "model.report_validation_metric is not true",
        )
        return
    file.move("model.report_validation_metric", "validation.generate")
    metric = file.value("model.validation_metric")
    if metric == "bleu":
        file.refuse("model.validation_metric", "Use accuracy, rouge or squad.")
    elif metric is not None:
        file.move("model.validation_metric", "validation.metric")
    if file.value("model.inference.tokens_to_generate") is not None:
        file.move("model.inference.tokens_to_generate", "validation.max_tokens")


def _optimizer(file: NemoFile) -> None:
    name = str(file.value("model.optim.name", "fused_adam"))
    if name not in _DECAY:
        file.refuse("model.optim.name", "Use fused_adam or adamw: both are AdamW.")
        return
    if name == "adam":
        file.ignore("model.optim.name: adam", "AdamW is used, which decays weights by themselves")
    key = "model.optim.weight_decay"
    file.write(key, "optim.weight_decay", file.value(key, _DECAY[name]))
    key = "model.optim.betas"
    betas = file.value(key, node_from_plain(_BETAS, file.where(key)).data)
    file.write(key, "optim.betas", betas)


def _schedule(file: NemoFile) -> None:
    group = "model.optim.sched"
    if file.has(group):
        file.require(f"{group}.name")
    if file.value(f"{group}.name", "CosineAnnealing") != "CosineAnnealing":
        file.refuse(
            f"{group}.name", "Use CosineAnnealing, or leave 'sched' out for a constant rate."
        )
    if not file.has(group) and file.value("model.optim.lr") is not None:
        file.move("model.optim.lr", "optim.sched.min_lr")  # a cosine between equal rates
    for part in ("warmup", "constant"):
        steps, ratio = f"{group}.{part}_steps", f"{group}.{part}_ratio"
        if file.value(steps) is not None and file.value(ratio) is not None:
            file.refuse(ratio, f"Give {part}_steps or {part}_ratio, not both.")
        elif file.value(ratio) is not None:
            file.move(ratio, f"optim.sched.{part}_ratio")
        else:
            file.write(steps, f"optim.sched.{part}_steps", file.value(steps, 0))


def _paths(file: NemoFile) -> None:
    for key, to, instead in (
        (
            "model.language_model_path",
            "base",
            "Give the same model as a Hugging Face folder, or the name of a fetched base.",
        ),
        (
            "model.restore_path",
            "existing_table",
            "Give a prompts.safetensors of plc's; train the tasks of a .nemo again.",
        ),
    ):
        value = file.value(key)
        if isinstance(value, str) and value.endswith(".nemo"):
            file.refuse(key, instead)
        elif value is not None:
            file.move(key, to)


def _method(file: NemoFile) -> None:
    style = file.value(_STYLE)
    if style == "inference":
        file.refuse(
            _STYLE, "Answers come from a bundle: 'plc export', then 'plc generate' or 'plc eval'."
        )
    elif style is not None:
        file.move(_STYLE, "virtual_prompt_style")
    type_key, hidden_key = "model.p_tuning.encoder_type", "model.p_tuning.encoder_hidden"
    if style != "p-tuning":
        others = (f"model.p_tuning.{name}" for name in ("num_layers", "dropout", "init_std"))
        file.ignore_given((type_key, hidden_key, *others), f"{_STYLE} is not p-tuning")
    encoder = str(file.value(type_key, "tpmlp")).lower()
    hidden = file.value(hidden_key, _TPMLP_HIDDEN if encoder == "tpmlp" else None)
    if encoder == "embedding":
        file.refuse(type_key, f"Use {_STYLE}: prompt-tuning.")
        return
    file.write(type_key, "p_tuning.encoder_type", encoder)
    if hidden is not None:
        file.write(hidden_key, "p_tuning.encoder_hidden", hidden)
    elif encoder == "mlp" and style == "p-tuning":
        file.problem(
            file.where(type_key),
            f"'{hidden_key}' is missing. For mlp, NeMo's default is half of the base's width, and "
            "plc's is all of it: write one of them",
        )


def _tasks(file: NemoFile) -> None:
    new, existing = file.names("model.new_tasks"), file.names("model.existing_tasks")
    restored = file.value("model.restore_path") is not None
    if existing and restored:
        file.move("model.existing_tasks", "existing_tasks")
    elif existing:
        file.ignore("model.existing_tasks", "model.restore_path names no table to take them from")
    if not new and file.value("model.new_tasks") == []:
        file.refuse("model.new_tasks", "Name the tasks to train.")
    templates = _templates(file)
    texts = _init_texts(file, list(new))
    tasks: list[Node] = []
    for name, node in new.items():
        if restored and name in existing:
            line = "is in model.existing_tasks too: it is trained, or taken from the table"
            file.problem(node.where, f"task '{name}' of model.new_tasks {line}")
        elif name in templates:
            tasks.append(_task(templates[name], texts.get(name)))
        elif file.value("model.task_templates") is not None:
            line = f"'{name}' of model.new_tasks has no template in model.task_templates."
            file.problem(node.where, f"task {line} {did_you_mean(name, templates)}".rstrip(" ."))
    unused = [name for name in templates if name not in new]
    if unused:
        file.ignore(
            f"model.task_templates ({', '.join(unused)})",
            "not in model.new_tasks; the template of an existing task stands in its table",
        )
    key = "model.task_templates"
    file.put(Node(tasks, file.where(key)), "tasks", name=key)


def _templates(file: NemoFile) -> dict[str, Node]:
    """The templates by taskname, without the keys that are null."""
    templates: dict[str, Node] = {}
    known = KnownKeys(_TASK_KEYS)
    for index, node in enumerate(file.items("model.task_templates")):
        path = f"model.task_templates.{index}"
        data = node.data if isinstance(node.data, dict) else {}
        name = data.get("taskname", Node(None, node.where))
        if not isinstance(name.data, str):
            line = f"'{path}' has no taskname"
            if name.data is not None:
                found, expected = found_in(name), text_expected(name)
                line = f"'{path}.taskname' is {found}, expected {expected}"
            file.problem(name.where, line)
            continue
        if name.data in templates:
            file.problem(name.where, f"task '{name.data}' has two templates")
        for key, value in data.items():
            if key not in _TASK_KEYS:
                file.problem(*unknown_key(value, f"{path}.{key}", known.hint(key)))
        named = {key: replace(value, name=f"{path}.{key}") for key, value in data.items()}
        given = {key: value for key, value in named.items() if value.data is not None}
        templates[name.data] = replace(node, data=given, name=path)
    templates.pop(MISSING, None)
    return templates


def _task(template: Node, init_text: Node | None) -> Node:
    # NeMo's defaults: the loss covers everything, and white space beside virtual tokens is dropped,
    # as the tokenizers of its time did.
    data = {
        "answer_only_loss": Node(False, template.where),
        "whitespace": Node("nemo", template.where),
        **template.data,
    }
    return replace(template, data=data if init_text is None else {**data, "init_text": init_text})


def _init_texts(file: NemoFile, new: list[str]) -> dict[str, Node]:
    """The initial text of each new task, where tasks start from texts."""
    if file.value(_STYLE) != "prompt-tuning":
        for key in (_METHODS, _TEXTS):
            if file.value(key) is not None:
                file.ignore(key, f"{_STYLE} is not prompt-tuning")
        return {}
    if file.value(_TEXTS) is not None:
        file.require(_METHODS)
    methods, texts = file.items(_METHODS), file.items(_TEXTS)
    if not methods:
        return {}
    kinds = {str(method.data) for method in methods}
    unknown = sorted(kinds - {"text", "random"})
    if unknown:
        file.refuse(_METHODS, f"'{unknown[0]}' is not known: use text or random.")
    elif len(kinds) > 1:
        file.refuse(
            _METHODS,
            "All tasks of a run start in one way. Train the others in a run of their own, with "
            "model.restore_path.",
        )
    file.put(methods[0], "prompt_tuning.init", name=_METHODS)
    _check_pairs(file, _METHODS, len(methods), new)
    if kinds != {"text"}:
        return {}
    _check_pairs(file, _TEXTS, len(texts), new)
    return dict(zip(new, _named(texts, _TEXTS), strict=False))


def _check_pairs(file: NemoFile, key: str, count: int, new: list[str]) -> None:
    if count != len(new):
        line = f"'{key}' has {count}, expected one for each of the {len(new)} model.new_tasks"
        file.problem(file.where(key), line)


def _named(nodes: Iterable[Node], name: str) -> list[Node]:
    return [replace(node, name=name) for node in nodes]
