"""Helpers for tests and for trying things out: tiny random bases, and clear comparisons.

Sizes are tiny, odd and all different, so that a transposed axis is noticed.
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pl_compile.families.family import Family
from pl_compile.families.registry import FAMILIES
from pl_compile.progress import SILENT, Bar

if TYPE_CHECKING:
    from pl_compile.config.train import TrainConfig

_CORPUS = (
    "The quick brown fox jumps over the lazy dog. A message about a parcel, a bill or a login. "
    "Context: the year 1987 was cold. Question: who was there? Answer: nobody at all! positive "
    "negative neutral sentiment: lights kitchen off, timer 12 minutes. naïve café 😀 {braces} <|x|>"
)


class Told:
    """A progress that remembers its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        """Remembers a line."""
        self.lines.append(line)

    def bar(self, label: str, total: int) -> AbstractContextManager[Bar]:
        """A bar that is not remembered."""
        return SILENT.bar(label, total)


def write_tiny_base(
    folder: Path,
    family: str,
    *,
    seed: int = 0,
    tied: bool = True,
    blocks: bool = False,
    kv_heads: int | None = None,
    published: Literal["floats", "q4_0", "q4_1", "q8_0"] = "floats",
    tokenizer: str | None = None,
) -> Path:
    """A random base of a few thousand weights with its own tokenizer: a Hugging Face folder.

    Args:
        folder: is made.
        family: one of `families.registry`.
        seed: of the weights.
        tied: whether LM head and embedding are one table.
        blocks: whether all widths are multiples of 32, and widths of heads of 16, as quantised
            weights and their kernels need.
        kv_heads: key and value heads, each with three query heads, for a family in which query
            heads share them; by default as many as the family's tiny base has.
        published: a form of llama.cpp. The weights of the layers are floats that this form stores
            without loss; those of tables are "q8_0" always. Needs `blocks`.
        tokenizer: a `tokenizer.json` to take instead of its own; ids 1 and 2 are its BOS and EOS.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    folder.mkdir(parents=True)
    vocab = _write_tokenizer(folder) if tokenizer is None else _write_given(folder, tokenizer)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[family](
            **_tiny_sizes(FAMILIES[family], blocks=blocks, kv_heads=kv_heads),
            vocab_size=vocab,
            bos_token_id=0 if tokenizer is None else 1,
            eos_token_id=1 if tokenizer is None else 2,
            tie_word_embeddings=tied,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)  # zeros would hide a bias that is left out
        if published != "floats":
            _publish(model, published)
    model.save_pretrained(folder)
    return folder


def _tiny_sizes(family: Family, *, blocks: bool, kv_heads: int | None) -> dict[str, Any]:
    sizes = {**family.tiny, **(family.tiny_blocks if blocks else {})}
    if kv_heads is not None:
        heads = 3 * kv_heads
        sizes |= {"num_key_value_heads": kv_heads, "num_attention_heads": heads}
        sizes["hidden_size"] = math.lcm(sizes["hidden_size"], heads)
    return sizes


def _publish(model: Any, form: str) -> None:
    """Rounds a model's weights to blocks of llama.cpp; see `write_tiny_base`."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    for module in model.modules():
        if module in tables:
            stored = module.weight.numpy()
            stored[:] = as_published(stored, "q8_0")
        elif isinstance(module, Linear | Conv1D):
            # Inputs last; a Conv1D stores its weights transposed.
            weight = module.weight.numpy()
            stored = weight.T if isinstance(module, Conv1D) else weight
            stored[:] = as_published(stored, form)


def as_published(weight: NDArray[Any], form: str) -> NDArray[Any]:
    """A weight `[outputs, inputs]`, rounded to llama.cpp's blocks of 32 inputs; float32.

    Blocks of equal weights, zeros among them, have a step of 0: their codes are 0.
    """
    blocks = weight.reshape(len(weight), -1, 32)
    if form == "q4_0":
        # The weight furthest from 0, of either sign, has the lowest code.
        furthest = np.take_along_axis(blocks, np.abs(blocks).argmax(2, keepdims=True), 2)
        scale = (furthest / -8).astype(np.float16).astype(np.float32)
        counted = np.clip(np.floor(_in_steps(blocks, scale) + 8.5), 0, 15) - 8
        return np.asarray(counted * scale, np.float32).reshape(weight.shape)
    if form == "q8_0":
        low = np.float32(0)
        step = np.abs(blocks).max(2, keepdims=True) / 127
    else:
        low = blocks.min(2, keepdims=True)
        step = (blocks.max(2, keepdims=True) - low) / 15
    codes = np.rint(_in_steps(blocks - low, step))
    stored: NDArray[Any] = codes * np.float32(np.float16(step)) + np.float32(np.float16(low))
    return stored.reshape(weight.shape)


def _in_steps(numbers: NDArray[Any], step: NDArray[Any]) -> NDArray[Any]:
    """`numbers / step`; 0 where a step is 0."""
    counted: NDArray[Any] = np.divide(numbers, step, out=np.zeros_like(numbers), where=step != 0)
    return counted


