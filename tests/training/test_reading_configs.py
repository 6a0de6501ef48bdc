"""What is said of a training config that can be read."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pl_compile.progress import SILENT
from pl_compile.testing import tiny_train_config
from pl_compile.training.read_config import read_train_config


class Listener:
    """A `Progress` that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bar = SILENT.bar

    def say(self, line: str) -> None:
        self.lines.append(line)


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
    listener = Listener()

    read = read_train_config(path, progress=listener)

    assert read.tasks[0].prompt_template == task["prompt_template"]
    (line,) = [line for line in listener.lines if "backslash" in line]
    assert line.startswith(r"prompt_template of task 't' holds \n as a backslash and the letter n;")
