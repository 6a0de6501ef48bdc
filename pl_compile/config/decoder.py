"""What a base is, as numbers: one frozen `DecoderConfig` for every supported family.

In: the `config.json` of a Hugging Face folder as a dict. Out: the dimensions and choices that the
graph is built from. Anything in the file that would change the computation and that we do not
compute is refused by name.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pl_compile.errors import BaseModelError, check_all, list_problems, unknown_name

T = TypeVar("T")


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
        eos_id: token that ends an answer, if the base has one.
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
    eos_id: int | None = None

    def __post_init__(self) -> None:
        """Refuses sizes that no decoder could have."""
        sizes = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "positions")
        checks = {
            f"{name} {getattr(self, name)}, expected at least 1": getattr(self, name) >= 1
            for name in sizes
        }
        check_all(BaseModelError, "reading the sizes of the base", checks)
        if self.heads % self.kv_heads:
            raise BaseModelError(
                "reading the sizes of the base",
                found=f"{self.heads} query heads on {self.kv_heads} key heads",
                expected="a multiple",
            )


def read_decoder_config(folder: Path) -> DecoderConfig:
    """The `DecoderConfig` of a Hugging Face folder.

    Raises:
        BaseModelError: no `config.json`, an unsupported family, or a setting we do not compute.
    """
    path = folder / "config.json"
    doing = f"reading {path}"
    try:
        hf = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fix = "Give a Hugging Face model folder."
        raise BaseModelError(doing, found="no such file", fix=fix) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BaseModelError(doing, found=str(error), expected="a JSON object") from error
    if not isinstance(hf, dict):
        raise BaseModelError(doing, found="no JSON object")
    family = str(hf.get("model_type"))
    if family not in _READERS:
        found, fix = unknown_name(family, tuple(_READERS), what="model family")
        raise BaseModelError(doing, found=found, fix=fix)
    return _READERS[family](_Settings(hf, doing))


class _Settings:
    """A config file's settings with the checks a reader of them needs."""

    def __init__(self, values: Mapping[str, Any], doing: str) -> None:
        self._values = values
        self._doing = doing

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of `key`; `default` where it is absent or null.

        Raises:
            BaseModelError: a value that is no `kind`, or none and no default.
        """
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise BaseModelError(self._doing, found=f"'{key}' is missing")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            found = f"'{key}' is {value!r}"
            raise BaseModelError(self._doing, found=found, expected=f"a {kind.__name__}")
        result: T = value
        return result

    def settings(self, key: str) -> "_Settings":
        """The settings inside `key`; none where it is absent or null."""
        return _Settings(self.get(key, dict, {}), f"{self._doing}, '{key}'")

    def refuse_other_than(self, computed: Mapping[str, Any]) -> None:
        """Raises unless each key is absent or has the one value that the graph computes."""
        problems = [
            f"'{key}' is {self._values[key]!r}, and only {value!r} is supported"
            for key, value in computed.items()
            if self._values.get(key) not in (None, value)
        ]
        if problems:
            raise BaseModelError(self._doing, found=list_problems(problems))

    def token_id(self, key: str) -> int | None:
        """A token's id, or None."""
        value = self._values.get(key)
        # Some bases list several ids that end an answer; the first is the one they train with.
        first = value[0] if isinstance(value, list) and value else value
        if first is not None and type(first) is not int:
            raise BaseModelError(
                self._doing,
                found=f"'{key}' is {value!r}",
                expected="a token's id, or a list of ids",
            )
        return first


def _llama(hf: _Settings) -> DecoderConfig:
    hf.refuse_other_than({"hidden_act": "silu", "sliding_window": None})
    rope = hf.settings("rope_parameters")
    scaling = hf.settings("rope_scaling")
    for settings in (rope, scaling):
        settings.refuse_other_than({"rope_type": "default", "type": "default"})
    heads, hidden = hf.get("num_attention_heads", int), hf.get("hidden_size", int)
    return DecoderConfig(
        family="llama",
        layers=hf.get("num_hidden_layers", int),
        hidden=hidden,
        heads=heads,
        kv_heads=hf.get("num_key_value_heads", int, heads),
        head_dim=hf.get("head_dim", int, hidden // max(1, heads)),
        ffn=hf.get("intermediate_size", int),
        vocab=hf.get("vocab_size", int),
        positions=hf.get("max_position_embeddings", int),
        norm_eps=hf.get("rms_norm_eps", float),
        tied=hf.get("tie_word_embeddings", bool, False),
        rope_theta=rope.get("rope_theta", float, hf.get("rope_theta", float, 10000.0)),
        attention_bias=hf.get("attention_bias", bool, False),
        mlp_bias=hf.get("mlp_bias", bool, False),
        bos_id=hf.token_id("bos_token_id"),
        eos_id=hf.token_id("eos_token_id"),
    )


def _gpt2(hf: _Settings) -> DecoderConfig:
    hf.refuse_other_than(
        {
            "activation_function": "gelu_new",
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        }
    )
    heads, hidden = hf.get("n_head", int), hf.get("n_embd", int)
    return DecoderConfig(
        family="gpt2",
        layers=hf.get("n_layer", int),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // max(1, heads),
        ffn=hf.get("n_inner", int, 4 * hidden),
        vocab=hf.get("vocab_size", int),
        positions=hf.get("n_positions", int),
        norm_eps=hf.get("layer_norm_epsilon", float),
        tied=hf.get("tie_word_embeddings", bool, True),
        attention_bias=True,
        mlp_bias=True,
        bos_id=hf.token_id("bos_token_id"),
        eos_id=hf.token_id("eos_token_id"),
    )


_READERS: dict[str, Callable[[_Settings], DecoderConfig]] = {"llama": _llama, "gpt2": _gpt2}
