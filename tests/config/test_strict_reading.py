import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from pl_compile.config.read import (
    build,
    node_from_plain,
    override,
    plain_from_config,
    read_yaml,
)
from pl_compile.config.task import TaskConfig
from pl_compile.config.train import (
    DataConfig,
    OptimConfig,
    PTuningConfig,
    ScheduleConfig,
    TrainConfig,
    TrainerConfig,
)
from pl_compile.errors import ConfigError

MINIMAL = """\
base: smollm2-135m
tasks:
  - taskname: mood
    prompt_template: "<|VIRTUAL_PROMPT_0|> {text} mood:{label}"
    total_virtual_tokens: 5
data:
  train: [train.jsonl]
trainer:
  max_steps: 7
"""
TASK = {
    "taskname": "mood",
    "prompt_template": "<|VIRTUAL_PROMPT_0|> {text} mood:{label}",
    "total_virtual_tokens": 5,
}
N_LINES = MINIMAL.count("\n")

Writer = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Writes text to `train.yaml`."""

    def writer(text: str) -> Path:
        path = tmp_path / "train.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return writer


def read_train(path: Path, *settings: str) -> TrainConfig:
    node = override(read_yaml(path), settings)
    return build(TrainConfig, node, doing=f"reading {path.name}")


def refusal(path: Path, *settings: str) -> str:
    with pytest.raises(ConfigError) as error:
        read_train(path, *settings)
    return str(error.value)


def test_a_minimal_file_takes_every_default(write: Writer) -> None:
    config = read_train(write(MINIMAL))

    assert config == TrainConfig(
        base="smollm2-135m",
        tasks=(TaskConfig("mood", "<|VIRTUAL_PROMPT_0|> {text} mood:{label}", 5),),
        data=DataConfig(train=(write(MINIMAL).parent / "train.jsonl",)),
        trainer=TrainerConfig(max_steps=7),
    )


# Keys


def test_an_unknown_key_is_refused_with_its_line_and_the_near_name(write: Writer) -> None:
    path = write(MINIMAL + "  max_epoch: 3\n")

    assert refusal(path) == (
        f"reading train.yaml: train.yaml:{N_LINES + 1}: unknown key 'trainer.max_epoch'. "
        "Did you mean 'max_epochs'?"
    )


def test_an_unknown_key_without_a_near_name_lists_the_known_ones(write: Writer) -> None:
    path = write(MINIMAL + "prompt_tuning:\n  zebra: 1\n")

    assert refusal(path) == (
        f"reading train.yaml: train.yaml:{N_LINES + 2}: unknown key 'prompt_tuning.zebra'. "
        "Known keys: init."
    )


def test_an_unknown_key_over_a_block_is_placed_where_the_key_stands(write: Writer) -> None:
    path = write(MINIMAL + "optimiser:\n  lr: 0.1\n")

    assert f"train.yaml:{N_LINES + 1}: unknown key 'optimiser'" in refusal(path)


def test_a_missing_key_is_named_with_its_path_and_the_line_of_its_mapping(write: Writer) -> None:
    path = write(MINIMAL.replace("    total_virtual_tokens: 5\n", ""))

    assert refusal(path) == (
        "reading train.yaml: train.yaml:3: 'tasks.0.total_virtual_tokens' is missing."
    )


def test_a_missing_top_level_key_is_named(write: Writer) -> None:
    path = write(MINIMAL.replace("base: smollm2-135m\n", ""))

    assert refusal(path) == "reading train.yaml: train.yaml:1: 'base' is missing."


def test_a_key_given_twice_is_refused_with_the_second_line(write: Writer) -> None:
    path = write(MINIMAL + "seed: 1\nbase: other\n")

    assert refusal(path) == f"reading {path}: train.yaml:{N_LINES + 2}: 'base' is given twice."


def test_a_key_given_twice_in_a_nested_mapping_is_refused(write: Writer) -> None:
    path = write(MINIMAL + "  max_steps: 8\n")

    assert refusal(path) == f"reading {path}: train.yaml:{N_LINES + 1}: 'max_steps' is given twice."


def test_a_key_that_is_no_text_is_refused(write: Writer) -> None:
    path = write(MINIMAL + "17: x\n")

    assert refusal(path) == (
        f"reading {path}: train.yaml:{N_LINES + 1}: the key 17; expected text."
    )


# Values


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("base: 3", "'base' is 3, expected text: write \"3\", with the quotes"),
        ("base:", "'base' is empty, expected text"),
        (
            "base: [x]",
            "'base' is a list of 1, expected text: write \"[x]\", with the quotes",
        ),
        ("seed: '7'", "'seed' is '7', expected a whole number"),
        ("seed: 7.5", "'seed' is 7.5, expected a whole number"),
        (f"seed: {10**30}", f"'seed' is {10**30}, expected a number of 64 bits at most"),
        ("seed: 1e3", "'seed' is '1e3', expected a whole number"),
        ("seed: true", "'seed' is true, expected a whole number"),
        (
            "existing_table: 3",
            "'existing_table' is 3, expected a path: write \"3\", with the quotes",
        ),
        ("existing_table: ''", "'existing_table' is '', expected a path"),
        ("optim: {lr: yes}", "'optim.lr' is yes, which YAML reads as True, expected a number"),
        (
            "optim: {lr: .inf}",
            "'optim.lr' is .inf, which YAML reads as inf, expected a finite number",
        ),
        ("optim: {lr: nan}", "'optim.lr' is 'nan', expected a finite number"),
        (
            "optim: {weight_decay: 1e999}",
            "'optim.weight_decay' is '1e999', expected a finite number",
        ),
        (f"optim: {{lr: 1{'0' * 400}}}", f"'optim.lr' is 1{'0' * 400}, expected a number"),
        ("optim: {lr: fast}", "'optim.lr' is 'fast', expected a number"),
        ("optim: {betas: 0.9}", "'optim.betas' is 0.9, expected a list"),
        ("optim: {betas: [0.9]}", "'optim.betas' is a list of 1, expected a list of 2"),
        ("optim: {betas: [0.9, x]}", "'optim.betas.1' is 'x', expected a number"),
        ("optim: 3", "'optim' is 3, expected a mapping"),
        ("optim: {sched: [1, 2]}", "'optim.sched' is a list of 2, expected a mapping"),
        ("p_tuning: {dropout: {}}", "'p_tuning.dropout' is a mapping, expected a number"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_with_what_it_is(
    write: Writer, setting: str, complaint: str
) -> None:
    text = MINIMAL.replace("base: smollm2-135m\n", "") if setting.startswith("base") else MINIMAL
    path = write(f"{text}{setting}\n")
    line = text.count("\n") + 1

    assert refusal(path) == f"reading train.yaml: train.yaml:{line}: {complaint}."


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("yes", "True"),
        ("off", "False"),
        ("2023", ""),
        ("1_000", "1000"),
        ("010", "8"),
        ("1:30", "90"),
        ("1.50", "1.5"),
        ("2023-01-01", ""),
        ("true", ""),
    ],
)
def test_a_text_that_yaml_takes_for_something_else_is_asked_for_in_quotes(
    write: Writer, written: str, read: str
) -> None:
    found = f"{written}, which YAML reads as {read}" if read else written
    expected = f'expected text: write "{written}", with the quotes.'
    path = write(MINIMAL.replace("data:\n", f"    choices: [up, {written}]\ndata:\n"))

    assert refusal(path) == (
        f"reading train.yaml: train.yaml:6: 'tasks.0.choices.1' is {found}, {expected}"
    )
    named = write(MINIMAL.replace("mood", written, 1))
    assert f"'tasks.0.taskname' is {found}, {expected}" in refusal(named)
    assert f"""expected text: write '"{written}"', with both pairs of quotes.""" in refusal(
        write(MINIMAL), f"tasks.0.taskname={written}"
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<|VIRTUAL_PROMPT_0|> {message} Desk: {label}", "a mapping"),
        ("{text}", "a mapping"),
        ("[INST]", "a list of 1"),
        ("say: it's", "a mapping"),
    ],
)
def test_a_text_that_yaml_takes_for_a_mapping_or_a_list_is_asked_for_in_quotes(
    write: Writer, text: str, found: str
) -> None:
    quoted = f'"{text}"'
    for_shell = shlex.quote(quoted)

    assert (
        f"'tasks.0.prompt_template' is {found}, expected text: write {for_shell}, "
        "with both pairs of quotes."
    ) in refusal(write(MINIMAL), f"tasks.0.prompt_template={text}")
    assert f"'base' is {found}, expected text: write {quoted}, with the quotes" in refusal(
        write(MINIMAL.replace(MINIMAL.partition("\n")[0], "base:\n  " + text))
    )
    given = f"tasks.0.init_text={shlex.split(for_shell)[0]}"
    assert read_train(write(MINIMAL), given).tasks[0].init_text == text


def test_a_setting_that_is_no_yaml_may_be_a_text(write: Writer) -> None:
    assert refusal(write(MINIMAL), "tasks.0.prompt_template={a} {b}").endswith(
        "expected valid YAML. If it is a text, write '\"{a} {b}\"', with both pairs of quotes."
    )


def test_a_colon_in_a_text_of_a_file_is_named(write: Writer) -> None:
    text = MINIMAL.replace("base: ", "base: Desk: ", 1)

    assert "train.yaml:1: an unexpected colon: put a text with a colon in quotes" in refusal(
        write(text)
    )


def test_a_text_that_yaml_takes_for_nothing_is_asked_for_in_quotes(write: Writer) -> None:
    path = write(MINIMAL.replace("data:\n", "    choices: [up, null]\ndata:\n"))

    assert 'is empty, expected text: write "null", with the quotes.' in refusal(path)


@pytest.mark.parametrize("written", ["010", "-007", "1:30", "1:30.5"])
@pytest.mark.parametrize("key", ["trainer.global_batch_size", "optim.lr"])
def test_a_number_that_yaml_reads_as_another_is_refused(
    write: Writer, key: str, written: str
) -> None:
    text = refusal(write(MINIMAL), f"{key}={written}")

    assert f"'{key}' is {written}, which YAML reads as " in text
    assert "expected a number without leading zeros or colons" in text


def test_numbers_that_mean_what_they_say_are_read(write: Writer) -> None:
    config = read_train(write(MINIMAL), "trainer.max_steps=1_000", "seed=0x10", "optim.lr=0.010")

    assert (config.trainer.max_steps, config.seed, config.optim.lr) == (1000, 16, 0.01)


def test_aliases_that_unfold_without_end_are_refused(write: Writer) -> None:
    bomb = "".join(f"k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
    path = write(f"k0: &a0 [x]\n{bomb}")

    assert "more than 100,000 values" in refusal(path)


def test_known_keys_are_listed_once_for_each_mapping(write: Writer) -> None:
    path = write(MINIMAL + "prompt_tuning: {zebra: 1, yak: 2}\nxyzzy: 1\n")

    assert refusal(path).count("Known keys: init") == 1
    assert refusal(path).count("Known keys: base, tasks") == 1


def test_a_flag_is_true_or_false_and_no_number(write: Writer) -> None:
    path = write(MINIMAL.replace("data:\n", "data:\n  add_bos: 1\n"))

    assert refusal(path) == (
        "reading train.yaml: train.yaml:7: 'data.add_bos' is 1, expected true or false."
    )


def test_a_word_that_is_no_option_is_refused_with_the_near_one(write: Writer) -> None:
    path = write(MINIMAL + "virtual_prompt_style: p-tunning\n")

    assert refusal(path) == (
        f"reading train.yaml: train.yaml:{N_LINES + 1}: 'virtual_prompt_style' is 'p-tunning', "
        "expected one of prompt-tuning, p-tuning, prefix-tuning, no-prompts. "
        "Did you mean 'p-tuning'?"
    )


def test_a_word_far_from_every_option_lists_them_and_ends_in_one_full_stop(write: Writer) -> None:
    path = write(MINIMAL + "virtual_prompt_style: xyz\n")

    assert refusal(path) == (
        f"reading train.yaml: train.yaml:{N_LINES + 1}: 'virtual_prompt_style' is 'xyz', "
        "expected one of prompt-tuning, p-tuning, prefix-tuning, no-prompts."
    )


def test_a_list_in_place_of_an_option_is_described_in_words(write: Writer) -> None:
    path = write(MINIMAL + "virtual_prompt_style: [p-tuning]\n")

    text = refusal(path)

    assert "'virtual_prompt_style'" in text
    assert "expected one of prompt-tuning, p-tuning, prefix-tuning, no-prompts" in text
    assert "Node(" not in text


@pytest.mark.parametrize("written", ["1e-3", "0.001", "1.0e-3", "1E-3"])
def test_a_rate_may_be_written_with_an_exponent_and_no_dot(write: Writer, written: str) -> None:
    path = write(MINIMAL + f"optim: {{lr: {written}}}\n")

    assert read_train(path).optim.lr == 0.001
    assert read_train(write(MINIMAL), f"optim.lr={written}").optim.lr == 0.001


def test_a_whole_number_does_where_a_number_is_expected(write: Writer) -> None:
    config = read_train(write(MINIMAL + "optim: {lr: 1, betas: [0, 0.5]}\n"))

    assert config.optim == OptimConfig(lr=1.0, betas=(0.0, 0.5))
    assert isinstance(config.optim.lr, float)


def test_a_choice_of_two_number_forms_keeps_the_one_that_was_written(write: Writer) -> None:
    whole = read_train(write(MINIMAL + "  val_check_interval: 1\n"))
    fraction = read_train(write(MINIMAL + "  val_check_interval: 1.0\n"))

    assert isinstance(whole.trainer.val_check_interval, int)
    assert isinstance(fraction.trainer.val_check_interval, float)


def test_null_stands_for_none_only_where_none_is_allowed(write: Writer) -> None:
    config = read_train(write(MINIMAL + "existing_table: null\n"))

    assert config.existing_table is None
    assert refusal(write(MINIMAL + "seed: null\n")).endswith(
        "'seed' is empty, expected a whole number."
    )


# All problems together


def test_all_problems_of_a_file_stand_in_one_message_each_with_its_line(write: Writer) -> None:
    path = write(
        """\
