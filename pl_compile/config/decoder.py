"""What a base is, as numbers: one frozen `DecoderConfig` for every supported family.

In: the `config.json` of a Hugging Face folder as a dict. Out: the dimensions and choices that the
graph is built from. Anything in the file that would change the computation and that we do not
compute is refused by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pl_compile.config.base_keys import GPT2, LLAMA, QUANTIZED, Keys
from pl_compile.config.sizes import MOST, size_checks
from pl_compile.config.strict_json import read_json_object
from pl_compile.errors import BaseModelError, check_all, list_problems

T = TypeVar("T")

# The largest float32, in which bases compute.
_FLOAT32_MAX = 3.4e38

DEQUANTIZE = (
    "Save the base as floats: load it with transformers and the package that quantised it, then "
    "model.dequantize() and model.save_pretrained(folder)."
)


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder-only GPT.

    Attributes:
        family: a row of `graph.architectures`: "llama" or "gpt2".
        layers: decoder blocks.
        hidden: width of the residual stream.
        heads: query heads; `heads % kv_heads == 0`.
        kv_heads: key and value heads.
        head_dim: width of one head.
        ffn: inner width of the feed-forward part.
        vocab: token ids the base knows; ids from here on are virtual.
        positions: longest sequence the base was made for, virtual tokens included.
        norm_eps: epsilon of every normalisation.
        tied: whether the head is the transposed embedding.
        rope_theta: base of the rotary frequencies; 0 where positions are learned.
        attention_bias: whether q, k, v and the attention output have biases.
        mlp_bias: whether the feed-forward products have biases.
        bos_id: token that opens a sequence, if the base has one.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    positions: int
    norm_eps: float
    tied: bool
    rope_theta: float = 0.0
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_id: int | None = None

    def __post_init__(self) -> None:
        """Refuses sizes that no decoder could have."""
        sizes = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "positions")
        doing = "reading the sizes of the base"
        check_all(BaseModelError, doing, size_checks({name: getattr(self, name) for name in sizes}))
        checks = {
            f"{self.heads} query heads on {self.kv_heads} key heads, expected a multiple": (
                self.heads % self.kv_heads == 0
            ),
            f"head_dim {self.head_dim}, expected an even number: rotary positions turn pairs": (
                self.rope_theta == 0 or self.head_dim % 2 == 0
            ),
        }
        check_all(BaseModelError, doing, checks)


def read_decoder_config(folder: Path) -> DecoderConfig:
    """The `DecoderConfig` of a Hugging Face folder.

    Raises:
        BaseModelError: no `config.json`, an unsupported family, or a setting we do not compute.
    """
    path = folder / "config.json"
    doing = f"reading {path}"
    try:
        hf = read_json_object(path, BaseModelError, doing)
    except FileNotFoundError:
        fix = "Give a Hugging Face model folder."
        raise BaseModelError(doing, found="no such file", fix=fix) from None
    family = hf.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        # No near name is proposed: gptj is not gpt2.
        said = f"is {family!r:.80}" if "model_type" in hf else "is missing"
        expected = f"a family of: {', '.join(_FAMILIES)}"
        raise BaseModelError(
            doing, found=f"'model_type' {said}", expected=expected, fix=_ANOTHER_BASE
        )
    _refuse_codes(hf, doing)
    keys, read = _FAMILIES[family]
    problems = keys.problems(hf)
    if problems:
        raise BaseModelError(doing, found=list_problems(problems), fix=_ANOTHER_BASE)
    aliased = {keys.aliases[key]: value for key, value in hf.items() if key in keys.aliases}
    return read(_Settings(hf | aliased, doing))


_ANOTHER_BASE = "Use another base: docs/importing.md says which are read."


def _refuse_codes(hf: Mapping[str, Any], doing: str) -> None:
    for key in QUANTIZED:
        how = hf.get(key)
        if how is not None:
            named = how.get("quant_method") if isinstance(how, dict) else None
            raise BaseModelError(
                doing,
                found=f"'{key}'"
                + (f" ({named!s:.40})" if named else "")
                + ": the weights are codes",
                expected="weights that are floats",
                fix=DEQUANTIZE,
            )


_KINDS = {
    int: "a whole number",
    float: "a number with a point, such as 1e-05",
    bool: "true or false",
}


class _Settings:
    """A config file's settings with the checks a reader of them needs."""

    def __init__(self, values: Mapping[str, Any], doing: str) -> None:
        self._values = values
        self._doing = doing

    def get(self, key: str, kind: type[T], default: T | None = None, *, null: bool = False) -> T:
        """The value of `key`.

        Args:
            key: its name.
            kind: its type; a whole number is no float, since transformers takes it for none.
            default: what it is where it is absent.
            null: whether null stands for the default.

        Raises:
            BaseModelError: a value that is no `kind`, or none and no default.
        """
        value = self._values.get(key)
        if value is None and default is not None and (null or key not in self._values):
            return default
        if key not in self._values:
            raise BaseModelError(
                self._doing,
                found=f"'{key}' is missing",
                expected=_KINDS[kind],
                fix="Add what the base was made with, or save it again with save_pretrained.",
            )
        if type(value) is not kind:
            found = f"'{key}' is {'null' if value is None else repr(value)[:80]}"
            raise BaseModelError(self._doing, found=found, expected=_KINDS[kind])
        result: T = value
        return result

    def size(self, key: str, name: str, default: int | None = None, *, null: bool = False) -> int:
        """The value of `key`, the size that is called `name` in `MOST`; see `get`."""
        value = self.get(key, int, default, null=null)
        if not 1 <= value <= MOST[name]:
            found, expected = f"'{key}' is {value!r:.80}", f"1 to {MOST[name]}"
            raise BaseModelError(self._doing, found=found, expected=expected)
        return value

    def epsilon(self, key: str, default: float) -> float:
        """What a normalisation adds, so that it never divides by zero."""
        value = self.get(key, float, default)
        if not 0 < value < 1:
            found = f"'{key}' is {value!r:.80}"
            raise BaseModelError(self._doing, found=found, expected="above 0 and below 1")
        return value

    def heads_of(self, heads: str, hidden: str) -> tuple[int, int]:
        """How many heads there are, and the width that they divide."""
        count, width = self.size(heads, "heads"), self.size(hidden, "hidden")
        if width % count:
            raise BaseModelError(
                self._doing,
                found=f"'{heads}' is {count}, and '{hidden}' is {width}",
                expected="a multiple",
            )
        return count, width

    def rope_theta(self) -> float:
        """The base of the rotary frequencies, in whichever of its places it stands.

        Raises:
            BaseModelError: positions that are scaled, or places that contradict each other.
        """
        ropes = [self._rope(key) for key in ("rope_parameters", "rope_scaling")]
        if all(ropes) and ropes[0] != ropes[1]:
            # transformers takes the second whole: what the first alone says would be lost.
            raise BaseModelError(
                self._doing,
                found=f"'rope_parameters' is {ropes[0]!r:.80}, "
                f"and 'rope_scaling' is {ropes[1]!r:.80}",
                expected="one of the two",
            )
        rope = ropes[1] or ropes[0]
        given = {}
        if "rope_theta" in rope:
            given["rope_theta of its rotary settings"] = rope["rope_theta"]
        # Null beside a number says nothing; alone it is no number.
        if self._values.get("rope_theta") is not None or (
            "rope_theta" in self._values and not given
        ):
            given["rope_theta"] = self._values["rope_theta"]
        for place, value in given.items():
            if type(value) not in (int, float) or not 1 <= value <= _FLOAT32_MAX:
                raise BaseModelError(
                    self._doing,
                    found=f"{place} is {value!r:.80}",
                    expected="a number, at least 1 and finite",
                )
        if len(set(given.values())) > 1:
            said = ", and ".join(f"{place} is {value!r:.80}" for place, value in given.items())
            raise BaseModelError(self._doing, found=said, expected="one number")
        return float(next(iter(given.values()), _DEFAULT_THETA))

    def _rope(self, key: str) -> dict[str, Any]:
        """The settings of rotary positions that are not scaled."""
        rope = self._values.get(key) or {}
        if not isinstance(rope, dict):
            raise BaseModelError(self._doing, found=f"'{key}' is {rope!r:.80}", expected="a dict")
        # Some files say how much and not of what kind: programs took that for scaled, too.
        problems = [
            f"'{name}' is {value!r:.80}, and scaled positions are not supported"
            for name, value in rope.items()
            if name != "rope_theta" and value is not None and value != _NOT_SCALED.get(name)
        ]
        if problems:
            raise BaseModelError(
                f"{self._doing}, '{key}'", found=list_problems(problems), fix=_ANOTHER_BASE
            )
        return rope

    def pad_id_within(self, vocab: int) -> None:
        """Raises unless there is a row for the token that pads, which transformers asks for."""
        pad = self._values.get("pad_token_id")
        if pad is not None and not (type(pad) is int and -vocab <= pad < vocab):
            raise BaseModelError(
                self._doing,
                found=f"'pad_token_id' is {pad!r:.80}",
                expected=f"null, or an id below {vocab}, the vocabulary",
            )

    def token_id(self, key: str) -> int | None:
        """A token's id, or None."""
        value = self._values.get(key)
        if value is not None and type(value) is not int:
            raise BaseModelError(
                self._doing, found=f"'{key}' is {value!r:.80}", expected="a token's id, or null"
            )
        return value


