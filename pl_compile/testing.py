"""Small things for tests and for trying things out: tiny random bases, and comparisons that tell.

Sizes are tiny and odd, no two alike, so that a transposed axis cannot go unseen.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FAMILIES = ("llama", "gpt2")

_CORPUS = (
    "The quick brown fox jumps over the lazy dog. A message about a parcel, a bill or a login. "
    "Context: the year 1987 was cold. Question: who was there? Answer: nobody at all! positive "
    "negative neutral sentiment: lights kitchen off, timer 12 minutes. naïve café 😀 {braces} <|x|>"
)


def write_tiny_base(folder: Path, family: str, *, seed: int = 0, tied: bool = True) -> Path:
    """A random base of a few thousand weights with its own tokenizer: a Hugging Face folder.

    Args:
        folder: is made.
        family: one of `FAMILIES`.
        seed: of the weights.
        tied: whether head and embedding are one table.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True)
    vocab = _write_tokenizer(folder)
    common = {
        "vocab_size": vocab,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": tied,
    }
    torch.manual_seed(seed)
    model: Any
    if family == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=24,
                num_hidden_layers=2,
                num_attention_heads=6,
                num_key_value_heads=2,
                head_dim=8,
                intermediate_size=40,
                max_position_embeddings=96,
                initializer_range=0.3,
                **common,
            )
        )
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                n_embd=24,
                n_layer=3,
                n_head=3,
                n_inner=56,
                n_positions=96,
                initializer_range=0.3,
                **common,
            )
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)  # zeros would hide a bias that is left out
    model.save_pretrained(folder)
    return folder


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
    if difference.max() > limit:
        place = np.unravel_index(int(difference.argmax()), difference.shape)
        name = f" of {what[int(place[0])]}" if what else ""
        raise AssertionError(
            f"largest difference {difference.max():.3g} at {tuple(map(int, place))}{name}, "
            f"allowed {limit:.3g}"
        )
