import json
from pathlib import Path
from typing import Any

import pytest

from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.sizes import MOST
from pl_compile.errors import BaseModelError
from pl_compile.families.read import read_decoder_config
from pl_compile.families.registry import FAMILIES
from pl_compile.families.weights import Biases

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 24,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
    "vocab_size": 397,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "rope_theta": 5000,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_layer": 3,
    "n_embd": 24,
    "n_head": 3,
    "vocab_size": 397,
    "n_positions": 96,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def read(folder: Path, settings: dict[str, Any], **changes: Any) -> DecoderConfig:
    """Reads `settings` with `changes` made; a change to `...` takes the key away."""
    changed = {key: value for key, value in (settings | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(changed), encoding="utf-8")
    return read_decoder_config(folder)


def refusal(folder: Path, settings: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(BaseModelError) as error:
        read(folder, settings, **changes)
    return str(error.value)


def test_a_llama_is_read_number_by_number(tmp_path: Path) -> None:
    assert read(tmp_path, LLAMA) == DecoderConfig(
        family="llama",
        layers=2,
        hidden=24,
        heads=6,
        kv_heads=2,
        head_dim=8,
        ffn=40,
        vocab=397,
        positions=96,
        norm_eps=1e-5,
        tied=True,
        rope_theta=5000.0,
        bos_id=1,
        own=Biases(attention_bias=False, mlp_bias=False),
    )


def test_a_gpt2_is_read_number_by_number(tmp_path: Path) -> None:
    assert read(tmp_path, GPT2) == DecoderConfig(
        family="gpt2",
        layers=3,
        hidden=24,
        heads=3,
        kv_heads=3,
        head_dim=8,
        ffn=96,
        vocab=397,
        positions=96,
        norm_eps=1e-5,
        tied=True,
        rope_theta=0.0,
        bos_id=0,
        own=Biases(attention_bias=True, mlp_bias=True),
    )


def test_what_a_llama_leaves_out_has_the_value_of_transformers(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        LLAMA,
        num_key_value_heads=...,
        head_dim=...,
        hidden_act=...,
        tie_word_embeddings=...,
        rope_theta=...,
        bos_token_id=...,
        rms_norm_eps=...,
        max_position_embeddings=...,
    )

    assert config.kv_heads == 6
    assert (config.norm_eps, config.positions) == (1e-6, 2048)
    assert config.head_dim == 4
    assert config.tied is False
    assert config.rope_theta == 10000.0
    assert config.bos_id is None


def test_what_a_gpt2_leaves_out_has_the_value_of_transformers(tmp_path: Path) -> None:
    config = read(tmp_path, GPT2, layer_norm_epsilon=..., n_positions=..., n_inner=...)

    assert (config.norm_eps, config.positions, config.ffn) == (1e-5, 1024, 96)
    assert config.tied is True


def test_biases_of_a_llama_are_seen(tmp_path: Path) -> None:
    config = read(tmp_path, LLAMA, attention_bias=True, mlp_bias=True)

    assert config.own == Biases(attention_bias=True, mlp_bias=True)


def test_the_inner_width_of_a_gpt2_is_what_it_says(tmp_path: Path) -> None:
    assert read(tmp_path, GPT2, n_inner=56).ffn == 56
    assert read(tmp_path, GPT2, n_inner=None).ffn == 96


def test_the_rotary_base_is_found_in_the_newer_key(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 12345.0}

    assert read(tmp_path, LLAMA, rope_theta=..., rope_parameters=rope).rope_theta == 12345.0
    assert read(tmp_path, LLAMA, rope_scaling=None).rope_theta == 5000.0


@pytest.mark.parametrize("value", [[1, 2], [1], "1", True])
def test_one_token_opens_a_sequence(tmp_path: Path, value: object) -> None:
    with pytest.raises(BaseModelError, match=r"'bos_token_id' is .*a token's id, or null"):
        read(tmp_path, LLAMA, bos_token_id=value)


@pytest.mark.parametrize(
    ("key", "rope"),
    [
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
    ],
)
def test_scaled_rotary_positions_are_refused_by_name(
    tmp_path: Path, key: str, rope: dict[str, Any]
) -> None:
    text = refusal(tmp_path, LLAMA, **{key: rope})

    assert text.startswith(f"reading {tmp_path / 'config.json'}, '{key}': ")
    assert "type' is 'linear', and scaled positions are not supported" in text
    assert "'factor' is 2.0" in text


def test_all_settings_that_we_do_not_compute_stand_in_one_message(tmp_path: Path) -> None:
    assert refusal(tmp_path, LLAMA, hidden_act="gelu", sliding_window=16).splitlines() == [
        f"reading {tmp_path / 'config.json'}: 2 problems:",
        "  - 'hidden_act' is 'gelu', and only 'silu' or 'swish' is supported",
        "  - 'sliding_window' is 16, and that is not supported.",
        "Use another base: docs/importing.md says which are read.",
    ]


@pytest.mark.parametrize(
    ("key", "value", "supported"),
    [
        ("activation_function", "relu", "'gelu_new'"),
        ("scale_attn_weights", False, "True"),
        ("scale_attn_by_inverse_layer_idx", True, "False"),
        ("add_cross_attention", True, "False"),
    ],
)
def test_a_gpt2_that_computes_otherwise_is_refused(
    tmp_path: Path, key: str, value: object, supported: str
) -> None:
    assert refusal(tmp_path, GPT2, **{key: value}) == (
        f"reading {tmp_path / 'config.json'}: '{key}' is {value!r}, "
        f"and only {supported} is supported. "
        "Use another base: docs/importing.md says which are read."
    )


# GPT-J is another family, however near its name is to another.
@pytest.mark.parametrize("family", ["gptj", "lama", "mistral", None, 3, ["llama"]])
def test_another_family_is_refused_with_those_that_are_read(tmp_path: Path, family: object) -> None:
    assert refusal(tmp_path, LLAMA, model_type=family) == (
        f"reading {tmp_path / 'config.json'}: 'model_type' is {family!r}; "
        "expected a family of: llama, gpt2, gemma3_text. "
        "Use another base: docs/importing.md says which are read."
    )


def test_a_missing_family_is_named(tmp_path: Path) -> None:
    assert "'model_type' is missing" in refusal(tmp_path, LLAMA, model_type=...)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (LLAMA, "num_hidden_layers"),
        (LLAMA, "hidden_size"),
        (LLAMA, "num_attention_heads"),
        (LLAMA, "intermediate_size"),
        (LLAMA, "vocab_size"),
        (GPT2, "n_layer"),
        (GPT2, "n_embd"),
        (GPT2, "n_head"),
        (GPT2, "vocab_size"),
    ],
)
def test_a_missing_setting_is_named(tmp_path: Path, settings: dict[str, Any], key: str) -> None:
    assert refusal(tmp_path, settings, **{key: ...}) == (
        f"reading {tmp_path / 'config.json'}: '{key}' is missing; expected a whole number. "
        "Add what the base was made with, or save it again with save_pretrained."
    )


