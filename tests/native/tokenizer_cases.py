"""Small tokenizers of the kinds that bases have, and texts that tell them apart."""

import json
import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from tokenizers import AddedToken, models, trainers
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import pre_tokenizers as pre

_PLAIN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)

# The longer hide the shorter, special ones hide what begins inside them; "é" is also a byte of
# the byte-level alphabet, "→" is not.
ADDED = ("<think>", "<think", "<s>", "s>x", "é", "→", "<|im_end|>", "a b")
_SPECIAL = {"<think>", "<s>", "<|im_end|>"}

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS = (
    *("the", "of", "and", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are"),
    *("as", "with", "his", "they", "at", "be", "this", "have", "from", "one", "had", "by", "word"),
    *("but", "not", "what", "all", "were", "we", "when", "your", "can", "said", "there", "which"),
)
_BLANKS = (
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\r",
    *"\u00a0\u3000\u2028\u0085\u200b\u180e\u1680\x1c\ufeff",
)
_DIGITS = (*"0123456789", *"٣४Ⅷ½²㊿𝟘〇五")
_CONTRACTIONS = (
    "'s",
    "'S",
    "'re",
    "'RE",
    "'ll",
    "'d",
    "\u2019s",
    "'\u017f",
    "''",
    "don't",
    "I'm",
    "we'LL",
)
_EMOJI = ("😀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "❤️", "👍🏽", "🇩🇪", "🫠", "☺")
_SCRIPTS = (
    *("中文字符", "日本語テキスト", "한국어", "العربية", "हिन्दी", "ไทย", "Ελληνικά", "русский"),
    *("Việt", "e\u0301a\u0308", "ﬀ", "ß", "İi", "𓀀𓁐", "ǅ", "ªº", "_", "__init__", "naïve", "Å"),
)
_MARKED = (
    *("a", "e", "s", "A", " ", "1", "\u0344", "\u2126", "\u212b", "\u0f73", "\u1f82", "\u0958"),
    *("\u1100\u1161\u11a8", "\uac00\u11a8", "\uac00", "\u1161", "\ud7a3", "\u0345", "\u0315"),
)


def _json_of(pre_tokenizer: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pre_tokenizer.__getstate__())
    return found


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _sequence(*parts: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def _byte_level(*, blank: bool = False, pattern: bool = True) -> dict[str, Any]:
    return _json_of(pre.ByteLevel(add_prefix_space=blank, use_regex=pattern))


_QWEN = _sequence(_split(_LLAMA_3.replace("{1,3}", "")), _byte_level(pattern=False))
_BYTE_LEVEL: dict[str, dict[str, Any]] = {
    "gpt-2": {"pre_tokenizer": _byte_level()},
    "a blank in front": {"pre_tokenizer": _byte_level(blank=True)},
    "digits": {"pre_tokenizer": _sequence(_json_of(pre.Digits(True)), _byte_level())},
    "llama 3": {
        "pre_tokenizer": _sequence(_split(_LLAMA_3), _byte_level(pattern=False)),
        "ignore_merges": True,
    },
    "qwen": {"pre_tokenizer": _QWEN, "normalizer": {"type": "NFC"}},
    "neox": {"pre_tokenizer": _byte_level(), "normalizer": {"type": "NFC"}, "blanks": True},
    "three splits": {
        "pre_tokenizer": _sequence(
            _split(r"\p{N}{1,3}"), _split("[一-龥\u3040-\u309f\u30a0-\u30ff]+"), _byte_level()
        )
    },
}
_BLANK = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_PREPENDED = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, _BLANK]}
_UNBLANK = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
_JOINED = [_UNBLANK, {"type": "ByteFallback"}, {"type": "Fuse"}]
_STRIPPED = [*_JOINED, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
_BYTE_FALLBACK: dict[str, dict[str, Any]] = {
    "llama 2": {
        "normalizer": _PREPENDED,
        "decoder": {"type": "Sequence", "decoders": _STRIPPED},
    },
    "gemma": {"normalizer": _BLANK, "decoder": {"type": "Sequence", "decoders": _JOINED}},
    **{
        f"metaspace, {scheme}{', split' if splits else ''}": {
            "pre_tokenizer": _json_of(pre.Metaspace(prepend_scheme=scheme, split=splits)),
            "decoder": {"type": "Sequence", "decoders": _STRIPPED},
        }
        for scheme in ("first", "always")
        for splits in (False, True)
    },
}
KINDS = [*_BYTE_LEVEL, *_BYTE_FALLBACK]


@cache
def tokenizer_json(kind: str) -> str:
    """The `tokenizer.json` of one of `KINDS`."""
    spec = json.loads(_trained(byte_level=kind in _BYTE_LEVEL))
    change = dict({**_BYTE_LEVEL, **_BYTE_FALLBACK}[kind])
    spec["model"]["ignore_merges"] = change.pop("ignore_merges", False)
    normalized = ("  ", "    ", "\n\n\n") if change.pop("blanks", False) else ()
    spec |= {"pre_tokenizer": None, "normalizer": None} | change
    return json.dumps(_with_added(spec, normalized))


@cache
def _trained(*, byte_level: bool) -> str:
    lines = [" ".join((*_WORDS, *_SCRIPTS, *_CONTRACTIONS))] * 3 + ["= = == ====   \n\n\n "] * 3
    alphabet = pre.ByteLevel.alphabet() if byte_level else []
    bytes_ = [] if byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
    special = [AddedToken(name, normalized=False) for name in ["<unk>", *bytes_]]
    tokenizer = HfTokenizer(models.BPE(unk_token=None if byte_level else "<unk>"))
    tokenizer.pre_tokenizer = pre.ByteLevel(False) if byte_level else pre.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    spec = json.loads(tokenizer.to_str())
    spec["model"] |= {"byte_fallback": not byte_level, "fuse_unk": not byte_level}
    spec["decoder"] = {**_byte_level(), "add_prefix_space": True}
    return json.dumps(spec)


def _with_added(spec: dict[str, Any], normalized: Sequence[str]) -> dict[str, Any]:
    """The same with the added tokens of `ADDED`; those that are words keep their ids.

    Others are `normalized`: they are looked for after the normalizer.
    """
    vocab = spec["model"]["vocab"]
    every = [*ADDED, *normalized]
    new = [text for text in every if text not in vocab]
    ids = {**vocab, **{text: len(vocab) + place for place, text in enumerate(new)}}
    added = [
        {
            **_PLAIN,
            "id": ids[text],
            "content": text,
            "special": text in _SPECIAL,
            "normalized": text in normalized,
        }
        for text in every
    ]
    return {**spec, "added_tokens": sorted(added, key=lambda token: int(token["id"]))}


def texts(seed: int, count: int) -> list[str]:
    """Random texts: all planes, and what divides tokenizers."""
    generator = random.Random(seed)
    return [_text(generator) for _ in range(count)]


def _text(generator: random.Random) -> str:
    length = generator.randrange(1, 40)
    pools: list[tuple[str, ...]] = [
        tuple(_character(generator) for _ in range(length)),
        tuple(map(chr, range(9, 127))),
        (*_BLANKS, *_DIGITS, *_CONTRACTIONS, *_EMOJI, *_SCRIPTS, *_WORDS),
        (*_WORDS, " ", " ", *_CONTRACTIONS),
        (*_BLANKS, *_WORDS[:5]),
        (*_DIGITS, ".", ",", " ", "a"),
        (*ADDED, "<", ">", "s", "x", " ", "think", "\n", "▁"),
        (*_MARKED, *(chr(generator.randrange(0x300, 0x370)) for _ in range(8))),
    ]
    chosen = generator.choice(pools)
    if generator.random() < 0.15:
        repeated: str = generator.choice((*_WORDS, *_BLANKS, "=", "中", "😀", "0", "ab"))
        return repeated * (4 * length)
    return "".join(generator.choice(chosen) for _ in range(length))


def _character(generator: random.Random) -> str:
    while True:
        end = generator.choice((0x80, 0x800, 0x3000, 0x10000, 0x20000, 0x110000))
        point = generator.randrange(end)
        if not 0xD800 <= point < 0xE000:
            return chr(point)


def wrong_bytes(seed: int, count: int) -> list[bytes]:
    """Random bytes, most of which are not UTF-8."""
    generator = random.Random(seed)
    parts = [
        b"\xed\xa0\x80",
        b"\xc0\xaf",
        b"\xe0\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xf4\x90\x80\x80",
    ]
    parts += [b"\xff", b"ok ", b"\xe4\xb8", b"\xf0\x9f\x98", b"\x80", "é😀中".encode(), b"\xf0\x80"]
    found = []
    for _ in range(count):
        some = b"".join(generator.choice(parts) for _ in range(6))
        found.append(generator.choice([some, generator.randbytes(20), some[: len(some) // 2]]))
    return found


def id_lists(kind: str, seed: int, count: int) -> list[list[int]]:
    """Random ids of a tokenizer; those of bytes and blanks often, and some that are none."""
    generator = random.Random(seed)
    library = HfTokenizer.from_str(tokenizer_json(kind))
    size = library.get_vocab_size()
    names = ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0x41>", "<0x20>", "▁", "▁▁", "Ġ", "ð", "Ł"]
    telling = [key for n in (*names, *ADDED) if (key := library.token_to_id(n)) is not None]

    def some() -> int:
        return generator.choice(telling) if generator.random() < 0.6 else generator.randrange(size)

    return [[some() for _ in range(generator.randrange(14))] for _ in range(count)]
