"""Tiny tokenizers, trained on a few sentences, and texts that are hard to tokenise."""

import json
import random
from functools import cache
from typing import Any

from known_tokenizers import IGNORES_MERGES, NORMALIZED, NORMALIZERS, PRE_TOKENIZERS
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HfTokenizer

_SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind: it's used to it.",
    "We've seen 12 of them in 1999, 2024 and 2025; they'll come back, I'm told.\n\nWon't they?",
    "Naïve café crème — déjà vu. Größe, Übung, Straße. Žluťoučký kůň. Việt Nam, tiếng Việt.",
    "def __init__(self, x=1.5):\n    return {'a': [x ** 2 for _ in range(10)]}  # done\r\n\tpass",
    "中文字符 日本語テキスト 한국어 русский язык Ελληνικά العربية हिन्दी 😀👍🏽❤️",
    "HTTPServer XMLHttpRequest iPhone McDonald's DON'T   I'LL   //path/to/file.txt  !!! ...",
)
ADDED = (("<|end|>", True), ("<|en", False), ("<think>", False))

_BLANKS = [*" \t\n\r\u00a0\u3000\u2028\u0085\u200b\u180e\u1680\x0b\x0c\x1c\x1f\ufeff", "  ", "\r\n"]
_DIGITS = [*"0123456789", *"٣४Ⅷ½²㊿𝟘五𐄇"]
_CONTRACTIONS = [
    "'s",
    "'S",
    "'t",
    "'re",
    "'RE",
    "'ve",
    "'ll",
    "'d",
    "\u2019s",
    "'\u017f",
    "'",
    "''",
]
_PICTURES = ["😀", "👨\u200d👩\u200d👧", "🏳️\u200d🌈", "👍🏽", "🇩🇪", "🫠", "☺", "©️"]
_SCRIPTS = [
    "中文",
    "テキスト",
    "한국어",
    "ع",
    "हिन्दी",
    "Ελ",
    "\u0440\u0443\u0441",
    "Vi\u1ec7t",
    "ß",
    "İ",
    "\u017f",
    "K",
    "ǅ",
]
_WORDS = ["the", "it's", "foxes", "The", "HTTP", "naïve", "cafe\u0301", "don't", "__init__", "A"]
_MARKS = [*map(chr, range(0x300, 0x370)), *"\u0344\u0f73\u0338\u05b0\u064b\u3099\U0001d165"]
_PARTS = [*"aesoAO \u1100\u1161\u11a8\uac00\u212b\u2126\u1e69\ufb1d\uf900\u0958", *_MARKS]
_FAMILIES = (_BLANKS, _DIGITS, _CONTRACTIONS, _PICTURES, _SCRIPTS, _WORDS)
_MARKUP = [*(text for text, _ in ADDED), "<", "|>", "<|", " ", "en", "a", "\n"]


def any_character(source: random.Random) -> str:
    """Of all planes, those at the start more often."""
    while True:
        code = source.randrange(source.choice((0x80, 0x800, 0x10000, 0x20000, 0x110000)))
        if not 0xD800 <= code < 0xE000:
            return chr(code)


def hard_texts(seed: int, count: int, parts: tuple[str, ...] = ()) -> list[str]:
    """Random texts; `parts` are mixed into some of them."""
    source = random.Random(seed)
    everything = [each for family in _FAMILIES for each in family]
    pools = (everything, _BLANKS + _WORDS, [*_DIGITS, ".", " ", "a"], _PARTS, [*_MARKUP, *parts])
    texts = []
    for number in range(count):
        length = source.randrange(1, 24)
        if number % 6 == 5:
            texts.append("".join(any_character(source) for _ in range(length)))
        else:
            texts.append("".join(source.choices(pools[number % 6], k=length)))
    return texts


@cache
def byte_level_tokenizer(name: str) -> str:
    """The text of a `tokenizer.json` with a known pre-tokenizer, by its name."""
    blanks = [AddedToken(text, normalized=True) for text in NORMALIZED.get(name, [])]
    return with_parts(
        with_added(_trained(name), *blanks),
        pre_tokenizer=PRE_TOKENIZERS[name],
        normalizer=NORMALIZERS.get(name),
        model={"ignore_merges": name in IGNORES_MERGES},
    )


def with_parts(text: str, *, model: dict[str, Any] | None = None, **parts: Any) -> str:
    """A tokenizer with other components, and other settings of its model."""
    spec = json.loads(text) | parts
    spec["model"] |= model or {}
    return json.dumps(spec)


def with_added(text: str, *tokens: AddedToken) -> str:
    tokenizer = HfTokenizer.from_str(text)
    tokenizer.add_tokens(list(tokens))
    return str(tokenizer.to_str())


def _trained(name: str) -> str:
    tokenizer = HfTokenizer(models.BPE())
    spec = json.loads(tokenizer.to_str()) | {"pre_tokenizer": PRE_TOKENIZERS[name]}
    tokenizer = HfTokenizer.from_str(json.dumps(spec))
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=520, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_SENTENCES * 2, trainer)
    tokenizer.add_tokens(
        [AddedToken(text, special=special, normalized=False) for text, special in ADDED]
    )
    return str(tokenizer.to_str())
