"""What is said of a training config, and of the data files that it names, before a run starts."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from pl_compile.config.read import plain_from_config
from pl_compile.driver.train import train_run
from pl_compile.errors import DataError
from pl_compile.testing import Told, tiny_train_config
from pl_compile.training.read_config import read_train_config


@pytest.mark.parametrize("nemo", [False, True])
def test_a_template_in_single_quotes_is_read_as_it_is_and_said(tmp_path: Path, nemo: bool) -> None:
    task = {
        "taskname": "t",
        "prompt_template": r"<|VIRTUAL_PROMPT_0|>{text}\n{label}",
        "total_virtual_tokens": 3,
        "virtual_token_splits": [3],
    }
    config: dict[str, Any] = tiny_train_config(tmp_path, tmp_path) | {"tasks": [task]}
    if nemo:
        config = {
            "trainer": {"max_steps": 1},
            "model": {
                "virtual_prompt_style": "p-tuning",
                "language_model_path": "x",
                "new_tasks": ["t"],
                "task_templates": [task],
                "global_batch_size": 2,
                "micro_batch_size": 2,
                "data": {"train_ds": ["train.jsonl"]},
                "optim": {"name": "adamw", "lr": 0.1},
            },
        }
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    listener = Told()

    read = read_train_config(path, progress=listener)

    assert read.tasks[0].prompt_template == task["prompt_template"]
    (line,) = [line for line in listener.lines if "backslash" in line]
    assert line.startswith(r"prompt_template of task 't' holds \n as a backslash and the letter n;")


@pytest.mark.parametrize("cache", [True, False])
def test_data_that_is_no_file_is_named_before_it_is_read(
    tmp_path: Path, tiny_bases: dict[str, Path], cache: bool
) -> None:
    (tmp_path / "train.yaml").write_text(
        yaml.safe_dump(tiny_train_config(tmp_path, tiny_bases["llama"])), encoding="utf-8"
    )
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: to read it would wait for ever
    names = [tmp_path / name for name in ("none.jsonl", "pipe", "base")]
    names[2].mkdir()
    settings = [f"data.train=[{', '.join(map(str, names))}]", f"data.cache={str(cache).lower()}"]

    with pytest.raises(DataError) as error:
        train_run(read_train_config(tmp_path / "train.yaml", settings), tmp_path / "run")

    assert str(error.value).splitlines() == [
        "reading the examples: 3 problems:",
        f"  - {names[0]}: No such file or directory",
        f"  - {names[1]}: a pipe, a device or a socket, not a file",
        f"  - {names[2]}: Is a directory; expected files, which a run reads more than once.",
    ]


TEXT = {"taskname": "t", "prompt_template": "<|VIRTUAL_PROMPT_0|>{text}{label}", "init_text": "go"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((), []),
        (("prefix_tuning.init=auto", "validation.limit=50"), []),
        (
            ("p_tuning.num_layers=3", "p_tuning.dropout=0.5", "prefix_tuning.init=text"),
            [
                "p_tuning.num_layers, p_tuning.dropout, prefix_tuning.init have no effect: "
                "virtual_prompt_style is prompt-tuning"
            ],
        ),
        (
            ("prompt_tuning.init=random",),
            ["init_text of task 't' has no effect: prompt_tuning.init is random"],
        ),
        (("prompt_tuning.init=text",), []),
        (
            ("virtual_prompt_style=p-tuning", "prompt_tuning.init=text", "p_tuning.init_std=0.1"),
            [
                "init_text of task 't' has no effect: virtual_prompt_style is p-tuning",
                "prompt_tuning.init has no effect: virtual_prompt_style is p-tuning",
                "p_tuning.init_std has no effect: p_tuning.encoder_type is mlp",
            ],
        ),
        (
            (
                "virtual_prompt_style=p-tuning",
                "p_tuning.encoder_type=tpmlp",
                "p_tuning.num_layers=4",
                "tasks.0.init_text=null",
            ),
            ["p_tuning.num_layers has no effect: p_tuning.encoder_type is tpmlp"],
        ),
        (
            (
                "virtual_prompt_style=p-tuning",
                "p_tuning={encoder_type: lstm, num_layers: 1, dropout: 0.5}",
                "tasks.0.init_text=null",
            ),
            ["p_tuning.dropout has no effect: p_tuning.num_layers is 1"],
        ),
        (
            ("virtual_prompt_style=prefix-tuning", "prefix_tuning.init=vocabulary"),
            ["init_text of task 't' has no effect: prefix_tuning.init is vocabulary"],
        ),
        (
            ("virtual_prompt_style=no-prompts", "checkpoint.save_top_k=2", "optim.lm_lr=1e-3"),
            [
                "init_text of task 't' has no effect: virtual_prompt_style is no-prompts",
                "optim.lr, optim.lm_lr, checkpoint.save_top_k have no effect: "
                "virtual_prompt_style is no-prompts",
            ],
        ),
        (("optim.lm_lr=1e-3",), ["optim.lm_lr has no effect: lm_finetune is false"]),
        (("optim.lm_lr=1e-3", "lm_finetune=true"), []),
        (
            ("validation.metric=accuracy", "validation.max_tokens=3"),
            [
                "validation.metric, validation.max_tokens have no effect: "
                "validation.generate is false"
            ],
        ),
        (
            ("optim.sched={warmup_steps: 3, warmup_ratio: 0.5, constant_ratio: 0.1}",),
            ["optim.sched.warmup_ratio has no effect: optim.sched.warmup_steps is given"],
        ),
        (
            ("data.validation=[]", "checkpoint.save_top_k=3"),
            ["checkpoint.save_top_k has no effect: data.validation names no file"],
        ),
    ],
)
def test_settings_that_nothing_is_made_of_are_told(
    tmp_path: Path, settings: tuple[str, ...], expected: list[str]
) -> None:
    task = {**TEXT, "total_virtual_tokens": 3}
    path = tmp_path / "train.yaml"
    config = tiny_train_config(tmp_path, tmp_path, tasks=[task])
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    listener = Told()

    read = read_train_config(path, settings, progress=listener)

    assert listener.lines == expected
    # The config that the run writes, with every key in it, says the same.
    path.write_text(yaml.safe_dump(plain_from_config(read)), encoding="utf-8")
    again = Told()
    read_train_config(path, progress=again)
    assert again.lines == expected
