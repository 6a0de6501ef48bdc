"""Every key of a base's config.json: read, without effect on the logits, or refused.

A key that transformers' class for the family knows stands in the family's `Keys`, or in what all
families share here. A key that it does not know cannot change what transformers computes. But the
file's author may mean something by it: a cap, a scale or a window, say, of which no tensor tells.
The names that other families and other programs have for such things are refused, unless their
value means nothing. Any other key is ignored, as transformers ignores it.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Keys:
    """What is known of the keys of a family's config.json; see `family_keys`.

    Attributes:
        read: keys whose values are in `DecoderConfig`, and the one of `text.end_tokens`.
        fixed: key to the values that the graph computes; any other is refused.
        without_effect: keys that change no logit of inference.
        aliases: other names of keys that are read, as transformers has them.
        architectures: classes whose weights are those of the family's language model.
    """

    read: frozenset[str]
    fixed: Mapping[str, tuple[Any, ...]]
    without_effect: frozenset[str]
    aliases: Mapping[str, str]
    architectures: tuple[str, ...]

    @property
    def known(self) -> frozenset[str]:
        """All keys of which it is known what they do."""
        return self.read | self.without_effect | {*self.fixed, *self.aliases, *_CHECKED}

    def problems(self, values: Mapping[str, Any]) -> list[str]:
        """What in a config.json would change the numbers and is not computed, as phrases."""
        problems = [
            f"'{key}' is {values[key]!r:.80}, and {_computed(allowed)}"
            for key, allowed in self.fixed.items()
            if key in values and not _is_allowed(key, values[key], allowed)
        ]
        for other, key in self.aliases.items():
            if {other, key} <= values.keys() and values[other] != values[key]:
                problems.append(
                    f"'{other}' is {values[other]!r:.80}, and '{key}', the same setting, is "
                    f"{values[key]!r:.80}"
                )
        problems += self._problems_of_classes(values)
        return problems

    def _problems_of_classes(self, values: Mapping[str, Any]) -> list[str]:
        problems = []
        classes = values.get("architectures")
        named = classes if isinstance(classes, list) else [] if classes is None else [classes]
        if any(name not in self.architectures for name in named):
            known = ", ".join(self.architectures)
            problems.append(f"'architectures' is {classes!r:.80}, and only {known} are computed")
        remote = values.get("auto_map")
        kinds = remote if isinstance(remote, dict) else {} if remote is None else {"AutoModel": ""}
        if any(kind.startswith(("AutoModel", "AutoConfig")) for kind in kinds):
            problems.append("'auto_map' names code of its own, and what that computes is not known")
        return problems


def _is_allowed(key: str, value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether a value is allowed, or each one of a list where the key may have one."""
    if isinstance(value, list) and key in _LISTS:
        return all(_is_one_of(each, allowed) for each in value)
    return _is_one_of(value, allowed)


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether a value is allowed; true is not 1."""
    return any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in allowed
    )


def _computed(allowed: tuple[Any, ...]) -> str:
    # That a key may be null, which stands for its absence, tells nobody anything.
    said = " or ".join(repr(each) for each in allowed if each is not None)
    return f"only {said} is supported" if said else "that is not supported"


# Names under which a file says that its weights are codes: of transformers, of compressed-tensors
# in its first releases, and of MLX.
QUANTIZED = ("quantization_config", "compression_config", "quantization")

# Keys with a list of values: one for each layer, or for each product of a layer.
_LISTS = ("layer_types", "mlp_multipliers", "no_rope_layers")

# Looked at by name, and stated in no table.
_CHECKED = ("model_type", "architectures", "auto_map", *QUANTIZED)

# What `PreTrainedConfig` adds to every family.
_COMMON_FIXED: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "output_attentions": (None, False),  # transformers refuses it beside fast attention
    "per_layer_config": (None,),
    "return_dict": (None, True),
}
_COMMON_WITHOUT_EFFECT = frozenset(
    {
        "_attn_implementation",  # the caller's choice counts, as for the next ones
        "_commit_hash",
        "_name_or_path",
        "attn_implementation",
        "chunk_size_feed_forward",  # no family computes in chunks
        "dtype",  # weights are read as they are stored
        "experts_implementation",
        "id2label",
        "initializer_range",
        "label2id",
        "name_or_path",
        "num_labels",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)

_OFF = (None, False)
_ONE = (None, 1)
_ZERO = (None, 0)
_NONE = (None,)

# Names of other families, of newer and of older releases, with the values at which they change
# nothing. What would come with tensors of its own (norms of queries, experts, biases) is not
# listed: those tensors are refused by name.
_ELSEWHERE: dict[str, tuple[Any, ...]] = {
    # Caps.
    "activation_sparsity_pattern": _NONE,
    "attn_logit_softcapping": _NONE,
    "clip_qkv": _NONE,
    "final_logit_softcapping": _NONE,
    "logit_soft_cap": _NONE,
    "logits_soft_cap": _NONE,
    "mlp_gate_softcap": _NONE,
    "mlp_up_softcap": _NONE,
    "output_logit_soft_cap": _NONE,
    "qk_l2_clip_threshold": _NONE,
    "softcap": _NONE,
    "swiglu_limit": _NONE,
    # Scales.
    "attention_in_multiplier": _ONE,
    "attention_multiplier": _NONE,
    "attention_out_multiplier": _ONE,
    "attention_scale": _NONE,
    "attention_value_scale": _ONE,
    "attn_scale": _NONE,
    "attn_temperature_tuning": _OFF,
    "dim_model_base": _NONE,
    "emb_scale": _ONE,
    "embedding_multiplier": _ONE,
    "embedding_scale": _ONE,
    "key_multiplier": _ONE,
    "lm_head_multiplier": _ONE,
    "log_scaling_alpha": _NONE,
    "logit_scale": _ONE,
    "logits_mup_width_multiplier": _ONE,
    "logits_scaling": _ONE,
    "mlp_multipliers": _ONE,
    "mup_attn_multiplier": _ONE,
    "mup_embeddings_scale": _ONE,
    "mup_enabled": _OFF,
    "mup_width_multiplier": _ONE,
    "mup_width_scale": _ONE,
    "output_multiplier": _ONE,
    "qk_scale_factor": _ONE,
    "query_pre_attn_scalar": _NONE,
    "residual_multiplier": _ONE,
    "residual_scale": _ONE,
    "scale_depth": _NONE,
    "scale_emb": _ONE,
    "scale_embedding": _OFF,
    "softmax_scale": _NONE,
    "use_logn_attn": _OFF,
    "use_mup": _OFF,
    # Which tokens are seen.
    "attention_chunk_size": _NONE,
    "attention_window": _NONE,
    "attention_window_size": _NONE,
    "bidirectional": _OFF,
    "causal": (None, True),
    "global_attn_every_n_layers": _NONE,
    "is_causal": (None, True),
    "kv_sharing_modes": _NONE,
    "layer_types": (None, "full_attention"),
    "num_kv_shared_layers": _ZERO,
    "prefix_lm": _OFF,
    "sliding_window": _NONE,
    "sliding_window_pattern": _NONE,
    "sliding_window_size": _NONE,
    "use_bidirectional_attention": _OFF,
    "use_sliding_window": _OFF,
    # Positions.
    "alibi": _OFF,
    "global_rope_theta": _NONE,
    "layer_rope_theta": _NONE,
    "local_rope_theta": _NONE,
    "no_rope_layer_interval": _ZERO,
    "no_rope_layers": _ONE,
    "nope_layer_interval": _ZERO,
    "partial_rotary_factor": _ONE,
    "rope_interleave": _OFF,
    "rope_interleaved": _OFF,
    "rope_local_base_freq": _NONE,
    "rope_ratio": _ONE,
    "rope_scaling_layers": _NONE,
    "rotary_dim": _NONE,
    "rotary_emb_base": _NONE,
    "rotary_emb_interleaved": _OFF,
    "rotary_emb_scale_base": _NONE,
    "rotary_embedding_base": _NONE,
    "rotary_pct": _ONE,
    "rotary_percent": _ONE,
    "rotary_value": _OFF,
    "use_alibi": _OFF,
    "use_dynamic_ntk": _OFF,
    "use_rope": (None, True),
    # Norms, and what runs beside what, or again.
    "apply_residual_connection_post_layernorm": _OFF,
    "layernorm_zero_centered_gamma": _OFF,
    "loop_num_passes": _ONE,
    "n_recurrent_loops": _ONE,
    "norm_after": _OFF,
    "parallel_attn": _OFF,
    "parallel_residual": _OFF,
    "qk_layernorm": _OFF,
    "qk_norm": _OFF,
    "rms_norm_add_unit_offset": _OFF,
    "use_parallel_residual": _OFF,
    "use_post_norm": _OFF,
    "use_qk_l2norm": _OFF,
    "use_qk_norm": _OFF,
    "use_sandwich_norm": _OFF,
    # What transformers does with any base.
    "attribute_map": _NONE,
    "fusion_config": _NONE,
    "pruned_heads": (None, {}),
    "transformers_weights": _NONE,
}


def family_keys(
    *,
    read: Set[str],
    fixed: Mapping[str, tuple[Any, ...]],
    without_effect: Set[str],
    architectures: tuple[str, ...],
    aliases: Mapping[str, str] | None = None,
) -> Keys:
    """The keys of a family: its own, and those that mean the same to all that do not have them.

    Args:
        read: see `Keys`, as for the rest; none of the family's keys need be common to all.
        fixed: what it computes with one value only.
        without_effect: what changes none of its logits.
        architectures: its classes.
        aliases: other names of what it reads.
    """
    aliases = aliases or {}
    own = {*read, *fixed, *without_effect, *aliases}
    shared = {**_COMMON_FIXED, **_ELSEWHERE}
    return Keys(
        read=frozenset(read),
        fixed={**fixed, **{key: shared[key] for key in shared if key not in own}},
        without_effect=frozenset(without_effect | (_COMMON_WITHOUT_EFFECT - own)),
        aliases=aliases,
        architectures=architectures,
    )
