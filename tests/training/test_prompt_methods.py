"""The methods by themselves: sizes, what they start from, what they make of a task."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pl_compile.config.read import build, node_from_plain
from pl_compile.config.task import TaskConfig
from pl_compile.config.train import PTuningConfig, TrainConfig
from pl_compile.errors import ConfigError
from pl_compile.families.registry import FAMILIES
from pl_compile.testing import PREFIX_TASK, TASKS, assert_close, tiny_train_config
from pl_compile.text.render import Rendered, SequenceRules
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.data.dataset import TrainingSequence
from pl_compile.training.data.packing import pack
from pl_compile.training.methods import METHODS
from pl_compile.training.methods.encoders import ENCODERS, MlpEncoder, PromptEncoder
from pl_compile.training.methods.first_tokens import tokens_of_text, tokens_of_vocabulary
from pl_compile.training.methods.no_prompts import NoPrompts
from pl_compile.training.methods.p_tuning import PTuning
from pl_compile.training.methods.prompt_method import PromptMethod
from pl_compile.training.soft_prompt import SoftPrompt
from pl_compile.training.table import trained_entries

LONG_NAME = "a_taskname_of_many_tokens"
SHORT_AND_LONG = [TASKS[0], {**TASKS[0], "taskname": LONG_NAME}]


@pytest.fixture(scope="module")
def bases(tiny_bases: dict[str, Path]) -> dict[str, FrozenBase]:
    return {family: FrozenBase(folder) for family, folder in tiny_bases.items()}


@pytest.fixture(scope="module")
def base(bases: dict[str, FrozenBase]) -> FrozenBase:
    return bases["llama"]


@pytest.fixture(scope="module")
def tokenizer(tiny_bases: dict[str, Path]) -> Tokenizer:
    return Tokenizer.from_folder(tiny_bases["llama"])


@pytest.fixture
def config_of(tmp_path: Path) -> Any:
    def make(**changes: Any) -> TrainConfig:
        plain = tiny_train_config(tmp_path, Path("unused"), **changes)
        return build(TrainConfig, node_from_plain(plain, "test"), doing="test")

    return make


def method_of(config: TrainConfig, base: FrozenBase, tokenizer: Tokenizer) -> PromptMethod:
    return METHODS[config.virtual_prompt_style].build(config, config.tasks, base, tokenizer)


def rows_of(method: PromptMethod, task: int) -> Tensor:
    rows = method.prompt(task).rows
    assert rows is not None
    return rows.detach()


# Prompt tuning


@pytest.mark.parametrize(
    ("letters", "expected"), [("#&%@", [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]), ("#&%@" * 3, range(10))]
)
def test_an_initial_text_is_repeated_or_cut_to_the_virtual_tokens(
    tokenizer: Tokenizer, letters: str, expected: list[int]
) -> None:
    ids = tokenizer.encode(letters, opens=True, markup=False)
    assert len(ids) == len(letters)

    found = tokens_of_text(TaskConfig("t", "x", 10, init_text=letters), tokenizer)

    assert found.tolist() == [ids[place % len(ids)] for place in expected]


def test_prompt_tuning_starts_from_the_embeddings_of_its_text(
    base: FrozenBase, tokenizer: Tokenizer, config_of: Any
) -> None:
    task = {**TASKS[0], "total_virtual_tokens": 7, "init_text": "abc"}
    ids = tokenizer.encode("abc", opens=True, markup=False)

    method = method_of(config_of(tasks=[task], prompt_tuning={"init": "text"}), base, tokenizer)

    table = base.model.get_input_embeddings().weight
    assert torch.equal(rows_of(method, 0), table[(ids * 7)[:7]])


def test_prompt_tuning_left_to_itself_starts_from_the_text_where_there_is_one(
    base: FrozenBase, tokenizer: Tokenizer, config_of: Any
) -> None:
    def first_rows(*tasks: Any, init: str = "auto") -> list[Tensor]:
        config = config_of(tasks=list(tasks), prompt_tuning={"init": init})
        method = method_of(config, base, tokenizer)
        return [rows_of(method, index) for index in range(len(tasks))]

    text = {**TASKS[0], "init_text": "abc"}
    left = first_rows(text, TASKS[1])

    assert torch.equal(left[0], first_rows(text, init="text")[0])
    # A task without a text starts where it does in a run without texts.
    assert torch.equal(left[1], first_rows(TASKS[1], init="vocabulary")[0])
    assert config_of().prompt_tuning.init == "auto"


@pytest.mark.parametrize("style", ["prompt-tuning", "prefix-tuning"])
@pytest.mark.parametrize("text", [None, ""])
def test_a_start_from_text_needs_one(
    base: FrozenBase, tokenizer: Tokenizer, config_of: Any, style: str, text: str | None
) -> None:
    config = config_of(
        virtual_prompt_style=style,
        tasks=[{**TASKS[0], "init_text": text}],
        prompt_tuning={"init": "text"},
        prefix_tuning={"init": "text"},
    )

    with pytest.raises(ConfigError) as error:
        method_of(config, base, tokenizer)

    assert str(error.value) == (
        "starting the prompt of task 'tone' from text: no init_text. "
        "Give the task an init_text, or choose init: vocabulary."
    )


def test_a_start_from_the_vocabulary_takes_embeddings_of_common_tokens(
    base: FrozenBase, tokenizer: Tokenizer, config_of: Any
) -> None:
    method = method_of(config_of(), base, tokenizer)

    table = base.model.get_input_embeddings().weight
    for task in (0, 1):
        for row in rows_of(method, task):
            assert (table == row).all(-1).any()
    drawn = tokens_of_vocabulary(TaskConfig("t", "x", 4000), 10**6, torch.Generator())
    assert 4900 < drawn.max() < 5000


def test_a_random_start_is_xaviers(base: FrozenBase, tokenizer: Tokenizer, config_of: Any) -> None:
    task = {**TASKS[0], "total_virtual_tokens": 200}
    config = config_of(tasks=[task], prompt_tuning={"init": "random"})

    rows = rows_of(method_of(config, base, tokenizer), 0)

    assert rows.std().item() == pytest.approx((2 / (200 + base.hidden)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prompt_tuning": {"init": "random"}},
        {"virtual_prompt_style": "p-tuning", "tasks": SHORT_AND_LONG},
        {"virtual_prompt_style": "prefix-tuning", "tasks": SHORT_AND_LONG},
    ],
    ids=["vocabulary", "random", "p-tuning", "prefix-tuning"],
)
def test_equal_seeds_start_alike_and_others_do_not(
    base: FrozenBase, tokenizer: Tokenizer, config_of: Any, changes: dict[str, Any]
) -> None:
    one, same, other = (
        [*method_of(config_of(seed=seed, **changes), base, tokenizer).parameters()]
        for seed in (1, 1, 2)
    )

    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True) if a.any())


# P-tuning

SIZES = [
    # encoder, encoder_hidden, width of the base, numbers (NeMo's, counted in its releases)
    ("lstm", 384, 768, 8_279_040),
    ("lstm", None, 768, 8_279_040),
    ("lstm", 2048, 768, 166_801_664),
    ("mlp", 2048, 768, 3_156_224),
    ("mlp", 384, 768, 598_656),
    ("tpmlp", 2048, 768, 3_156_224),
    ("tpmlp", 2048, 1024, 4_207_616),
    ("biglstm", 2048, 768, 56_154_880),
]


@pytest.mark.parametrize(("encoder", "inner", "hidden", "numbers"), SIZES)
def test_an_encoder_has_the_size_that_nemos_has(
    encoder: str, inner: int | None, hidden: int, numbers: int
) -> None:
    config = PTuningConfig(encoder_type=encoder, encoder_hidden=inner)  # type: ignore[arg-type]

    with torch.device("meta"):
        made = ENCODERS[encoder](config, 10, hidden)

    assert sum(parameter.numel() for parameter in made.parameters()) == numbers


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("tokens", [0, 2, 5])
def test_an_encoder_makes_a_row_for_each_virtual_token(encoder: str, tokens: int) -> None:
    config = PTuningConfig(encoder_type=encoder, encoder_hidden=6)  # type: ignore[arg-type]

    made = ENCODERS[encoder](config, 5, 8)

    assert made(torch.randn(tokens, 8)).shape == (5, 8)


def test_an_mlp_has_as_many_layers_as_asked_for() -> None:
    made = ENCODERS["mlp"](PTuningConfig(num_layers=4, encoder_hidden=6), 5, 8)

    assert isinstance(made, MlpEncoder)
    kinds = [type(layer).__name__ for layer in made.layers]
    assert kinds == ["Linear", "ReLU", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    shapes = [tuple(layer.weight.shape) for layer in made.layers if isinstance(layer, nn.Linear)]
    assert shapes == [(6, 8), (6, 6), (6, 6), (8, 6)]


def test_tpmlp_has_tanh_gelu_and_weights_as_small_as_asked_for() -> None:
    torch.manual_seed(0)

    made = ENCODERS["tpmlp"](PTuningConfig(encoder_hidden=300, init_std=0.05), 100, 200)

    assert isinstance(made, MlpEncoder)
    first, between, second = made.layers
    assert isinstance(between, nn.GELU)
    assert between.approximate == "tanh"
    for linear in (first, second):
        assert isinstance(linear, nn.Linear)
        assert linear.weight.std().item() == pytest.approx(0.05, rel=0.02)
        assert not linear.bias.any()
    assert made.embedding.std().item() == pytest.approx(1.0, rel=0.05)
    inputs = torch.randn(100, 200)
    expected = torch.nn.functional.gelu(inputs @ first.weight.T, approximate="tanh")  # type: ignore[operator]
    torch.testing.assert_close(made.body(inputs), expected @ second.weight.T)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"encoder_type": "mlp", "num_layers": 1},
            "building the p-tuning encoder: num_layers 1; "
            "expected at least 2 for 'mlp' (2 is recommended).",
        ),
        (
            {"encoder_type": "biglstm", "encoder_hidden": 7},
            "building the p-tuning encoder: encoder_hidden 7; "
            "expected an even number for 'biglstm': half of it for each direction.",
        ),
    ],
)
def test_an_encoder_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        ENCODERS[settings["encoder_type"]](PTuningConfig(**settings), 5, 8)

    assert str(error.value) == message


def test_a_name_replaces_as_many_rows_as_it_has_tokens_and_not_one_more(
    base: FrozenBase, tokenizer: Tokenizer, config_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [{**task, "total_virtual_tokens": 6} for task in SHORT_AND_LONG]
    config = config_of(virtual_prompt_style="p-tuning", tasks=tasks)
    method = method_of(config, base, tokenizer)
    assert isinstance(method, PTuning)
    monkeypatch.setattr(MlpEncoder, "body", lambda self, inputs: inputs)

    table = base.model.get_input_embeddings().weight
    for index, task in enumerate(tasks):
        ids = tokenizer.encode(str(task["taskname"]), opens=True, markup=False)[:6]
        rows = rows_of(method, index)
        assert torch.equal(rows[: len(ids)], table[ids])
        assert torch.equal(rows[len(ids) :], method.encoder.embedding[len(ids) :])
    assert len(tokenizer.encode("tone", opens=True, markup=False)) < 6
    assert len(tokenizer.encode(LONG_NAME, opens=True, markup=False)) > 6


@pytest.mark.parametrize("encoder", ENCODERS)
def test_rows_in_training_are_the_rows_that_are_exported(
    base: FrozenBase, tokenizer: Tokenizer, config_of: Any, encoder: str
) -> None:
    config = config_of(
        tasks=SHORT_AND_LONG,
        virtual_prompt_style="p-tuning",
        p_tuning={"encoder_type": encoder, "encoder_hidden": 10},
    )
    method = method_of(config, base, tokenizer)
    method.train()
    # As the loop takes them for a micro-batch that mixes the tasks.
    trained = {task: rows_of(method, task) for task in (1, 0)}

    entries = trained_entries(config, method, SequenceRules(), base.hidden)

    for index, task in enumerate(config.tasks):
        # torch's LSTM has another kernel where no gradient is wanted: the last bit may differ.
        relative = 1e-6 if "lstm" in encoder else 0.0
        assert_close(entries[task.taskname].rows, trained[index].numpy(), relative=relative)
    assert not torch.equal(trained[0], trained[1])


def test_exported_rows_are_made_without_dropout(
    base: FrozenBase, tokenizer: Tokenizer, config_of: Any
) -> None:
    config = config_of(
        tasks=TASKS[:1],
        virtual_prompt_style="p-tuning",
        p_tuning={"encoder_type": "lstm", "dropout": 0.5},
    )
    method = method_of(config, base, tokenizer)
    method.train()
    in_training = [rows_of(method, 0) for _ in range(2)]

    exported = [
        trained_entries(config, method, SequenceRules(), base.hidden)["tone"].rows for _ in range(2)
    ]

    assert not torch.equal(in_training[0], in_training[1])
    assert np.array_equal(exported[0], exported[1])


def test_tasks_that_share_an_encoder_need_equal_counts(
    base: FrozenBase, tokenizer: Tokenizer, config_of: Any
) -> None:
    with pytest.raises(ConfigError) as error:
        method_of(config_of(virtual_prompt_style="p-tuning"), base, tokenizer)

    assert str(error.value) == (
        "building the p-tuning encoder: total_virtual_tokens {'tone': 3, 'ask': 5}; "
        "expected one number for all tasks tuned together. "
        "Make them equal, or train the tasks one after another with existing_table."
    )


def test_names_that_an_encoder_cannot_tell_apart_are_refused(
    base: FrozenBase, tokenizer: Tokenizer, config_of: Any
) -> None:
    tasks = [{**TASKS[0], "taskname": f"the_very_same_start_{end}"} for end in "ab"]

    with pytest.raises(ConfigError) as error:
        method_of(config_of(virtual_prompt_style="p-tuning", tasks=tasks), base, tokenizer)

    assert str(error.value) == (
        "building the p-tuning encoder: tasks 'the_very_same_start_a' and 'the_very_same_start_b' "
        "have names with the same first 3 tokens; expected names that differ there, since "
        "the encoder tells tasks apart by them. Rename one, or give more virtual tokens."
    )


@pytest.mark.parametrize("encoder", ENCODERS)
def test_names_follow_the_encoder_to_its_device(encoder: str) -> None:
    config = PTuningConfig(encoder_type=encoder, encoder_hidden=6)  # type: ignore[arg-type]
    made: PromptEncoder = ENCODERS[encoder](config, 5, 8)

    method = PTuning(made, [torch.zeros(2, 8)]).to("meta")

    assert rows_of(method, 0).device.type == "meta"
    assert set(method.state_dict()) == {f"encoder.{name}" for name, _ in made.named_parameters()}


# Prefix tuning

START = "what is it?"


def sequence(ids: list[int], virtual: int, *, answer: int) -> TrainingSequence:
    """Virtual tokens at the start, then `ids`; the last `answer` of them are learned."""
    rows = np.asarray([*range(virtual), *([-1] * len(ids))], np.int64)
    all_ids = np.asarray([0] * virtual + ids, np.int64)
    start = len(all_ids) - answer
    return TrainingSequence(0, Rendered(all_ids, rows, start), np.arange(len(rows)) >= start)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("add_bos", [False, True])
def test_a_prefix_starts_as_what_the_base_computes_for_the_text_itself(
    bases: dict[str, FrozenBase], tokenizer: Tokenizer, config_of: Any, family: str, add_bos: bool
) -> None:
    base = bases[family]
    config = config_of(
        virtual_prompt_style="prefix-tuning",
        tasks=[{**PREFIX_TASK, "init_text": START}],
        data={"train": ["x"], "add_bos": add_bos},
    )
    text = tokenizer.encode(START, opens=True, markup=False)
    assert len(text) > 4
    # With a BOS, the first of the four virtual tokens is what the base computes for it.
    front = [base.config.bos_id, *text[:3]] if add_bos else text[:4]
    ids = [17, 44, 8, 150, 2, 99, 1]

    method = method_of(config, base, tokenizer)
    with torch.no_grad():
        found = base.token_losses(
            pack([sequence(ids, 4, answer=3)], learned_prefix=True), {0: method.prompt(0)}
        )
        expected = base.token_losses(
            pack([sequence([*front, *ids], 0, answer=3)]),
            {0: SoftPrompt()},
        )

    assert method.learned_prefix
    assert_close(found.numpy(), expected.numpy(), relative=1e-5)


@pytest.mark.parametrize(
    ("init", "text", "from_text"),
    [("auto", START, True), ("auto", None, False), ("vocabulary", START, False)],
)
def test_a_prefix_starts_from_a_text_where_it_is_to(
    base: FrozenBase,
    tokenizer: Tokenizer,
    config_of: Any,
    init: str,
    text: str | None,
    from_text: bool,
) -> None:
    config = config_of(
        virtual_prompt_style="prefix-tuning",
        tasks=[{**PREFIX_TASK, "init_text": text}],
        prefix_tuning={"init": init},
    )

    prefix = method_of(config, base, tokenizer).prompt(0).prefix_kv

    ids = torch.tensor(tokenizer.encode(START, opens=True, markup=False)[:4])
    assert prefix is not None
    assert prefix.shape == (2, 2, 2, 4, 8)
    assert torch.equal(prefix, base.keys_and_values(ids)) == from_text


@pytest.mark.parametrize(
    "template",
    [
        "a <|VIRTUAL_PROMPT_0|> {request} becomes {order}",
        "<|VIRTUAL_PROMPT_0|> {request}<|VIRTUAL_PROMPT_1|>becomes {order}",
    ],
)
def test_a_prefix_that_is_not_at_the_head_is_refused(
    base: FrozenBase, tokenizer: Tokenizer, config_of: Any, template: str
) -> None:
    splits = [2, 2] if "PROMPT_1" in template else []
    task = {**PREFIX_TASK, "prompt_template": template, "virtual_token_splits": splits}

    with pytest.raises(ConfigError) as error:
        method_of(config_of(virtual_prompt_style="prefix-tuning", tasks=[task]), base, tokenizer)

    assert str(error.value) == (
        "starting the prefix of task 'order': a template with virtual tokens after its start; "
        "expected one marker, at the very start: a prefix stands before everything. "
        "Move the marker to the start, or choose prompt-tuning or p-tuning."
    )


def test_prefixes_of_different_lengths_are_trained_together(
    base: FrozenBase, tokenizer: Tokenizer, config_of: Any
) -> None:
    tasks = [{**PREFIX_TASK, "taskname": f"t{n}", "total_virtual_tokens": n} for n in (2, 5)]
    config = config_of(virtual_prompt_style="prefix-tuning", tasks=tasks)

    method = method_of(config, base, tokenizer)

    entries = trained_entries(config, method, SequenceRules(), base.hidden)
    shapes = {name: entry.learned.shape for name, entry in entries.items()}
    assert shapes == {"t2": (2, 2, 2, 2, 8), "t5": (2, 2, 2, 5, 8)}
    assert all(len(entry.rows) == 0 for entry in entries.values())


# No prompts


def test_no_prompts_are_nothing_and_train_nothing(
    base: FrozenBase, tokenizer: Tokenizer, config_of: Any
) -> None:
    method = method_of(config_of(virtual_prompt_style="no-prompts"), base, tokenizer)

    assert isinstance(method, NoPrompts)
    assert method.prompt(0) == method.prompt(1) == SoftPrompt(rows=None, prefix_kv=None)
    assert list(method.parameters()) == []