def _write_tokenizer(folder: Path) -> int:
    """A byte-level BPE with the shape of GPT-2's; returns its number of ids, made odd."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=397,
        special_tokens=[AddedToken("<|start|>", special=True), AddedToken("<|end|>", special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_CORPUS] * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    count: int = tokenizer.get_vocab_size()
    return count + 1 - count % 2


def _write_given(folder: Path, text: str) -> int:
    """Writes a tokenizer as transformers reads it; returns its number of ids, made odd."""
    from tokenizers import Tokenizer

    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    count: int = Tokenizer.from_str(text).get_vocab_size()
    return count + 1 - count % 2


def byte_fallback_tokenizer(
    scheme: Literal["prepend", "first", "always"], added: Sequence[Mapping[str, Any]] = ()
) -> str:
    """A `tokenizer.json` with the shape of Llama 2's: "▁" for a blank, and a token for every byte.

    Ids: `<unk>`, `<s>` and `</s>`, the 256 bytes, the rest of the vocabulary, the added tokens.

    Args:
        scheme: what puts a blank at the start: "prepend" is a normalizer (before each section
            between added tokens), anything else a scheme of `Metaspace`.
        added: further added tokens, as the file has them, without ids.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        [_CORPUS.replace("😀", "").replace("ï", "")] * 3,
        trainers.BpeTrainer(vocab_size=200, show_progress=False),
    )
    model = json.loads(trained.to_str())["model"]
    control = ["<unk>", "<s>", "</s>"]
    pieces = [*control, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    model |= {
        "vocab": {piece: index for index, piece in enumerate(pieces)},
        "byte_fallback": True,
        "unk_token": "<unk>",
        "fuse_unk": True,
    }
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tokens = [{"content": content, "special": True} for content in control] + [*added]
    ids = [*range(3), *range(len(pieces), len(pieces) + len(added))]
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Prepend", "prepend": "▁"}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    spec = {
        "version": "1.0",
        "added_tokens": [
            {"id": key, **plain, **token} for key, token in zip(ids, tokens, strict=True)
        ],
        "normalizer": {"type": "Sequence", "normalizers": [prepend, blanks]}
        if scheme == "prepend"
        else None,
        "pre_tokenizer": None if scheme == "prepend" else metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": model,
    }
    return json.dumps(spec, ensure_ascii=False)


def assert_close(
    actual: NDArray[Any], expected: NDArray[Any], *, relative: float, what: Sequence[str] = ()
) -> None:
    """Raises AssertionError unless `|actual - expected| <= relative * max|expected|` everywhere.

    Args:
        actual: any shape.
        expected: the same shape.
        relative: of the largest expected value.
        what: a name for each index of the first axis, for the message.
    """
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    difference = np.abs(actual - expected)
    limit = relative * np.abs(expected).max()
    if not difference.max() <= limit:  # NaN is never close
        place = np.unravel_index(int(difference.argmax()), difference.shape)
        name = f" of {what[int(place[0])]}" if what else ""
        raise AssertionError(
            f"largest difference {difference.max():.3g} at {tuple(map(int, place))}{name}, "
            f"allowed {limit:.3g}"
        )


TASKS = (
    {
        "taskname": "tone",
        "prompt_template": "<|VIRTUAL_PROMPT_0|> {sentence} sentiment:{label}",
        "total_virtual_tokens": 3,
        "choices": ["positive", "negative", "neutral"],
    },
    {
        "taskname": "ask",
        # A marker after a field: the case that prefix-only systems get wrong.
        "prompt_template": (
            "Q: {question} <|VIRTUAL_PROMPT_0|> in {place}<|VIRTUAL_PROMPT_1|>: {answer}"
        ),
        "total_virtual_tokens": 5,
        "virtual_token_splits": [3, 2],
        "truncate_field": "question",
    },
)


PREFIX_TASK = {
    "taskname": "order",
    "prompt_template": "<|VIRTUAL_PROMPT_0|> {request} becomes {order}",
    "total_virtual_tokens": 4,
    "truncate_field": "request",
}