_DEFAULT_THETA = 10000.0

# What may stand beside rotary positions, with the value at which they are not scaled.
_NOT_SCALED = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1}


def _llama(hf: _Settings) -> DecoderConfig:
    heads, hidden = hf.heads_of("num_attention_heads", "hidden_size")
    vocab = hf.size("vocab_size", "vocab")
    hf.pad_id_within(vocab)
    return DecoderConfig(
        family="llama",
        layers=hf.size("num_hidden_layers", "layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=hf.size("num_key_value_heads", "kv_heads", heads, null=True),
        head_dim=hf.size("head_dim", "head_dim", hidden // heads, null=True),
        ffn=hf.size("intermediate_size", "ffn"),
        vocab=vocab,
        positions=hf.size("max_position_embeddings", "positions", 2048),
        norm_eps=hf.epsilon("rms_norm_eps", 1e-6),
        tied=hf.get("tie_word_embeddings", bool, False),
        rope_theta=hf.rope_theta(),
        attention_bias=hf.get("attention_bias", bool, False),
        mlp_bias=hf.get("mlp_bias", bool, False),
        bos_id=hf.token_id("bos_token_id"),
    )


def _gpt2(hf: _Settings) -> DecoderConfig:
    heads, hidden = hf.heads_of("n_head", "n_embd")
    return DecoderConfig(
        family="gpt2",
        layers=hf.size("n_layer", "layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        ffn=hf.size("n_inner", "ffn", 4 * hidden, null=True),
        vocab=hf.size("vocab_size", "vocab"),
        positions=hf.size("n_positions", "positions", 1024),
        norm_eps=hf.epsilon("layer_norm_epsilon", 1e-5),
        tied=hf.get("tie_word_embeddings", bool, True),
        attention_bias=True,
        mlp_bias=True,
        bos_id=hf.token_id("bos_token_id"),
    )


_FAMILIES: dict[str, tuple[Keys, Callable[[_Settings], DecoderConfig]]] = {
    "llama": (LLAMA, _llama),
    "gpt2": (GPT2, _gpt2),
}