base: 5
tasks:
  - taskname: mood
    prompt_template: x
    total_virtual_token: 5
  - taskname: a task
    prompt_template: x
    total_virtual_tokens: 5
data:
  train: train.jsonl
trainer:
  max_steps: 7
  precision: fp23
"""
    )

    assert refusal(path).splitlines() == [
        "reading train.yaml: 6 problems:",
        "  - train.yaml:1: 'base' is 5, expected text: write \"5\", with the quotes",
        "  - train.yaml:5: unknown key 'tasks.0.total_virtual_token'. "
        "Did you mean 'total_virtual_tokens'?",
        "  - train.yaml:3: 'tasks.0.total_virtual_tokens' is missing",
        "  - train.yaml:6: checking a task: taskname 'a task'; expected 1 to 64 letters, digits, "
        "'_' or '-', not beginning with '-' or '__'.",
        "  - train.yaml:10: 'data.train' is 'train.jsonl', expected a list",
        "  - train.yaml:13: 'trainer.precision' is 'fp23', expected one of auto, fp32, bf16, fp16. "
        "Did you mean 'fp32'?",
    ]


@pytest.mark.parametrize("choices", [["up", "up"], ["up", " up"], [""], ["up", "  "]])
def test_choices_that_are_empty_or_differ_in_blanks_only_are_refused(
    write: Writer, choices: list[str]
) -> None:
    path = write(MINIMAL.replace("data:\n", f"    choices: {choices}\ndata:\n"))

    assert refusal(path) == (
        "reading train.yaml: train.yaml:3: checking the choices of task 'mood': "
        f"{choices}; expected texts that are not empty and that differ in more than white space."
    )


def test_choices_keep_the_blanks_that_they_have_in_the_data(write: Writer) -> None:
    path = write(MINIMAL.replace("data:\n", "    choices: [' up', ' down']\ndata:\n"))

    assert read_train(path).tasks[0].choices == (" up", " down")


def test_two_tasks_of_one_name_are_refused(write: Writer) -> None:
    task = "".join(MINIMAL.splitlines(keepends=True)[2:5])
    path = write(MINIMAL.replace("data:\n", task + "data:\n"))

    assert refusal(path) == (
        "reading train.yaml: train.yaml:1: checking 'tasks': the taskname mood twice; "
        "expected at least one task, each name once."
    )


def test_no_task_at_all_is_refused(write: Writer) -> None:
    assert refusal(write(MINIMAL), "tasks=[]") == (
        "reading train.yaml: train.yaml:1: checking 'tasks': none; "
        "expected at least one task, each name once."
    )


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            ["trainer.max_steps=", "trainer.max_time=01:00"],
            "no limit; expected max_epochs or max_steps (the rate follows from them; max_time is a "
            "further limit). Give one.",
        ),
        (
            ["trainer.global_batch_size=12", "trainer.micro_batch_size=5"],
            "global_batch_size 12; expected a multiple of micro_batch_size 5.",
        ),
        (
            ["trainer.micro_batch_size=0"],
            "micro_batch_size 0, expected at least 1.",
        ),
        (
            ["trainer.val_check_interval=0.0"],
            "val_check_interval 0.0, expected steps (a whole number from 1) or a fraction of an "
            "epoch (above 0).",
        ),
    ],
)
def test_a_trainer_that_no_run_could_honour_is_refused(
    write: Writer, settings: list[str], complaint: str
) -> None:
    assert f"checking 'trainer': {complaint}" in refusal(write(MINIMAL), *settings)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("global_batch_size", 0),
        ("global_batch_size", -8),
        ("max_steps", 0),
        ("max_epochs", -1),
        ("log_every_n_steps", 0),
        ("gradient_clip_val", -1.0),
    ],
)
def test_a_trainer_number_out_of_its_range_is_refused_by_name(
    write: Writer, key: str, value: float
) -> None:
    text = refusal(write(MINIMAL), f"trainer.{key}={value}")

    assert f"{key} {value}" in text


# Files that are no config


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError) as error:
        read_yaml(Path("nowhere.yaml"))

    assert str(error.value) == "reading nowhere.yaml: no such file. Check the path."


@pytest.mark.parametrize(
    ("text", "what"),
    [("", "empty"), ("# only talk\n", "empty"), ("- a\n- b\n", "a list of 2"), ("word", "'word'")],
)
def test_a_file_that_holds_no_mapping_is_refused(write: Writer, text: str, what: str) -> None:
    path = write(text)

    assert refusal(path) == f"reading {path}: {what}; expected a mapping at the top level."


def test_broken_yaml_is_refused_with_its_line(write: Writer) -> None:
    path = write("base: x\ntasks: [1, 2\ndata: {}\n")

    assert refusal(path) == (
        f"reading {path}: train.yaml:3: expected ',' or ']', but got ':'; expected valid YAML."
    )


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("a: &x {b: 1}\nc:\n  <<: *x\n", ":3: a merge key (<<), which is not read. Write its keys"),
        ("a: 1\n---\na: 2\n", ":2: a second document begins here (---), but only one is read"),
        ("a:\n\tb: 1\n", ":2: a tab, where YAML needs blanks"),
        ("a: 1\nb: “c: d”\n", ":2: typographic quotes; write straight ones"),
    ],
)
def test_what_yaml_stumbles_over_is_named(write: Writer, text: str, cause: str) -> None:
    assert cause in refusal(write(text))


def test_no_list_is_told_how_an_empty_one_is_written(write: Writer) -> None:
    assert "'data.validation' is empty, expected a list ([] for none)" in refusal(
        write(MINIMAL), "data.validation=null"
    )


def test_a_tag_that_would_run_code_is_refused_with_its_line(write: Writer) -> None:
    path = write("seed: 3\nbase: !!python/name:os.getcwd x\n")

    text = refusal(path)

    assert text.startswith(f"reading {path}: train.yaml:2: the tag ")
    assert "python/name:os.getcwd" in text


@pytest.mark.parametrize("value", ["!!python/object/apply:os.getcwd []", "!include {a: b}"])
def test_an_unknown_tag_on_a_list_or_mapping_is_refused_and_not_ignored(
    write: Writer, value: str
) -> None:
    path = write(MINIMAL + f"optim: {value}\n")

    assert value.split()[0].lstrip("!") in refusal(path)


def test_bytes_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("base: caf\xe9\n".encode("latin-1"))

    text = refusal(path)

    assert text == f"reading {path}: line 1: the byte 0xe9; expected a UTF-8 text file."


@pytest.mark.parametrize(
    "text",
    ["base: a\x01b\n", "base: 2024-99-99\n", "base: 0b_\n", "base: &again [*again]\n"],
    ids=["control character", "no date", "no number", "contains itself"],
)
def test_yaml_that_its_library_stumbles_over_is_still_a_config_error(
    write: Writer, text: str
) -> None:
    path = write(text)

    assert refusal(path).startswith("reading ")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("2024-99-99", "timestamp"),
        ("0b_", "int"),
        ("!!bool maybe", "bool"),
        ("!!timestamp maybe", "timestamp"),
        ("!!float maybe", "float"),
        ("!!int maybe", "int"),
    ],
)
def test_a_value_that_is_not_what_it_is_said_to_be_has_its_line(
    write: Writer, value: str, kind: str
) -> None:
    path = write(f"seed: 1\nbase: {value}\n")

    assert refusal(path) == (
        f"reading {path}: train.yaml:2: '{value.split()[-1]}', which is not of type {kind}; "
        "expected valid YAML."
    )
    assert "which is not of type" in refusal(write(f"{value}: 1\n"))


def test_a_character_in_two_halves_as_json_writes_it_is_one(write: Writer) -> None:
    text = json.dumps(
        TASK | {"prompt_template": "<|VIRTUAL_PROMPT_0|>😀{label}", "choices": ["é😀"]}
    )
    (task,) = read_train(write(MINIMAL), f"tasks=[{text}]").tasks

    assert "\\ud83d" in text
    assert (task.prompt_template, task.choices) == ("<|VIRTUAL_PROMPT_0|>😀{label}", ("é😀",))


def test_half_of_a_character_is_refused_with_its_line(write: Writer) -> None:
    path = write('seed: 1\nbase: "a\\ud83d"\n')

    found = "train.yaml:2: 'a\\ud83d', half of a surrogate pair; expected text."
    assert refusal(path) == f"reading {path}: {found}"


@pytest.mark.parametrize(
    "change",
    [{"prompt_template": "a\udcff{label}"}, {"choices": ("\ud83d",)}, {"init_text": "\ude00"}],
)
def test_texts_of_a_task_are_texts(change: dict[str, Any]) -> None:
    task: dict[str, Any] = TASK | change

    with pytest.raises(ConfigError, match="half of a surrogate pair") as error:
        TaskConfig(**task)
    assert str(error.value).isascii()


# --set


def test_set_replaces_a_value_and_reads_it_as_yaml(write: Writer) -> None:
    config = read_train(
        write(MINIMAL), "seed=7", "data.add_bos=true", "optim.betas=[0.8, 0.9]", "base=a=b"
    )

    assert config.seed == 7
    assert config.data.add_bos is True
    assert config.optim.betas == (0.8, 0.9)
    assert config.base == "a=b"


def test_set_reaches_into_a_list_by_number(write: Writer) -> None:
    config = read_train(write(MINIMAL), "tasks.0.total_virtual_tokens=11")

    assert config.tasks[0].total_virtual_tokens == 11
    assert config.tasks[0].taskname == "mood"


def test_set_creates_the_mappings_on_its_way(write: Writer) -> None:
    config = read_train(write(MINIMAL), "optim.sched.warmup_steps=3", "optim.lr=0.5")

    assert config.optim == OptimConfig(lr=0.5, sched=ScheduleConfig(warmup_steps=3))


def test_the_last_set_of_a_key_counts(write: Writer) -> None:
    assert read_train(write(MINIMAL), "seed=1", "seed=2").seed == 2


def test_an_empty_set_clears_a_value(write: Writer) -> None:
    config = read_train(write(MINIMAL + "  max_epochs: 2\n"), "trainer.max_steps=")

    assert config.trainer.max_steps is None
    assert config.trainer.max_epochs == 2


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("seed", "no '='; expected key=value."),
        ("seed.deep=1", "'deep' lies inside 5; expected a mapping."),
        ("tasks.1.taskname=x", "index '1'; expected a number below 1."),
        ("tasks.first.taskname=x", "index 'first'; expected a number below 1."),
        ("tasks.-1.taskname=x", "index '-1'; expected a number below 1."),
        ("seed=[1", "--set seed:1: expected ',' or ']', but got '<stream end>'; expected valid"),
    ],
)
def test_a_set_that_cannot_be_done_is_refused_as_it_was_written(
    write: Writer, setting: str, complaint: str
) -> None:
    text = refusal(write(MINIMAL + "seed: 5\n"), setting)

    assert text.startswith(f"reading --set {setting}: {complaint}")


def test_a_set_without_a_key_is_not_told_that_it_lacks_the_equals_sign(write: Writer) -> None:
    text = refusal(write(MINIMAL), "=5")

    assert text.startswith("reading --set =5: ")
    assert "no '='" not in text


def test_a_wrong_value_of_a_set_is_placed_at_the_set(write: Writer) -> None:
    text = refusal(write(MINIMAL), "seed=many")

    assert text == ("reading train.yaml: --set seed:1: 'seed' is 'many', expected a whole number.")


def test_an_unknown_key_of_a_set_is_placed_at_the_set(write: Writer) -> None:
    text = refusal(write(MINIMAL), "trainer.max_step=3")

    assert text == (
        "reading train.yaml: --set trainer.max_step:1: unknown key 'trainer.max_step'. "
        "Did you mean 'max_steps'?"
    )


# Paths


def test_a_path_in_a_file_starts_at_the_folder_of_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    path = folder / "train.yaml"
    path.write_text(MINIMAL + "existing_table: ../old.safetensors\n", encoding="utf-8")

    config = read_train(path)

    assert config.data.train == (folder / "train.jsonl",)
    assert config.existing_table == folder / "../old.safetensors"


def test_a_path_in_a_set_starts_at_the_current_folder(write: Writer) -> None:
    config = read_train(write(MINIMAL), "data.train=[here.jsonl]", "data.validation=[v.jsonl]")

    assert config.data.train == (Path("here.jsonl"),)
    assert config.data.validation == (Path("v.jsonl"),)


def test_one_path_of_a_list_can_be_set_alone(write: Writer) -> None:
    path = write(MINIMAL.replace("[train.jsonl]", "[a.jsonl, b.jsonl]"))

    config = read_train(path, "data.train.1=here.jsonl")

    assert config.data.train == (path.parent / "a.jsonl", Path("here.jsonl"))


def test_an_absolute_path_stays_as_it_is(write: Writer, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "x.jsonl"

    config = read_train(write(MINIMAL.replace("train.jsonl", str(elsewhere))))

    assert config.data.train == (elsewhere,)


def test_an_empty_path_is_refused(write: Writer) -> None:
    assert refusal(write(MINIMAL), "existing_table=''").endswith(
        "'existing_table' is '', expected a path."
    )


# Round trips and plain data


def test_a_config_survives_json_and_yaml(write: Writer) -> None:
    config = TrainConfig(
        base="b",
        tasks=(
            TaskConfig("one", "<|VIRTUAL_PROMPT_0|>{{{x}}}", 4, (4,), choices=("ä", "b c")),
            TaskConfig("two", "{x}", 3, answer_only_loss=False, whitespace="nemo", init_text="no"),
        ),
        data=DataConfig(train=(Path("a.jsonl"), Path("b")), max_seq_length=9, add_bos=True),
        trainer=TrainerConfig(max_epochs=2, val_check_interval=3, precision="bf16"),
        virtual_prompt_style="p-tuning",
        p_tuning=PTuningConfig(encoder_type="lstm", dropout=0.25),
        optim=OptimConfig(lr=1e-5, betas=(0.5, 0.75), sched=ScheduleConfig(min_lr=1e-7)),
        existing_table=Path("old.safetensors"),
    )

    plain = plain_from_config(config)
    path = write(yaml.safe_dump(plain, allow_unicode=True))

    assert build(TrainConfig, node_from_plain(plain, "here"), doing="x") == config
    assert build(TrainConfig, node_from_plain(json.loads(json.dumps(plain)), "h"), doing="x") == (
        config
    )
    assert plain_from_config(read_train(path)) == {
        **plain,
        "data": {**plain["data"], "train": [str(path.parent / "a.jsonl"), str(path.parent / "b")]},
        "existing_table": str(path.parent / "old.safetensors"),
    }


@dataclass(frozen=True)
class _Shelf:
    books: Mapping[str, int] = field(default_factory=dict)
    pair: tuple[int, str] = (1, "a")


def test_a_mapping_keeps_its_keys_and_checks_its_values() -> None:
    node = node_from_plain({"books": {"a": 1, "b c": 2}, "pair": (3, "x")}, "shelf.json")
    wrong = node_from_plain({"books": {"a": 1, "b": "x"}, "pair": [1, 2]}, "shelf.json")

    shelf = build(_Shelf, node, doing="reading a shelf")
    with pytest.raises(ConfigError) as error:
        build(_Shelf, wrong, doing="reading a shelf")

    assert shelf == _Shelf({"a": 1, "b c": 2}, (3, "x"))
    assert plain_from_config(shelf) == {"books": {"a": 1, "b c": 2}, "pair": [3, "x"]}
    assert str(error.value).splitlines() == [
        "reading a shelf: 2 problems:",
        "  - shelf.json: 'books.b' is 'x', expected a whole number",
        "  - shelf.json: 'pair.1' is 2, expected text.",
    ]
