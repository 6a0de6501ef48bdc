"""Every Python block of the documentation runs, in a folder of tiny stand-ins for what it names.

The blocks of a page run in their order, in one namespace.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pl_compile.artifact.prompt_table import (
    TaskEntry,
    read_prompt_table,
    write_prompt_table,
)
from pl_compile.testing import random_table
from pl_compile.text.render import SequenceRules
from pl_compile.training.read_config import read_train_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# What a block stands in that its page does not show: it is run first.
_BEFORE = {
    "writing-a-pass.md": "from dataclasses import dataclass\n"
    "import onnx_ir as ir\n"
    "from pl_compile.passes.graph_pass import GraphPass\n",
}


def blocks_of(page: Path) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


WITH_BLOCKS = [page for page in PAGES if blocks_of(page)]


def _quickstart_table(base: Path, path: Path) -> Path:
    """A table with the tasks of the quickstart, which the pages name, and random rows."""
    table = read_prompt_table(random_table(base, path))
    eos_id = table.entry("tone").rules.eos_id
    generator = np.random.default_rng(0)
    entries = {}
    for task in read_train_config(ROOT / "examples/quickstart/train.yaml").tasks:
        rows = generator.normal(0, 0.3, (task.total_virtual_tokens, table.base.hidden))
        entries[task.taskname] = TaskEntry(
            task, rows.astype(np.float32), SequenceRules(None, eos_id), "random"
        )
    write_prompt_table(replace(table, entries=entries), path)
    return path


@pytest.fixture
def prepared(plc, tiny_bases: dict[str, Path], tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    """A folder that holds `bundle`, and is the current one."""
    base = tiny_bases["llama"]
    table = _quickstart_table(base, tmp_path / "prompts.safetensors")
    export = ("export", "--prompts", table, "--base", base, "--output", tmp_path / "bundle")
    code, _, told = plc(*export, "--target", "onnx-cpu", "--quantize", "none", "--no-parity")
    assert code == 0, told
    return tmp_path


@pytest.fixture
def server(prepared: Path) -> Iterator[str]:
    """Where `plc serve bundle` answers."""
    command = [sys.executable, "-m", "pl_compile.cli", "serve", "bundle", "--port", "0", "--json"]
    with subprocess.Popen(
        command, cwd=prepared, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        url: str = json.loads(process.stdout.readline())["url"]
        yield url
        process.terminate()


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.name)
def test_python_blocks_of_a_page_run(
    page: Path, prepared: Path, request: pytest.FixtureRequest
) -> None:
    namespace: dict[str, object] = {"__name__": "page"}
    if page.name == "server.md":
        namespace["server"] = request.getfixturevalue("server")
    for number, block in enumerate([_BEFORE.get(page.name, ""), *blocks_of(page)]):
        exec(compile(block, f"{page.name}, Python block {number}", "exec"), namespace)


def test_the_pages_that_show_python_are_found() -> None:
    assert {page.name for page in WITH_BLOCKS} >= {"README.md", "serving.md", "server.md"}