@pytest.mark.parametrize(
    ("settings", "key", "value"),
    [
        (LLAMA, "num_attention_heads", "6"),
        (LLAMA, "vocab_size", "397"),
        (LLAMA, "rope_parameters", "default"),
        (GPT2, "n_head", "3"),
        (GPT2, "n_layer", 2.5),
    ],
)
def test_a_setting_of_a_wrong_type_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], key: str, value: object
) -> None:
    text = refusal(tmp_path, settings, **{"head_dim": ..., key: value})

    assert f"'{key}' is {value!r}" in text


def test_heads_that_do_not_share_the_keys_evenly_are_refused(tmp_path: Path) -> None:
    text = refusal(tmp_path, LLAMA, num_key_value_heads=4)

    assert "6" in text
    assert "4" in text


def test_a_folder_without_a_config_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError) as error:
        read_decoder_config(tmp_path)

    assert str(error.value) == (
        f"reading {tmp_path / 'config.json'}: no such file. Give a Hugging Face model folder."
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[1]", "other JSON; expected a JSON object."),
    ],
)
def test_a_config_that_is_no_json_object_is_refused(
    tmp_path: Path, text: str, complaint: str
) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")

    with pytest.raises(BaseModelError) as error:
        read_decoder_config(tmp_path)

    assert str(error.value).startswith(f"reading {tmp_path / 'config.json'}: {complaint}")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tiny_bases_are_what_transformers_wrote(
    tiny_bases: dict[str, Path], family: str
) -> None:
    config = read_decoder_config(tiny_bases[family])

    assert config.family == family
    assert (config.hidden, config.vocab, config.positions) == (24, 397, 96)
    assert config.bos_id == 0


@pytest.mark.parametrize(
    ("settings", "key", "most"),
    [
        (LLAMA, "num_hidden_layers", "layers"),
        (LLAMA, "num_attention_heads", "heads"),
        (LLAMA, "num_key_value_heads", "kv_heads"),
        (LLAMA, "head_dim", "head_dim"),
        (LLAMA, "hidden_size", "hidden"),
        (LLAMA, "intermediate_size", "ffn"),
        (LLAMA, "vocab_size", "vocab"),
        (LLAMA, "max_position_embeddings", "positions"),
        (GPT2, "n_layer", "layers"),
        (GPT2, "n_inner", "ffn"),
        (GPT2, "n_positions", "positions"),
    ],
)
def test_a_size_is_bounded_as_in_the_files_of_ours(
    tmp_path: Path, settings: dict[str, Any], key: str, most: str
) -> None:
    for size in (0, MOST[most] + 1):
        with pytest.raises(BaseModelError, match=f"'{key}' is {size}; expected 1 to {MOST[most]}"):
            read(tmp_path, settings, **{key: size})


@pytest.mark.parametrize("settings", [LLAMA, GPT2])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("is_encoder_decoder", [False]),
        ("sliding_window", [None, None]),
        ("logit_scale", [1.0]),
        ("alibi", []),
        ("return_dict", []),
    ],
)
def test_a_list_stands_for_no_single_value(
    tmp_path: Path, settings: dict[str, Any], key: str, value: object
) -> None:
    with pytest.raises(BaseModelError, match=f"'{key}' is "):
        read(tmp_path, settings, **{key: value})


def test_an_activation_in_a_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="'hidden_act' is "):
        read(tmp_path, LLAMA, hidden_act=["silu"])


def test_what_is_said_of_each_layer_is_a_list(tmp_path: Path) -> None:
    layers = {"layer_types": ["full_attention"] * 3, "no_rope_layers": [1] * 3}

    assert read(tmp_path, LLAMA, **layers, mlp_multipliers=[1.0, 1.0]) == read(tmp_path, LLAMA)
