"""Every key of config.json that transformers reads is known, and read as transformers reads it."""

import dataclasses
import inspect
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
)

from pl_compile.errors import BaseModelError
from pl_compile.families.keys import Keys
from pl_compile.families.read import read_decoder_config
from pl_compile.families.registry import FAMILIES

# Asked of a config for layers of other kinds, which `layer_types` would name, and of the configs of
# models that see images too.
NOT_OURS = {
    "number_of_conv_states",
    "get_text_config",
    "image_token_id",
    "mm_tokens_per_image",
    "text_config",
    "vision_config",
}


def folder_of(base: Path, folder: Path, **changes: Any) -> Path:
    """The config of a base with `changes` made; a change to `...` takes the key away."""
    folder.mkdir(exist_ok=True)
    changed = json.loads((base / "config.json").read_text()) | changes
    kept = {key: value for key, value in changed.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_the_class_is_known(family: str) -> None:
    keys, kind = FAMILIES[family].keys, transformers.CONFIG_MAPPING[family]
    # What else the class takes for a file's sake, such as the names of older releases.
    source = inspect.getsource(PreTrainedConfig.__post_init__)
    source += inspect.getsource(kind.convert_rope_params_to_dict)
    older = set(re.findall(r'kwargs\.(?:pop|get)\("(\w+)"', source))
    assert {"torch_dtype", "rope_scaling", "per_layer_config"} <= older

    known = {field.name for field in dataclasses.fields(kind)} | older | {*kind.attribute_map}

    # A key that is new in transformers goes into one of the tables: look what it does first.
    assert known - keys.known == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_that_transformers_asks_of_a_config_is_known(family: str) -> None:
    """Also those that its class does not have: a file that has them changes what is computed."""
    folder = Path(transformers.__file__).parent
    shared = ("masking_utils.py", "cache_utils.py", "integrations/sdpa_attention.py")
    kind = transformers.CONFIG_MAPPING[family]
    model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[kind]
    model = inspect.getsource(sys.modules[model_class.__module__])
    texts = [(folder / name).read_text(encoding="utf-8") for name in shared] + [model]
    asked = {
        name for text in texts for name in re.findall(r'attr\((?:self\.)?\w*config, "(\w+)"', text)
    }
    asked |= set(re.findall(r"\bconfig\.([a-z]\w+)", model))
    assert {"is_causal", "sliding_window", "layer_types", "vocab_size"} <= asked

    assert asked - FAMILIES[family].keys.known - NOT_OURS == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_stands_in_one_table(family: str) -> None:
    keys = FAMILIES[family].keys
    tables = [keys.read, {*keys.fixed}, keys.without_effect, {*keys.aliases}]

    assert sum(map(len, tables)) == len(set().union(*tables))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_computed_with_one_value_is_refused_with_another(
    tiny_bases: dict[str, Path], tmp_path: Path, family: str
) -> None:
    base = tiny_bases[family]
    for key, allowed in FAMILIES[family].keys.fixed.items():
        for value in allowed:
            read_decoder_config(folder_of(base, tmp_path / "fine", **{key: value}))
        for value in ("another", 0.37, not any(each is True for each in allowed)):
            with pytest.raises(BaseModelError, match=f"'{key}' is "):
                read_decoder_config(folder_of(base, tmp_path / "other", **{key: value}))


def _altered(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if value >= 1 else 0.5
    return {"cls_index": "mean"}.get(str(value), "tanh")


class _Model:
    """A tiny base's weights under any config, in transformers: logits of a prompt and a step."""

    def __init__(self, base: Path, kind: type[Any]) -> None:
        self.settings = json.loads((base / "config.json").read_text())
        self._kind = kind
        self._weights = AutoModelForCausalLM.from_pretrained(base).state_dict()

    def logits(self, **changes: object) -> torch.Tensor:
        config = self._kind.from_dict(self.settings | changes)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
        model.load_state_dict(self._weights)
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            steps = [
                model(input_ids=torch.tensor([ids]), cache=cache, use_cache=True).logits[0]
                for ids in ([5, 3, 88, 41, 0, 7, 9, 11], [12])
            ]
        return torch.cat(steps)


@pytest.fixture(scope="session")
def models(tiny_bases: dict[str, Path]) -> dict[str, _Model]:
    kinds = transformers.CONFIG_MAPPING
    return {family: _Model(base, kinds[family]) for family, base in tiny_bases.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_said_to_have_no_effect_has_none(models: dict[str, _Model], family: str) -> None:
    keys, kind = FAMILIES[family].keys, transformers.CONFIG_MAPPING[family]
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    of_no_forward_pass = {"dtype", "id2label", "label2id", "problem_type", "transformers_version"}
    tried = keys.without_effect & defaults.keys() - of_no_forward_pass
    assert len(tried) >= 5
    expected = models[family].logits()
    for key in tried:
        value = 5 if key == "pad_token_id" else _altered(defaults[key])
        assert torch.equal(models[family].logits(**{key: value}), expected), key


def _names_of_all_families() -> list[str]:
    families = (
        *FAMILIES,
        "gemma2",
        "granite",
        "llama4_text",
        "cohere2",
        "gpt_neox",
        "falcon",
    )
    kinds = [transformers.CONFIG_MAPPING[family] for family in families]
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    return sorted(names.union(*(family.keys.known for family in FAMILIES.values())))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_that_is_accepted_does_not_change_what_transformers_computes(
    models: dict[str, _Model], family: str
) -> None:
    keys, model = FAMILIES[family].keys, models[family]
    expected = model.logits()
    values = [True, False, 1, 0.5, "x", None, [1, 0, 1], {}]
    accepted: set[str] = set()
    compared: dict[str, int] = {}
    for key, value in itertools.product(_names_of_all_families(), values):
        if key in keys.read | {*keys.aliases} or keys.problems(model.settings | {key: value}):
            continue
        accepted.add(key)
        try:
            logits = model.logits(**{key: value})
        except Exception:  # what transformers refuses, in any words, it does not compute
            continue
        assert torch.equal(logits, expected), (key, value)
        compared[key] = compared.get(key, 0) + 1

    # These mean nothing as null, and transformers refuses them even so.
    assert accepted - compared.keys() <= {"attribute_map", "rope_scaling"}
    assert sum(compared.values()) >= 300


ROPES: list[Any] = [..., None, {}, {"rope_type": "default"}, {"rope_theta": 88.0}]
ROPES += [{"rope_type": "default", "rope_theta": 5000.0}, {"type": "default", "rope_theta": None}]


def test_the_rotary_base_is_that_of_transformers_or_refused(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    read = 0
    for theta, parameters, scaling in itertools.product((..., None, 5000), ROPES, ROPES):
        folder = folder_of(
            tiny_bases["llama"],
            tmp_path / "c",
            rope_theta=theta,
            rope_parameters=parameters,
            rope_scaling=scaling,
        )
        try:
            ours = read_decoder_config(folder).rope_theta
        except BaseModelError:
            continue
        assert LlamaConfig.from_pretrained(folder).rope_parameters["rope_theta"] == ours
        read += 1
    assert read >= 40  # what says one thing is read, in whatever place it says it


LOCAL, GLOBAL = "sliding_attention", "full_attention"
BY_KIND: list[Any] = [
    *(..., None, {}, {GLOBAL: None}),
    {GLOBAL: {"rope_theta": 5000.0}, LOCAL: {"rope_theta": 88.0}},
    {LOCAL: {"rope_type": "default", "rope_theta": 88}},
]


def test_both_rotary_bases_are_those_of_transformers_or_refused(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    read = 0
    scalings = (..., None, {"rope_type": "default"}, {"rope_theta": 700.0})
    older = (..., 5000)
    for ropes, scaling, theta, local in itertools.product(BY_KIND, scalings, older, (..., 88.0)):
        folder = folder_of(
            tiny_bases["gemma3_text"],
            tmp_path / "c",
            rope_parameters=ropes,
            rope_scaling=scaling,
            rope_theta=theta,
            rope_local_base_freq=local,
        )
        try:
            ours = read_decoder_config(folder)
            theirs = Gemma3TextConfig.from_pretrained(folder).rope_parameters
        except (BaseModelError, KeyError, AttributeError):  # the last two are those of transformers
            continue
        assert theirs[GLOBAL]["rope_theta"] == ours.rope_theta
        assert theirs[LOCAL]["rope_theta"] == ours.own.local_rope_theta
        read += 1
    assert read >= 60


@pytest.mark.parametrize("pattern", [..., 1, 2, 6])
def test_windows_without_a_list_of_layers_are_those_of_transformers(
    tiny_bases: dict[str, Path], tmp_path: Path, pattern: Any
) -> None:
    changes = {"sliding_window_pattern": pattern, "layer_types": ..., "sliding_window": ...}
    folder = folder_of(tiny_bases["gemma3_text"], tmp_path / "c", num_hidden_layers=13, **changes)

    theirs = Gemma3TextConfig.from_pretrained(folder)

    windows = {LOCAL: theirs.sliding_window, GLOBAL: 0}
    assert read_decoder_config(folder).own.windows == tuple(windows[k] for k in theirs.layer_types)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_theta": 5e5}, "rope_scaling": {"rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1e4},
        {"rope_parameters": {"factor": 2.0, "rope_theta": 1e4}},
        {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"rope_parameters": ..., "rope_theta": None},
        *({"rope_parameters": {"rope_theta": theta}} for theta in (0, -5.0, 0.5, 1e39, "1e4")),
    ],
)
def test_rotary_settings_that_contradict_or_scale_are_refused(
    tiny_bases: dict[str, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(BaseModelError, match=r"config\.json.*rope|config\.json.*scaled"):
        read_decoder_config(folder_of(tiny_bases["llama"], tmp_path / "c", **changes))


def test_two_names_of_a_setting_of_gpt2_are_read_as_transformers_reads_them(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_bases["gpt2"]
    for other, key in GPT2Config.attribute_map.items():
        value = json.loads((base / "config.json").read_text())[key]
        for own in (value, ...):
            folder = folder_of(base, tmp_path / "c", **{other: value, key: own})
            assert read_decoder_config(folder) == read_decoder_config(base)
            assert getattr(GPT2Config.from_pretrained(folder), key) == value
        with pytest.raises(BaseModelError, match=f"'{other}' is .*'{key}', the same setting"):
            read_decoder_config(folder_of(base, tmp_path / "c", **{other: value + 1}))


@pytest.mark.parametrize("key", ["quantization_config", "compression_config", "quantization"])
@pytest.mark.parametrize("value", [{"quant_method": "awq"}, {"bits": 4}, {}, "int8"])
def test_weights_that_are_codes_are_refused_before_any_is_looked_for(
    tiny_bases: dict[str, Path], tmp_path: Path, key: str, value: object
) -> None:
    with pytest.raises(BaseModelError, match=f"'{key}'.*: the weights are codes.*dequantize"):
        read_decoder_config(folder_of(tiny_bases["llama"], tmp_path / "c", **{key: value}))


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("llama", {"architectures": ["LlamaForCausalLMEagle"]}, "'architectures' is "),
        ("llama", {"architectures": "MistralForCausalLM"}, "'architectures' is "),
        ("gpt2", {"architectures": ["GPT2LMHeadModel", "GPT2Mine"]}, "'architectures' is "),
        ("llama", {"auto_map": {"AutoModelForCausalLM": "m.M"}}, "'auto_map' names code"),
        ("llama", {"auto_map": ["m.M"]}, "'auto_map' names code"),
        ("llama", {"hidden_act": None}, "'hidden_act' is None"),
        ("llama", {"tie_word_embeddings": None}, "'tie_word_embeddings' is null; expected true"),
        ("llama", {"rms_norm_eps": 1}, "'rms_norm_eps' is 1; expected a number with a point"),
        ("llama", {"rms_norm_eps": 0}, "'rms_norm_eps' is 0; expected .* a point, such as 1e-05."),
        ("llama", {"rms_norm_eps": -1e-5}, "'rms_norm_eps' is -1e-05; expected above 0"),
        ("gpt2", {"layer_norm_epsilon": 0.0}, "'layer_norm_epsilon' is 0.0; expected above 0"),
        ("llama", {"num_hidden_layers": 0}, "'num_hidden_layers' is 0; expected 1 to"),
        ("llama", {"vocab_size": 10**30}, "'vocab_size' is 10*; expected 1 to"),
        ("llama", {"num_hidden_layers": True}, "'num_hidden_layers' is True; expected a whole"),
        ("llama", {"num_attention_heads": 5}, "'hidden_size' is 24; expected a multiple"),
        ("gpt2", {"n_head": 5}, "'n_embd' is 24; expected a multiple"),
        ("llama", {"head_dim": 7}, "head_dim 7, expected an even number"),
        ("llama", {"pad_token_id": 397}, "'pad_token_id' is 397; expected null, or an id below"),
        ("gpt2", {"rope_theta": 1e4}, "'rope_theta' is 10000.0"),
        ("llama", {"layer_types": ["full_attention", "sliding_attention"]}, "'layer_types' is "),
        ("gemma3_text", {"layer_types": ["full_attention"] * 2}, "'layer_types' is .* 3 layers"),
        ("gemma3_text", {"layer_types": ["chunked_attention"] * 3}, "'layer_types' is .* 3 layers"),
        ("gemma3_text", {"sliding_window": None}, "'sliding_window' is null"),
        ("gemma3_text", {"sliding_window": 0}, "'sliding_window' is 0; expected 1 to"),
        ("gemma3_text", {"layer_types": ..., "sliding_window_pattern": 0}, "_pattern' is 0"),
        ("gemma3_text", {"head_dim": None}, "'head_dim' is null"),
        ("gemma3_text", {"query_pre_attn_scalar": 256.5}, "'query_pre_attn_scalar' is 256.5"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "'use_bidirectional_attention' is "),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "'final_logit_softcapping' is 30.0"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "'attn_logit_softcapping' is 50.0"),
        ("gemma3_text", {"hidden_activation": "gelu"}, "'hidden_activation' is 'gelu'"),
        ("gemma3_text", {"is_causal": None}, "'is_causal' is None"),
        ("gemma3_text", {"rope_local_base_freq": 1e3}, "rope_local_base_freq is 1000.0"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 1e4}}, "a dict for each kind of layers"),
        (
            "gemma3_text",
            {"rope_parameters": ..., "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            "'factor' is 8.0, and scaled positions are not supported",
        ),
    ],
)
def test_what_changes_the_numbers_is_refused_by_name(
    tiny_bases: dict[str, Path], tmp_path: Path, family: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(BaseModelError, match=said):
        read_decoder_config(folder_of(tiny_bases[family], tmp_path / "c", **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"unsloth_fixed": True, "torch_dtype": "bfloat16", "foo": {"a": [1]}, "_name_or_path": "x"},
        {"quantization_config": None, "sliding_window": None, "layer_types": ["full_attention"]},
        {"architectures": None, "auto_map": {"AutoTokenizer": ["t.T", None]}},
        {"architectures": ["LlamaForSequenceClassification"], "pad_token_id": -1},
        {"logit_scale": 1, "residual_multiplier": 1.0, "use_qk_norm": False, "head_dim": 8},
    ],
)
def test_what_changes_nothing_is_read_over(
    tiny_bases: dict[str, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    base = tiny_bases["llama"]

    assert read_decoder_config(folder_of(base, tmp_path / "c", **changes)) == read_decoder_config(
        base
    )


def test_a_key_that_is_given_twice_is_no_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "model_type": "gpt2"}')

    with pytest.raises(BaseModelError, match="the key 'model_type' is given twice"):
        read_decoder_config(tmp_path)


def test_true_is_not_one() -> None:
    keys = Keys(frozenset(), {"scale": (1,), "on": (True,)}, frozenset(), {}, ())

    assert keys.problems({"scale": 1.0, "on": True}) == []
    assert len(keys.problems({"scale": True, "on": 1})) == 2