def tiny_examples(count: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Examples of both `TASKS` in turn, of varied lengths."""
    generator = np.random.default_rng(seed)
    words = _CORPUS.replace("<|x|>", "").split()

    def text(most: int) -> str:
        return " ".join(generator.choice(words, size=int(generator.integers(1, most))))

    rows = []
    for index in range(count):
        if index % 2:
            row = {"taskname": "ask", "question": text(9), "place": text(3), "answer": text(4)}
        else:
            label = ("positive", "negative", "neutral")[index // 2 % 3]
            row = {"taskname": "tone", "sentence": f"{label} {text(7)}", "label": label}
        rows.append(row)
    return rows


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """Writes one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_train_config(folder: Path, base: Path, **changes: Any) -> dict[str, Any]:
    """A training config on `base` as plain data, its examples written into `folder`.

    Args:
        folder: gets `train.jsonl` and `validation.jsonl`.
        base: a tiny base.
        changes: keys of `TrainConfig` to replace.
    """
    plain: dict[str, Any] = {
        "base": str(base),
        "tasks": [dict(task) for task in TASKS],
        "data": {
            "train": [str(write_jsonl(folder / "train.jsonl", tiny_examples(24)))],
            "validation": [str(write_jsonl(folder / "validation.jsonl", tiny_examples(8, seed=1)))],
            "cache": False,
        },
        "trainer": {
            "max_steps": 6,
            "global_batch_size": 8,
            "micro_batch_size": 4,
            "val_check_interval": 3,
        },
        "optim": {"lr": 0.05},
        **changes,
    }
    # fp32, unless a test changes it: the same numbers on every processor.
    plain["trainer"] = {"precision": "fp32", **plain["trainer"]}
    return plain


def tiny_run(
    folder: Path, base: Path, *, rows: Sequence[Any] | None = None, **changes: Any
) -> "TrainConfig":
    """The training config of `tiny_train_config`; `folder` is made if it is not there.

    Args:
        folder: as there.
        base: as there.
        rows: the examples to train on; the first eight are those to validate on.
        changes: keys to replace; in a mapping, only the keys that it names.
    """
    from pl_compile.config.read import build, node_from_plain
    from pl_compile.config.train import TrainConfig

    folder.mkdir(parents=True, exist_ok=True)
    plain = tiny_train_config(folder, base)
    for key, value in changes.items():
        old = plain.get(key)
        plain[key] = (
            {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        )
    if rows is not None:
        write_jsonl(folder / "train.jsonl", rows)
        write_jsonl(folder / "validation.jsonl", rows[:8])
    return build(TrainConfig, node_from_plain(plain, "test"), doing="reading the test config")


def tone_tasks(*names: str, **changes: Any) -> list[dict[str, Any]]:
    """The first of `TASKS` under other names."""
    return [{**TASKS[0], **changes, "taskname": name} for name in names]


def tone_examples(*names: str, count: int = 24, seed: int = 0) -> list[dict[str, str]]:
    """Examples of `tone_tasks`, each task in turn."""
    rows = tiny_examples(2 * count, seed=seed)[::2]
    return [{**row, "taskname": names[index % len(names)]} for index, row in enumerate(rows)]


def sign_bundle(bundle: Path) -> None:
    """Writes the sums of a bundle's files as they are now into its manifest."""
    from pl_compile.artifact.bundle import MANIFEST, REPORT, REPORT_PAGE
    from pl_compile.artifact.files import sha256_of

    path = bundle / MANIFEST
    content = json.loads(path.read_text(encoding="utf-8"))
    names = {file.relative_to(bundle).as_posix() for file in bundle.rglob("*") if file.is_file()}
    names -= {MANIFEST, REPORT, REPORT_PAGE}
    content["files"] = {
        name: {"sha256": sha256_of(bundle / name), "size_bytes": (bundle / name).stat().st_size}
        for name in sorted(names)
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def random_table(
    base: Path,
    path: Path,
    *,
    seed: int = 0,
    prefix: bool = False,
    tasks: Sequence[Mapping[str, Any]] = TASKS,
) -> Path:
    """Writes a prompt table of `tasks` with random rows for `base`.

    Args:
        base: a base's folder.
        path: the table's file.
        seed: of the numbers.
        prefix: whether `PREFIX_TASK`, with a random prefix, is one more task.
        tasks: as a config has them.
    """
    from pl_compile.artifact.prompt_table import (
        PromptTable,
        TaskEntry,
        write_prompt_table,
    )
    from pl_compile.config.read import build, node_from_plain
    from pl_compile.config.task import TaskConfig
    from pl_compile.text.end_tokens import end_tokens
    from pl_compile.text.render import SequenceRules
    from pl_compile.text.tokenizer import Tokenizer
    from pl_compile.weights.fingerprint import identify_base
    from pl_compile.weights.open_base import open_base

    checkpoint, config = open_base(base)
    eos_id = next(iter(end_tokens(base, Tokenizer.from_folder(base), config.vocab)), None)
    generator = np.random.default_rng(seed)
    entries = {}
    for index, spec in enumerate(tasks):
        task = build(TaskConfig, node_from_plain(spec, "TASKS"), doing="reading TASKS")
        rows = generator.normal(0, 0.3, (task.total_virtual_tokens, config.hidden))
        # One task begins with BOS and one does not: serving must follow what the table records.
        bos_id = config.bos_id if index else None
        entries[task.taskname] = TaskEntry(
            task, rows.astype(np.float32), SequenceRules(bos_id, eos_id), "random"
        )
    if prefix:
        task = build(TaskConfig, node_from_plain(PREFIX_TASK, "PREFIX_TASK"), doing="reading it")
        shape = (config.layers, 2, config.kv_heads, task.total_virtual_tokens, config.head_dim)
        prefix_kv = generator.normal(0, 1, shape).astype(np.float32)
        no_rows = np.zeros((0, config.hidden), np.float32)
        entries[task.taskname] = TaskEntry(
            task, no_rows, SequenceRules(None, eos_id), "random", prefix_kv
        )
    identity = identify_base(base.name, checkpoint, config)
    write_prompt_table(PromptTable(identity, entries), path)
    return path
