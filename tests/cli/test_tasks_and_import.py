"""`plc tasks` and `plc import` as a user meets them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from pl_compile.artifact.prompt_table import read_prompt_table
from pl_compile.testing import random_table

TEMPLATE = "<|VIRTUAL_PROMPT_0|> {sentence} sentiment:{label}"


@pytest.fixture
def table(tiny_bases: dict[str, Path], tmp_path: Path) -> Path:
    (tmp_path / "base").symlink_to(tiny_bases["llama"])
    return random_table(tmp_path / "base", tmp_path / "table.safetensors")


def test_a_task_goes_to_peft_and_comes_back_beside_the_others(
    plc: Any, table: Path, tmp_path: Path
) -> None:
    before = read_prompt_table(table)

    code, out, _ = plc("tasks", "export-peft", table, "tone", "--base", "base", "--output", "a")

    assert (code, out) == (
        0,
        "wrote a; the text that PEFT is given: ' {sentence} sentiment:{label}'\n",
    )

    arguments = ("import", "peft", "a", "--template", TEMPLATE, "--output", table)
    more = ("--choice", "positive", "--choice", "negative", "--truncate-field", "sentence")
    code, out, _ = plc(*arguments, "--task", "mood", *more)

    assert (code, out) == (0, f"wrote {table}: tone, ask, mood\n")
    after = read_prompt_table(table)
    assert after.entry("mood").rows.tobytes() == before.entry("tone").rows.tobytes()
    assert after.entry("mood").task.choices == ("positive", "negative")
    assert after.entry("mood").rules.eos_id == 1
    for name, entry in before.entries.items():
        assert after.entry(name).rows.tobytes() == entry.rows.tobytes()
        assert after.entry(name).record() == entry.record()

    code, _, err = plc(*arguments, "--task", "mood")

    assert code == 1
    assert "task 'mood' is in it already. Name the new task otherwise, or rename or remove" in err


def test_a_table_is_made_by_an_import(plc: Any, table: Path, tmp_path: Path) -> None:
    plc("tasks", "export-peft", table, "tone", "--output", "a")

    code, out, err = plc(
        *("import", "peft", "a", "--task", "new", "--template", "{a}:{b}"),
        *("--base", "base", "--output", "deep/new.safetensors", "--json"),
    )

    assert code == 0
    assert "backslash" not in err
    assert json.loads(out) == {"table": "deep/new.safetensors", "tasks": ["new"]}
    entry = read_prompt_table(tmp_path / "deep/new.safetensors").entry("new")
    assert entry.task.prompt_template == "<|VIRTUAL_PROMPT_0|>{a}:{b}"


def test_an_import_says_that_a_template_holds_a_backslash(plc: Any, table: Path) -> None:
    plc("tasks", "export-peft", table, "tone", "--output", "a")

    code, _, err = plc(
        *("import", "peft", "a", "--task", "new", "--template", r"{a}\nAnswer: {b}"),
        *("--base", "base", "--output", "new.safetensors", "--choice", r"a\t"),
    )

    assert code == 0
    assert r"prompt_template of task 'new' holds \n as a backslash and the letter n" in err
    assert r"choices.0 of task 'new' holds \t as a backslash and the letter t" in err


def test_an_adapter_of_another_base_is_refused(
    plc: Any, table: Path, tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    plc("tasks", "export-peft", table, "tone", "--output", "a")
    before = table.read_bytes()
    arguments = ("import", "peft", "a", "--task", "new", "--template", "{a}:{b}")

    # Of the same width, so only the fingerprint tells.
    code, _, err = plc(*arguments, "--base", tiny_bases["gpt2"], "--output", table)

    assert code == 1
    assert "the base has fingerprint" in err or "matching the prompt table" in err
    assert table.read_bytes() == before

    # The table calls its base "base", which is a folder here; elsewhere it must be named.
    (tmp_path / "base").unlink()
    code, _, err = plc(*arguments, "--output", table)

    assert code == 1
    assert "looking for the base 'base': no such folder" in err


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "Q: <|VIRTUAL_PROMPT_0|>{a}:{b}",
            "Write <|VIRTUAL_PROMPT_0|> once, at the start, or leave it out",
        ),
        ("<|VIRTUAL_PROMPT_0|>{a}<|VIRTUAL_PROMPT_1|>{b}", "at the start, or leave it out"),
        ("<|VIRTUAL_PROMPT_1|>{a}:{b}", "at the start, or leave it out"),
        ("{a}:", "ends in '{a}:': write the answer as {name} at its end"),
        ("no slot", "a template without a field: write the answer as {name} at its end"),
        ("", "a template without a field"),
        ("{a}:{", "a single '{' at character 5"),
        ("{a}:{a}", "the answer field 'a' is used 2 times"),
    ],
)
def test_a_template_that_peft_cannot_have_trained_is_refused(
    plc: Any, table: Path, tmp_path: Path, template: str, message: str
) -> None:
    plc("tasks", "export-peft", table, "tone", "--output", "a")

    code, _, err = plc(
        "import", "peft", "a", "--task", "x", "--template", template, "--output", "new"
    )

    assert code == 1
    assert message in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("b", "the field to cut, 'b', is the answer, which is never cut"),
        ("c", "the field to cut: field 'c' does not exist. Known fields: a, b."),
    ],
)
def test_a_field_to_cut_is_one_that_a_request_gives(
    plc: Any, table: Path, field: str, message: str
) -> None:
    plc("tasks", "export-peft", table, "tone", "--output", "a")
    arguments = ("import", "peft", "a", "--task", "x", "--template", "{a}:{b}", "--output", "new")

    code, _, err = plc(*arguments, "--truncate-field", field)

    assert code == 1
    assert message in err


def test_a_pickled_adapter_needs_a_flag(plc: Any, table: Path, tmp_path: Path) -> None:
    plc("tasks", "export-peft", table, "tone", "--output", "a")
    rows = load_file(tmp_path / "a/adapter_model.safetensors")["prompt_embeddings"]
    (tmp_path / "a/adapter_model.safetensors").unlink()
    pickled = {"prompt_embeddings": torch.from_numpy(rows.copy()).bfloat16()}
    torch.save(pickled, tmp_path / "a/adapter_model.bin")
    arguments = ("import", "peft", "a", "--task", "x", "--template", "{a}:{b}", "--output", "new")

    code, _, err = plc(*arguments)

    assert code == 1
    assert "adapter_model.bin, a pickle" in err

    code, _, _ = plc(*arguments, "--allow-pickle")

    assert code == 0
    stored = read_prompt_table(tmp_path / "new").entry("x").rows
    assert stored.tolist() == pickled["prompt_embeddings"].float().tolist()


def test_tasks_are_listed_renamed_added_and_removed(plc: Any, table: Path, tmp_path: Path) -> None:
    code, out, _ = plc("tasks", "ls", table)

    assert code == 0
    assert "positive, negative, neutral" in out

    assert plc("tasks", "rename", table, "tone", "mood")[0] == 0
    assert plc("tasks", "add", "new", table, "--task", "mood")[0] == 0
    assert plc("tasks", "rm", table, "mood")[1] == f"wrote {table}: ask\n"
    assert plc("tasks", "add", table, "new")[1] == f"wrote {table}: ask, mood\n"

    code, out, _ = plc("tasks", "ls", table, "--json")

    assert code == 0
    assert [task["taskname"] for task in json.loads(out)["tasks"]] == ["ask", "mood"]


def test_misuse_is_exit_code_2(plc: Any, table: Path) -> None:
    assert plc("tasks", "rm", table)[0] == 2
    assert plc("tasks", "rename", table, "tone")[0] == 2
    assert plc("import", "peft", "a", "--output", table)[0] == 2
    assert plc("import", "nothing", "a")[0] == 2


@pytest.mark.parametrize(
    "command",
    [("tasks", name) for name in ("ls", "add", "rm", "rename", "export-peft")]
    + [("import", "peft"), ("import", "checkpoint")],
)
def test_every_command_has_help_with_an_example(plc: Any, command: tuple[str, str]) -> None:
    code, out, _ = plc(*command, "--help")

    assert code == 0
    assert f"Example:\n    plc {' '.join(command)} " in out
