"""What `plc inspect` says of a task's prompt: rows or prefix, and how large they are."""

from pathlib import Path

import numpy as np
import pytest

from pl_compile.artifact.prompt_table import read_prompt_table
from pl_compile.driver.describe import describe
from pl_compile.importers.peft import write_peft_adapter
from pl_compile.testing import random_table


def test_rows_and_prefix_are_told_apart(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    path = random_table(tiny_bases["llama"], tmp_path / "table.safetensors", prefix=True)
    prefix = read_prompt_table(path).entry("order").learned

    tasks = {task["taskname"]: task for task in describe(path)["tasks"]}

    assert {name: task["prompt"] for name, task in tasks.items()} == {
        "tone": "rows",
        "ask": "rows",
        "order": "prefix",
    }
    by_token = np.sqrt((prefix**2).sum(axis=(0, 1, 2, 4)))
    assert tasks["order"]["row_norms"] == {
        "smallest": pytest.approx(by_token.min()),
        "largest": pytest.approx(by_token.max()),
    }


def test_an_adapter_of_peft_is_described_with_what_imports_it(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    table = read_prompt_table(random_table(tiny_bases["llama"], tmp_path / "table.safetensors"))
    write_peft_adapter(table, "tone", tmp_path / "adapter", "a base")

    found = describe(tmp_path / "adapter")

    assert (found["kind"], found["method"], found["base"]) == ("adapter", "prompt-tuning", "a base")
    assert found["virtual_tokens"] == len(table.entry("tone").rows)
    assert found["next"].startswith(f"plc import peft {tmp_path / 'adapter'} --task NAME")
