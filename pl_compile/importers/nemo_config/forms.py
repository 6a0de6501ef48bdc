"""NeMo's other forms of config. Such a file is refused with one message, not key by key.

A file of another form shares some keys with one of prompt learning, and has others with similar
names and another meaning. The forms here are those that users of prompt learning may also have.
"""

from dataclasses import dataclass
from typing import Any

from pl_compile.config.read import Node
from pl_compile.errors import ConfigError

_PROMPTS_ALONE = (
    "plc trains prompts alone: write a config of prompt learning with model.virtual_prompt_style, "
    "or one of plc's own form."
)
_REWRITE = (
    "Write the task into that form: 'docs/nemo-config.md' says which of its keys replaces which "
    "key of later NeMo."
)


@dataclass(frozen=True)
class _Form:
    """A form, recognised by any of its keys.

    Attributes:
        keys: dotted; a prompt learning config has none of them.
        what: what such a file is for, as a phrase.
        fix: what to do with it, as a sentence.
    """

    keys: tuple[str, ...]
    what: str
    fix: str


_FORMS = (
    _Form(("model.adapter_tuning",), "adapter tuning", _PROMPTS_ALONE),
    _Form(("model.lora_tuning",), "LoRA", _PROMPTS_ALONE),
    _Form(("model.ia3_tuning",), "IA3", _PROMPTS_ALONE),
    _Form(("model._target_", "peft._target_"), "NeMo Automodel or NeMo 2", _PROMPTS_ALONE),
    _Form(
        ("virtual_prompt_model_file", "gpt_model_file"),
        "answers of a trained prompt",
        "Train its tasks with 'plc train'; answers come from a bundle: 'plc generate'.",
    ),
)
# Forms of files that do not name a style of prompt learning.
_FORMS_WITHOUT_A_STYLE = (
    _Form(
        ("model.restore_from_path", "model.data.train_ds.file_names", "model.answer_only_loss"),
        "fine-tuning in NeMo 1.20 and later",
        _PROMPTS_ALONE,
    ),
    _Form(("model.num_layers", "model.hidden_size"), "training a base", _PROMPTS_ALONE),
)
# By the value of `model.peft.peft_scheme`, in small letters.
_SCHEMES = {
    "ptuning": ("p-tuning", _REWRITE),
    "lora": ("LoRA", _PROMPTS_ALONE),
    "none": ("fine-tuning", _PROMPTS_ALONE),
}


def refuse_other_forms(root: Node, doing: str) -> None:
    """Raises for a config of another known form of NeMo.

    Raises:
        ConfigError: names the form, the key that shows it, and what to do with such a file.
    """
    form = _find(root)
    if form is None:
        return
    key, at = next((key, node) for key in form.keys if (node := _at(root, key)))
    raise ConfigError(
        doing,
        found=f"{at.key_where or at.where}: '{key}' is of another form, for {form.what}",
        expected="a config of prompt learning (NeMo 1.10 to 1.18: "
        "megatron_gpt_prompt_learning_config.yaml)",
        fix=form.fix,
    )


def _find(root: Node) -> _Form | None:
    peft = _at(root, "model.peft")
    if peft is not None and isinstance(peft.data, dict):
        scheme = _at(root, "model.peft.peft_scheme")
        name = str((scheme and scheme.data) or "none").lower()
        what, fix = _SCHEMES.get(name, (f"'{name}'", _PROMPTS_ALONE))
        return _Form(("model.peft",), f"{what} in NeMo 1.20 and later", fix)
    style = _at(root, "model.virtual_prompt_style")
    forms = _FORMS if style is not None else _FORMS + _FORMS_WITHOUT_A_STYLE
    return next((form for form in forms if any(_at(root, key) for key in form.keys)), None)


def _at(root: Node, key: str) -> Node | None:
    """The node at a dotted key, or None."""
    node: Any = root
    for name in key.split("."):
        node = node.data.get(name) if isinstance(node.data, dict) else None
        if node is None:
            return None
    found: Node = node
    return found
