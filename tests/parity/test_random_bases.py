"""Random bases with random prompts, against `transformers` alone.

What the project computes is compared with a helper that shares nothing with it: the base is made
and run by transformers, its tokens come from a tokenizer of its own, adapters are written as PEFT
writes them, and where everything stands in a sequence is worked out here. `PLC_SEED=7` tries 30
other bases; a failure names its seed.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HfTokenizer
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
)

from pl_compile.artifact.prompt_table import read_prompt_table, write_prompt_table
from pl_compile.config.build import BuildOptions
from pl_compile.driver.bring_in import PeftImport, import_peft
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.runtime import Request, Result, Session
from pl_compile.runtime.stepping import Batch, Output

SEED = int(os.environ.get("PLC_SEED", "0"))

STEPS = 5

# Of the largest logit: float sums in another order, over three layers at most.
LIMIT = 1e-4

# Each task's virtual tokens, and where they stand. Blanks belong to the text that follows them.
TEMPLATES = {
    "rows": "Text: {text} Label: {label}",
    "middle": "Text: {text} <|VIRTUAL_PROMPT_0|> Label: {label}",
    "prefix": "Text: {text} Label: {label}",
}
VIRTUAL = {"rows": 5, "middle": 3, "prefix": 4}

CORPUS = (
    "The parcel: where is it? A graph of the prefix and the cache, 12.5 % of all entries. "
    "Text: Label: hello world, naïve cafés, 日本 😀 and <|user|> <|end|> "
)
ADDED = ("<|user|>", "<|end|>", "[PAD]")
TEXTS = ("hello world", "where is it?  12,5 %", "é 😀\n日本 <|user|>hi<|end|>", "a")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Base:
    """A base as transformers made it.

    Attributes:
        folder: the Hugging Face folder.
        config: of it.
        opening: its tokenizer before any token was added.
        going_on: the same, without the blank that it may put before a text.
        about: what was drawn, for a failure's message.
    """

    folder: Path
    config: Any
    opening: HfTokenizer
    going_on: HfTokenizer
    about: str

    @property
    def prefix_shape(self) -> tuple[int, int, int]:
        """Layers, key heads, width of a head."""
        config = self.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        return config.num_hidden_layers, heads, width


# Bases


def byte_level_tokenizer(draw: np.random.Generator) -> tuple[HfTokenizer, HfTokenizer]:
    """As GPT-2's and Llama 3's are made; it puts no blank before a text."""
    tokenizer = HfTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=int(draw.integers(270, 340)),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS] * 3, trainer)
    return tokenizer, tokenizer


def sentencepiece_tokenizer(draw: np.random.Generator) -> tuple[HfTokenizer, HfTokenizer]:
    """As Llama 2's is made: with and without the blank that it puts before a text."""
    trained = HfTokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=int(draw.integers(60, 120)), show_progress=False)
    # What is not in here is written in bytes.
    trained.train_from_iterator([CORPUS.replace("日本 😀", "")] * 3, trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    scheme = str(draw.choice(["prepend", "first", "always"]))

    def made(scheme: str) -> HfTokenizer:
        tokenizer = HfTokenizer(
            models.BPE(
                {piece: index for index, piece in enumerate(pieces)},
                [tuple(pair) for pair in model["merges"]],
                unk_token="<unk>",
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        blanks = normalizers.Replace(" ", "▁")
        if scheme == "prepend":
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blanks])
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
        return tokenizer

    return made(scheme), made("never")


def write_tokenizer(
    folder: Path, draw: np.random.Generator, *, is_byte_level: bool
) -> tuple[HfTokenizer, HfTokenizer]:
    """A tokenizer with added tokens, special or not; returns both ways to tokenise without these.

    The first is for the text that opens a sequence, the second for text that goes on.
    """
    make = byte_level_tokenizer if is_byte_level else sentencepiece_tokenizer
    opening, going_on = make(draw)
    tokenizer = HfTokenizer.from_str(opening.to_str())
    tokenizer.add_tokens([AddedToken(text, special=bool(draw.integers(2))) for text in ADDED])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return opening, going_on


def draw_llama(draw: np.random.Generator) -> LlamaConfig:
    kv_heads = int(draw.integers(1, 4))
    heads = kv_heads * int(draw.integers(1, 4))
    head_dim = int(draw.choice([2, 6, 8, 16, 32]))
    hidden = heads * head_dim
    if hidden < 12 or draw.integers(2):  # norms of a few numbers alone leave nothing to compare
        hidden = heads * int(draw.integers(-(-12 // heads), 13))
    return LlamaConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=None if hidden == heads * head_dim else head_dim,
        intermediate_size=int(draw.integers(5, 60)),
        num_hidden_layers=int(draw.integers(1, 4)),
        max_position_embeddings=int(draw.integers(80, 130)),
        rms_norm_eps=float(draw.choice([1e-6, 1e-5, 1e-2])),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": float(draw.choice([100.0, 10000.0, 500000.0])),
        },
        attention_bias=bool(draw.integers(2)),
        mlp_bias=bool(draw.integers(2)),
    )


def draw_gpt2(draw: np.random.Generator) -> GPT2Config:
    heads = int(draw.integers(2, 5))
    return GPT2Config(
        n_embd=heads * int(draw.choice([6, 8, 10, 16, 32])),
        n_head=heads,
        n_inner=int(draw.integers(5, 60)) if draw.integers(2) else None,
        n_layer=int(draw.integers(1, 4)),
        n_positions=int(draw.integers(80, 130)),
        layer_norm_epsilon=float(draw.choice([1e-6, 1e-5, 1e-2])),
    )


def draw_gemma3(draw: np.random.Generator) -> Gemma3TextConfig:
    like = draw_llama(draw)
    # One layer at least sees all: through windows alone, a long text hides its prompt.
    pattern = int(draw.integers(1, like.num_hidden_layers + 1))
    return Gemma3TextConfig(
        hidden_size=like.hidden_size,
        num_attention_heads=like.num_attention_heads,
        num_key_value_heads=like.num_key_value_heads,
        head_dim=like.head_dim,
        intermediate_size=like.intermediate_size,
        num_hidden_layers=like.num_hidden_layers,
        max_position_embeddings=like.max_position_embeddings,
        rms_norm_eps=like.rms_norm_eps,
        attention_bias=like.attention_bias,
        query_pre_attn_scalar=int(draw.integers(1, 40)),
        sliding_window=int(draw.choice([2, 5, 12, 60])),
        sliding_window_pattern=pattern,
        layer_types=[
            "full_attention" if layer % pattern == pattern - 1 else "sliding_attention"
            for layer in range(like.num_hidden_layers)
        ],
        rope_parameters={
            kind: {"rope_type": "default", "rope_theta": float(draw.choice([100.0, 5000.0, 1e6]))}
            for kind in ("full_attention", "sliding_attention")
        },
    )


def as_older_versions_wrote(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a base with rotary positions, with the older names of its settings."""
    ropes = config.pop("rope_parameters")
    if config["model_type"] == "llama":
        return config | {"rope_theta": ropes["rope_theta"]}
    del config["layer_types"]
    return config | {
        "rope_theta": ropes["full_attention"]["rope_theta"],
        "rope_local_base_freq": ropes["sliding_attention"]["rope_theta"],
    }


def randomise(model: Any, seed: int) -> None:
    """Numbers at which every part matters: biases are not 0, and norms not 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.3 * noise + (0 if name.endswith("bias") else 1))
            elif parameter.shape[0] in (
                model.config.vocab_size,
                model.config.max_position_embeddings,
            ):
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(1.2 * noise / parameter.shape[1] ** 0.5)


def draw_base(folder: Path, number: int) -> Base:
    draw = np.random.default_rng([SEED, number])
    folder.mkdir()
    opening, going_on = write_tokenizer(folder, draw, is_byte_level=number % 3 != 0)
    kind = (draw_gpt2, draw_llama, draw_gemma3)[number // 3 % 3]
    config: Any = kind(draw)
    # Not every table is as long as its tokenizer: some are padded.
    known = opening.get_vocab_size()
    config.vocab_size = known + len(ADDED) + int(draw.choice([0, 1, 6, 47]))
    config.tie_word_embeddings = bool(draw.integers(2))
    config.bos_token_id = known + ADDED.index("<|end|>")
    others = draw.choice(known, int(draw.integers(3)), replace=False).tolist()
    config.eos_token_id = [config.bos_token_id, *others] if others else config.bos_token_id
    model = AutoModelForCausalLM.from_config(config)
    randomise(model, number)
    stored = [torch.float32, torch.bfloat16, torch.float16][int(draw.integers(3))]
    size = ["5GB", "20KB"][int(draw.integers(2))]
    model.to(stored).save_pretrained(folder, max_shard_size=size)
    if kind is not draw_gpt2 and number % 2:
        file = folder / "config.json"
        plain_config = as_older_versions_wrote(json.loads(file.read_text(encoding="utf-8")))
        file.write_text(json.dumps(plain_config), encoding="utf-8")
    about = f"PLC_SEED={SEED}, base {number}, {stored}, files of {size}: {config}"
    return Base(folder, config, opening, going_on, about)


# Prompts


def write_adapter(folder: Path, base: Base, task: str, draw: np.random.Generator) -> Floats:
    """Numbers that a prompt might have, as PEFT writes them."""
    layers, heads, width = base.prefix_shape
    is_prefix = task == "prefix"
    across = layers * 2 * heads * width if is_prefix else base.config.hidden_size
    numbers = draw.normal(0, 0.5, (VIRTUAL[task], across)).astype(np.float32)
    folder.mkdir()
    save_file({"prompt_embeddings": numbers}, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "PREFIX_TUNING" if is_prefix else "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": VIRTUAL[task],
        "token_dim": base.config.hidden_size,
        "num_layers": layers,
        "num_attention_heads": heads,
        "num_transformer_submodules": 1,
        "inference_mode": True,
        "base_model_name_or_path": str(base.folder),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return numbers


def write_table(
    folder: Path, base: Base, draw: np.random.Generator
) -> tuple[Path, dict[str, Floats]]:
    """The table of all tasks, and each task's numbers."""
    table = folder / "table.safetensors"
    numbers = {}
    for task, template in TEMPLATES.items():
        numbers[task] = write_adapter(folder / task, base, task, draw)
        # PEFT's virtual tokens stand at the start: those of one task are moved afterwards.
        import_peft(
            PeftImport(folder / task, table, task, template.replace(" <|VIRTUAL_PROMPT_0|>", ""))
        )
    content = read_prompt_table(table)
    entry = content.entries["middle"]
    moved = replace(entry, task=replace(entry.task, prompt_template=TEMPLATES["middle"]))
    write_prompt_table(replace(content, entries={**content.entries, "middle": moved}), table)
    return table, numbers


# The reference


class Reference:
    """transformers in float32, all of a sequence anew for each token."""

    def __init__(self, base: Base, numbers: dict[str, Floats]) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            base.folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.base = base
        self.numbers = {task: torch.from_numpy(array) for task, array in numbers.items()}

    def embed(self, text: str, *, opens: bool = False) -> Tensor:
        tokenizer = self.base.opening if opens else self.base.going_on
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        embedded: Tensor = self.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))
        return embedded

    @torch.no_grad()
    def logits(self, task: str, text: str, answer: list[int]) -> Floats:
        """After a prompt and what was answered so far: float32 `[vocab]`."""
        body = text.rstrip(" ")
        blanks = text[len(body) :] + " "
        parts = [self.embed("Text:", opens=True), self.embed(" " + body)]
        if task == "rows":
            parts = [self.numbers[task], *parts]
        if task == "middle":  # blanks cannot move across virtual tokens
            parts += [self.embed(blanks), self.numbers[task], self.embed(" Label:")]
        else:
            parts.append(self.embed(blanks + "Label:"))
        parts.append(self.model.get_input_embeddings()(torch.tensor(answer, dtype=torch.long)))
        cache = DynamicCache(config=self.model.config)
        if task == "prefix":
            self.fill(cache)
        output = self.model(inputs_embeds=torch.cat(parts)[None], cache=cache, use_cache=True)
        last: Floats = output.logits[0, -1].numpy()
        return last

    def fill(self, cache: DynamicCache) -> None:
        """Puts PEFT's prefix where it belongs: each layer's keys, then its values, per token."""
        layers, heads, width = self.base.prefix_shape
        numbers = self.numbers["prefix"].reshape(-1, layers, 2, heads, width)
        for layer in range(layers):
            keys, values = numbers[:, layer].permute(1, 2, 0, 3)
            cache.update(keys[None], values[None], layer)


# What is compared


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Floats]:
    """Gets the logits of each step of a session, `[rows, vocab]`."""
    steps: list[Floats] = []
    feed = Batch.feed

    def listening(batch: Batch, *given: Any, **more: Any) -> dict[int, Output]:
        outputs = feed(batch, *given, **more)
        steps.append(np.stack([outputs[slot].logits for slot in sorted(outputs)]))
        return outputs

    monkeypatch.setattr(Batch, "feed", listening)
    return steps


def check_row(reference: Reference, request: Request, result: Result, logits: list[Floats]) -> None:
    text = str(request.fields["text"])
    for step, token in enumerate(result.token_ids):
        expected = reference.logits(request.task, text, list(result.token_ids[:step]))
        largest = np.abs(expected).max()
        difference = np.abs(logits[step][0] - expected).max() / largest
        where = f"{request.task}, {text!r}, step {step}: {reference.base.about}"
        assert difference < LIMIT, f"differs by {difference:.1e} of the largest logit: {where}"
        expected[reference.base.config.eos_token_id] = -np.inf  # `min_tokens` keeps them away
        assert expected[token] > expected.max() - 2 * LIMIT * largest, where


@pytest.mark.parametrize("number", range(30))
def test_a_random_base_answers_as_transformers_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    base = draw_base(tmp_path / "base", number)
    draw = np.random.default_rng([SEED, number, 1])
    table, numbers = write_table(tmp_path, base, draw)
    reference = Reference(base, numbers)
    # Kernels of native-cpu take heads of a multiple of 16.
    targets = ["onnx-cpu"] if base.prefix_shape[2] % 16 else ["onnx-cpu", "native-cpu"]
    requests = [
        Request(task, {"text": text}, max_tokens=STEPS, min_tokens=STEPS)
        for task in TEMPLATES
        for text in draw.choice(TEXTS, 2, replace=False).tolist()
    ]
    for target in targets:
        export = export_bundle(
            ExportRequest(
                table,
                base.folder,
                tmp_path / target,
                target=target,
                prompts="baked" if draw.integers(2) else "input",
                fold="always" if draw.integers(2) else "never",
                options=BuildOptions("none"),
            )
        )
        assert export.verdict == "passed", f"{export.failures}: {base.about}"
        session = Session.open(export.bundle, threads=1)
        steps = recorded(monkeypatch)

        alone = []
        rows = []
        for request in requests:
            steps.clear()
            alone += session.generate([request])
            rows.append(list(steps))
            check_row(reference, request, alone[-1], rows[-1])
        steps.clear()
        order = draw.permutation(len(requests))
        mixed = session.generate([requests[index] for index in order])

        assert mixed == [alone[index] for index in order], base.about
        # To the last bit: each row's logits are among those of the batch.
        for row in rows:
            for own, batch in zip(row, steps, strict=True):
                assert any(np.array_equal(own[0], other) for other in batch), base.about
