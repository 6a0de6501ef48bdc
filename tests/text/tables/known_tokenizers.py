"""The pre-tokenizers and normalizers of known tokenizers, as their `tokenizer.json` has them."""

from typing import Any

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2_5 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}"
    r"|\p{N}{1,3}" + _REST
)
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    + _REST
)
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# The class of letters, which is long, is cut off.
DEEPSEEK_CODER = (
    "[\r\n]",
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u0370-\u0373\u0386\u0400-\u0481\uff21-\uff3a]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    "[一-龥ࠀ-一가-퟿]+",
)


def split(
    pattern: str, *, kind: str = "Regex", behavior: str = "Isolated", invert: bool = False
) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {kind: pattern},
        "behavior": behavior,
        "invert": invert,
    }


def byte_level(*, use_regex: bool = False, add_prefix_space: bool = False) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def digits(*, one_by_one: bool) -> dict[str, Any]:
    return {"type": "Digits", "individual_digits": one_by_one}


PRE_TOKENIZERS = {
    "GPT-2": byte_level(use_regex=True),
    "SmolLM2": sequence(digits(one_by_one=True), byte_level(use_regex=True)),
    "digits in runs": sequence(digits(one_by_one=False), byte_level(use_regex=True)),
    "Llama 3": sequence(split(LLAMA_3), byte_level()),
    "Qwen 2.5": sequence(split(QWEN_2_5), byte_level()),
    "o200k": sequence(split(O200K), byte_level()),
    "DeepSeek V3": sequence(*map(split, DEEPSEEK_V3), byte_level()),
    "Tekken": sequence(split(TEKKEN), byte_level()),
    "a blank in front": byte_level(use_regex=True, add_prefix_space=True),
    "a text": sequence(split("the", kind="String"), byte_level()),
    "BLOOM": sequence(
        split(" ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"), byte_level()
    ),
    "DeepSeek Coder": sequence(*map(split, DEEPSEEK_CODER), digits(one_by_one=True), byte_level()),
    "Phi 4": sequence(split(LLAMA_3, behavior="Removed", invert=True), byte_level()),
    "GPT-NeoX": byte_level(use_regex=True),
    "no split": byte_level(),
}
IGNORES_MERGES = ("Llama 3", "Tekken")
NORMALIZERS = {"Qwen 2.5": {"type": "NFC"}, "GPT-NeoX": {"type": "NFC"}}
# Added tokens that are "normalized": runs of blanks.
NORMALIZED = {"GPT-NeoX": ["  ", "    ", "     "]}
