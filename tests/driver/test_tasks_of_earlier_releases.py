"""Tables of earlier releases, whose tasks now mean something else: the export says so."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pl_compile.artifact.prompt_table import TaskEntry, read_prompt_table, write_prompt_table
from pl_compile.driver.bring_in import PeftImport, import_peft
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.train import train_run
from pl_compile.errors import ArtifactError
from pl_compile.importers.peft import write_peft_adapter
from pl_compile.testing import random_table, tiny_run

ENDS, MARKUP, BLANKS = "end tokens", "that token; now it is characters", "whitespace: keep"


@pytest.fixture
def base(tiny_bases: dict[str, Path], tmp_path: Path) -> Path:
    """A base with two end tokens, an added token that is not special, and a blank before texts."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_bases["llama"], folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 7]}', encoding="utf-8")
    file = folder / "tokenizer.json"
    spec = json.loads(file.read_text(encoding="utf-8"))
    spec["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    spec["added_tokens"].append({"id": 9, "content": _ninth(spec), **plain})
    file.write_text(json.dumps(spec), encoding="utf-8")
    return folder


def _ninth(spec: dict[str, Any]) -> str:
    return next(str(text) for text, key in spec["model"]["vocab"].items() if key == 9)


def _change(path: Path, change: Callable[[TaskEntry], TaskEntry]) -> Path:
    table = read_prompt_table(path)
    entries = {name: change(entry) for name, entry in table.entries.items()}
    write_prompt_table(replace(table, entries=entries), path)
    return path


def _ruled(entry: TaskEntry, **changes: Any) -> TaskEntry:
    return replace(entry, rules=replace(entry.rules, **changes))


def _findings(table: Path, base: Path, folder: Path) -> dict[str, str]:
    request = ExportRequest(table, base, folder / "bundle", measure_parity=False)
    report = json.loads((export_bundle(request).bundle / "report.json").read_text("utf-8"))
    return {lint["task"]: " | ".join(lint["findings"]) for lint in report["lint"]}


def test_end_tokens_and_rules_that_a_table_does_not_record_are_said(
    base: Path, tmp_path: Path
) -> None:
    table = random_table(base, tmp_path / "table")

    for found in _findings(table, base, tmp_path).values():
        assert "(7); unless that is meant" in found
        assert MARKUP in found

    whole = _change(table, lambda entry: _ruled(entry, end_ids=(7,), rendering=2))
    for found in _findings(whole, base, tmp_path).values():
        assert ENDS not in found
        assert MARKUP not in found
    # Answers that no token ends are meant so.
    unended = _change(table, lambda entry: _ruled(entry, eos_id=None, end_ids=()))
    assert ENDS not in "".join(_findings(unended, base, tmp_path).values())


def test_nothing_is_said_where_the_base_gives_no_cause(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_bases["llama"]
    table = random_table(base, tmp_path / "table")

    found = "".join(_findings(table, base, tmp_path).values())

    assert not any(words in found for words in (ENDS, MARKUP, BLANKS))
    assert "rendering" not in json.dumps(
        [entry.record() for entry in read_prompt_table(table).entries.values()]
    )


def test_an_adapter_that_was_imported_with_other_blanks_is_said(base: Path, tmp_path: Path) -> None:
    write_peft_adapter(
        read_prompt_table(random_table(base, tmp_path / "any")),
        "tone",
        tmp_path / "adapter",
        str(base),
    )
    table = tmp_path / "table"
    import_peft(PeftImport(tmp_path / "adapter", table, "tone", "<|start|>{sentence} {label}"))

    assert _findings(table, base, tmp_path) == {"tone": ""}

    def older(entry: TaskEntry) -> TaskEntry:
        return replace(entry, task=replace(entry.task, whitespace="keep"))

    assert BLANKS in _findings(_change(table, older), base, tmp_path)["tone"]


def test_files_that_name_no_end_tokens_do_not_stop_an_export(base: Path, tmp_path: Path) -> None:
    table = random_table(base, tmp_path / "table")
    (base / "generation_config.json").write_text("[", encoding="utf-8")

    assert "generation_config.json" in _findings(table, base, tmp_path)["ask"]


def test_training_and_bundles_record_the_rules(base: Path, tmp_path: Path) -> None:
    train_run(tiny_run(tmp_path, base), tmp_path / "run")

    table = tmp_path / "run" / "prompts.safetensors"
    assert {entry.rules.rendering for entry in read_prompt_table(table).entries.values()} == {2}
    found = "".join(_findings(table, base, tmp_path).values())
    assert MARKUP not in found
    assert ENDS not in found


@pytest.mark.parametrize("value", [0, 3])
def test_rules_of_a_later_release_are_refused(base: Path, tmp_path: Path, value: int) -> None:
    table = random_table(base, tmp_path / "table")

    with pytest.raises(ArtifactError, match=rf"rendering {value} of task 'tone'"):
        _change(table, lambda entry: _ruled(entry, rendering=value))
