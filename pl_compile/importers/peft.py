"""Writes a task's prompt as a folder of PEFT, and reads such folders. Needs neither peft nor torch.

    adapter_config.json          peft_type, task_type, sizes
    adapter_model.safetensors    tensor "prompt_embeddings"
        PROMPT_TUNING, P_TUNING  [virtual, hidden]: the rows; for p-tuning, those that its encoder
                                 computed
        PREFIX_TUNING            [virtual, layers * 2 * kv_heads * head_dim]: for each layer the
                                 keys, then the values

PEFT can put virtual tokens only before everything else, even before BOS. It gives a prefix to the
model as a filled cache: keys are those after rotary positions, as in `TaskEntry.prefix_kv`.
"""

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pl_compile.artifact.files import folder_written_whole
from pl_compile.artifact.prompt_table import PromptTable, TaskEntry
from pl_compile.artifact.tensors import read_tensor_file, tensor_bytes
from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.strict_json import read_json_object
from pl_compile.errors import ArtifactError, list_problems
from pl_compile.text.template import parse_template

CONFIG_NAME = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_TENSOR = "prompt_embeddings"

# The sizes of its base that an adapter states.
_SIZES = ("num_layers", "num_attention_heads", "token_dim")

# Methods that change matrices of the base; the changes can be merged into them.
_MERGED = ("LORA", "ADALORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "VERA", "HRA")

_OTHER_BASE = "Name the base that the adapter was trained on with --base."

# PEFT's name of a method to ours.
_METHODS = {
    "PROMPT_TUNING": "prompt-tuning",
    "P_TUNING": "p-tuning",
    "PREFIX_TUNING": "prefix-tuning",
}

Unpickle: TypeAlias = Callable[[Path], Mapping[str, NDArray[Any]]]
"""Reads the floats of a pickle by name without running what else is in it."""


@dataclass(frozen=True)
class PeftAdapter:
    """The content of a folder of PEFT.

    Attributes:
        method: our name of the method.
        base: the base it was trained on, by the name that PEFT's user gave; empty if not stated.
        embeddings: float32 `[virtual, width]`, as PEFT stores them.
        sizes: the sizes that it states of its base, by PEFT's names.
    """

    method: str
    base: str
    embeddings: NDArray[np.float32]
    sizes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def virtual(self) -> int:
        """How many virtual tokens it has."""
        return len(self.embeddings)

    @property
    def is_prefix(self) -> bool:
        """Whether it holds keys and values, not rows."""
        return self.method == "prefix-tuning"

    def learned(self, config: DecoderConfig) -> NDArray[np.float32]:
        """The rows or the prefix as a `TaskEntry` has them.

        Args:
            config: the base it is for.

        Returns:
            float32 `[virtual, hidden]`, or `[layers, 2, kv_heads, virtual, head_dim]`.

        Raises:
            ArtifactError: the sizes are not those of the base.
        """
        cache = (config.layers, 2, config.kv_heads, config.head_dim)
        expected = int(np.prod(cache)) if self.is_prefix else config.hidden
        found = self.embeddings.shape[1]
        if found != expected:
            raise ArtifactError(
                "matching the adapter with the base",
                found=f"{found} numbers for a virtual token",
                expected=f"{expected}: "
                + ("layers * 2 * kv_heads * head_dim" if self.is_prefix else "the base's width"),
                fix=_OTHER_BASE,
            )
        self._check_sizes(config)
        if not self.is_prefix:
            return self.embeddings
        return self.embeddings.reshape(self.virtual, *cache).transpose(1, 2, 3, 0, 4)

    def _check_sizes(self, config: DecoderConfig) -> None:
        """Raises `ArtifactError` where the adapter states other sizes of its base."""
        # PEFT takes them from the base. Where heads are grouped, it depends on the release and the
        # method whether it counts all heads or those of keys and values.
        heads = {config.heads, config.kv_heads}
        sizes = {
            "num_layers": {config.layers},
            "num_attention_heads": heads,
            "token_dim": {config.hidden, *(each * config.head_dim for each in heads)},
        }
        problems = [
            f"{CONFIG_NAME} says {name} {self.sizes[name]!r:.40}, and the base has "
            f"{' or '.join(map(str, sorted(known)))}"
            for name, known in sizes.items()
            if name in self.sizes and self.sizes[name] not in list(known)  # it may be a list
        ]
        if problems:
            raise ArtifactError(
                "matching the adapter with the base", found=list_problems(problems), fix=_OTHER_BASE
            )


def write_peft_adapter(
    table: PromptTable, taskname: str, folder: Path, base_name_or_path: str
) -> None:
    """Writes a task as a folder that `peft.PeftModel.from_pretrained` opens.

    Args:
        table: has the task.
        taskname: which one.
        folder: is written whole or not at all; a folder that this function wrote is replaced.
        base_name_or_path: the name of the base for PEFT.

    Raises:
        ArtifactError: there is no such task, its sequences do not begin with all of its virtual
            tokens, or the folder cannot be written.
    """
    entry = table.entry(taskname)
    _check_prepends(entry)
    config: dict[str, Any] = {
        "base_model_name_or_path": base_name_or_path,
        "inference_mode": True,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": entry.task.total_virtual_tokens,
        "task_type": "CAUSAL_LM",
    }
    if entry.prefix_kv is None:
        # PEFT takes the other sizes from the base, which a table does not describe.
        config |= {"peft_type": "PROMPT_TUNING", "token_dim": table.base.hidden}
        config |= {"num_layers": None, "num_attention_heads": None}
        embeddings = entry.rows
    else:
        layers, _, kv_heads, virtual, head_dim = entry.prefix_kv.shape
        config |= {"peft_type": "PREFIX_TUNING", "token_dim": kv_heads * head_dim}
        config |= {"num_layers": layers, "num_attention_heads": kv_heads}
        config |= {"prefix_projection": False}
        embeddings = entry.prefix_kv.transpose(3, 0, 1, 2, 4).reshape(virtual, -1)
    with folder_written_whole(folder, ours=_files_of_adapter) as staging:
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (staging / CONFIG_NAME).write_text(text, encoding="utf-8")
        tensors = {_TENSOR: np.asarray(embeddings, np.float32)}
        (staging / _WEIGHTS).write_bytes(tensor_bytes(tensors, {"format": "pt"}))


def read_peft_adapter(folder: Path, *, unpickle: Unpickle | None = None) -> PeftAdapter:
    """Reads a folder that PEFT's `save_pretrained` wrote.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        unpickle: reads an `adapter_model.bin`; if None, such a file is refused.

    Raises:
        ArtifactError: no such folder, a pickle, a damaged file, or an adapter of another kind.
    """
    doing = f"reading the PEFT adapter {folder}"
    config = _read_config(folder / CONFIG_NAME, doing)
    weights, pickled = folder / _WEIGHTS, folder / _PICKLE
    tensors: Mapping[str, NDArray[Any]]
    if weights.is_file() or not pickled.is_file():
        with suppress(ImportError):
            import ml_dtypes  # noqa: F401  (teaches numpy bfloat16)
        tensors = read_tensor_file(weights, doing=doing, floats=True).tensors
    elif unpickle is not None:
        tensors = unpickle(pickled)
    else:
        raise ArtifactError(
            doing,
            found=f"{_PICKLE}, a pickle",
            expected=_WEIGHTS,
            fix="Save the adapter again with safetensors, or give --allow-pickle.",
        )
    if set(tensors) != {_TENSOR}:
        raise ArtifactError(
            doing,
            found=f"tensors {', '.join(sorted(tensors)) or 'of no name'}",
            expected=f"'{_TENSOR}' alone: an adapter that changes the base is not imported",
        )
    stored = tensors[_TENSOR]
    virtual = config.get("num_virtual_tokens")
    if type(virtual) is not int:
        raise ArtifactError(
            doing,
            found=f"num_virtual_tokens is {virtual!r:.40}",
            expected=f"a whole number, such as {stored.shape[0] if stored.ndim else 8}",
        )
    if stored.ndim != 2 or stored.shape[0] != virtual or stored.size == 0:
        raise ArtifactError(
            doing,
            found=f"'{_TENSOR}' of shape {stored.shape}",
            expected=f"num_virtual_tokens, {virtual}, of any width",
        )
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, and is refused
        embeddings = np.ascontiguousarray(stored, np.float32)
    if not np.isfinite(embeddings).all():
        raise ArtifactError(doing, found=f"'{_TENSOR}' with numbers that are not finite")
    name = config.get("base_model_name_or_path")
    sizes = {size: config[size] for size in _SIZES if config.get(size) is not None}
    return PeftAdapter(
        _METHODS[config["peft_type"]], name if isinstance(name, str) else "", embeddings, sizes
    )


def _check_prepends(entry: TaskEntry) -> None:
    if not parse_template(entry.task).opens_with_all_virtual_tokens:
        found = "a template that does not open with all of its virtual tokens"
    elif entry.prefix_kv is None and entry.rules.bos_id is not None:
        found = "a BOS before the virtual tokens"
    else:
        return
    raise ArtifactError(
        f"writing task '{entry.task.taskname}' for PEFT",
        found=found,
        expected="all of them before everything else: PEFT can put them nowhere else",
    )


def _read_config(path: Path, doing: str) -> dict[str, Any]:
    try:
        config = read_json_object(path, ArtifactError, f"{doing}, {CONFIG_NAME}")
    except FileNotFoundError:
        raise ArtifactError(
            doing, found=f"no {CONFIG_NAME}", expected="a folder that PEFT's save_pretrained wrote"
        ) from None
    problems, fix = [], ""
    if config.get("peft_type") not in list(_METHODS):
        kind, known = config.get("peft_type"), ", ".join(_METHODS)
        problems.append(f"peft_type is {kind!r}, and only {known} are prompts of one task")
        if kind in _MERGED:
            fix = (
                "Merge it into its base (merge_and_unload() in peft), save that with its tokenizer "
                "and use it as a base."
            )
    if config.get("task_type") != "CAUSAL_LM":
        problems.append(f"task_type is {config.get('task_type')!r}, and only 'CAUSAL_LM' is a GPT")
    if config.get("modules_to_save"):
        problems.append("modules_to_save: the adapter changes the base")
    if problems:
        raise ArtifactError(doing, found=list_problems(problems), fix=fix)
    return config


def _files_of_adapter(_: Path) -> Collection[str]:
    return (CONFIG_NAME, _WEIGHTS)
