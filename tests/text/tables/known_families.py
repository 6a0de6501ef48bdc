"""The tokenizers of families of decoders, with tiny vocabularies.

Their settings are those that the families' published `tokenizer.json` files are known to have. The
classes of letters in DeepSeek's are cut off.
"""

from collections.abc import Callable, Mapping
from typing import Any

from known_tokenizers import (
    DEEPSEEK_CODER,
    DEEPSEEK_V3,
    LLAMA_3,
    O200K,
    PRE_TOKENIZERS,
    QWEN_2_5,
    TEKKEN,
    byte_level,
    digits,
    sequence,
    split,
)
from tiny_tokenizers import byte_level_tokenizer, with_added, with_parts
from tokenizers import AddedToken

from pl_compile.testing import byte_fallback_tokenizer

_NFC = {"type": "NFC"}
_BLANKS = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_GPT_2 = byte_level(use_regex=True)
_DEEPSEEK_V2 = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")
_RUNS_OF_BLANKS = [AddedToken(" " * count, normalized=True) for count in (2, 3, 4, 8, 24)]
_CHAT = [AddedToken(text, normalized=False, special=True) for text in ("<|user|>", "<|end|>")]


def _of_bytes(
    pre_tokenizer: dict[str, Any],
    *added: AddedToken,
    normalizer: dict[str, Any] | None = None,
    ignore_merges: bool = False,
) -> str:
    text = with_parts(
        byte_level_tokenizer("no split"),
        pre_tokenizer=pre_tokenizer,
        normalizer=normalizer,
        model={"ignore_merges": ignore_merges},
    )
    return with_added(text, *added, *_CHAT)


def _gemma() -> str:
    text = byte_fallback_tokenizer("prepend", [{"content": "\n\n"}, {"content": "▁▁"}])
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    return with_parts(
        text,
        normalizer=_BLANKS,
        pre_tokenizer=split(" ", kind="String", behavior="MergedWithPrevious"),
        decoder={"type": "Sequence", "decoders": decoders},
    )


def _llama_2(scheme: Any, *added: str, **settings: bool) -> str:
    special = {"special": True, **settings}
    return byte_fallback_tokenizer(scheme, [{"content": text, **special} for text in added])


_INVERTED = sequence(split(LLAMA_3, behavior="Removed", invert=True), byte_level())
_DIGITS = sequence(digits(one_by_one=True), _GPT_2)
_FALCON = sequence(
    {"type": "Punctuation", "behavior": "Contiguous"},
    _GPT_2,
    digits(one_by_one=False),
    split("[0-9][0-9][0-9]"),
)

# What makes the text of the `tokenizer.json`, by families.
TAKEN: Mapping[str, Callable[[], str]] = {
    "GPT-2, GPT-J, OPT, Phi-1, Phi-2": lambda: _of_bytes(
        _GPT_2, AddedToken("</s>", normalized=True)
    ),
    "Phi-2's runs of blanks": lambda: _of_bytes(_GPT_2, *_RUNS_OF_BLANKS),
    "GPT-NeoX, Pythia, MPT, OLMo 1, StableLM 1": lambda: _of_bytes(
        _GPT_2, *_RUNS_OF_BLANKS, normalizer=_NFC
    ),
    "SmolLM, StarCoder, Granite 3": lambda: _of_bytes(_DIGITS),
    "Command R, Aya": lambda: _of_bytes(_DIGITS, normalizer=_NFC),
    "BLOOM": lambda: _of_bytes(PRE_TOKENIZERS["BLOOM"]),
    "Llama 3, SmolLM3, OLMo 2, GLM-4, Granite 4": lambda: _of_bytes(
        sequence(split(LLAMA_3), byte_level()), ignore_merges=True
    ),
    "Qwen 2, 2.5, 3": lambda: _of_bytes(sequence(split(QWEN_2_5), byte_level()), normalizer=_NFC),
    "Phi-4, StableLM 2": lambda: _of_bytes(_INVERTED),
    "Mistral Nemo, Nemotron Nano": lambda: _of_bytes(
        sequence(split(TEKKEN), byte_level()), ignore_merges=True
    ),
    "gpt-oss": lambda: _of_bytes(sequence(split(O200K), byte_level())),
    "DeepSeek V3, R1": lambda: _of_bytes(sequence(*map(split, DEEPSEEK_V3), byte_level())),
    "DeepSeek V2": lambda: _of_bytes(
        sequence(*map(split, _DEEPSEEK_V2), digits(one_by_one=True), byte_level())
    ),
    "DeepSeek LLM, Coder": lambda: _of_bytes(
        sequence(*map(split, DEEPSEEK_CODER), digits(one_by_one=True), byte_level())
    ),
    "Llama 2, Mistral v1, Mixtral, TinyLlama, Yi, InternLM2": lambda: _llama_2("prepend"),
    "Mistral v3, newer files of Llama 2": lambda: _llama_2("first", "[INST]", "[/INST]"),
    "files of before: Metaspace with add_prefix_space": lambda: _llama_2("always", "[INST]"),
    "Code Llama": lambda: _llama_2("prepend", "▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>"),
    "Gemma 1, 2, 3": _gemma,
}

# What makes the tokenizer, and what is said of it.
REFUSED: Mapping[str, tuple[Callable[[], str], str]] = {
    "Falcon": (lambda: _of_bytes(_FALCON), "the pre-tokenizer Punctuation"),
    "Phi-3": (
        lambda: _llama_2("prepend", "<|assistant|>", rstrip=True),
        "the added token '<|assistant|>' with rstrip",
    ),
    "oldest files of Llama 1": (
        lambda: _llama_2("prepend", "</a>", normalized=True),
        "the added token '</a>' with normalized beside a normalizer",
    ),
}
