"""What is told when an adapter is imported: by what it says itself, it may not fit its base."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pl_compile.artifact.prompt_table import read_prompt_table, write_prompt_table
from pl_compile.driver.bring_in import PeftImport, import_peft
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import ArtifactError
from pl_compile.importers.peft import write_peft_adapter
from pl_compile.testing import Told, random_table


@pytest.fixture
def base(tiny_bases: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bases["llama"], tmp_path / "base"))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    table = read_prompt_table(random_table(base, tmp_path / "random.safetensors"))
    write_peft_adapter(table, "tone", tmp_path / "adapter", str(base))
    return tmp_path / "adapter"


def told(adapter: Path, **settings: Any) -> list[str]:
    request = PeftImport(adapter, adapter.parent / "table.safetensors", "tone", "{q}:{a}")
    listener = Told()
    import_peft(replace(request, **settings), progress=listener)
    return [line for line in listener.lines if "adapter" in line]


def edited(folder: Path, name: str, edit: Any) -> None:
    path = folder / name
    spec = json.loads(path.read_text(encoding="utf-8"))
    edit(spec)
    path.write_text(json.dumps(spec), encoding="utf-8")


def test_nothing_is_told_of_an_adapter_that_fits(base: Path, adapter: Path) -> None:
    shutil.copy(base / "tokenizer.json", adapter)

    assert told(adapter) == []


def test_a_template_whose_only_field_is_the_answer_is_told(adapter: Path) -> None:
    request = PeftImport(
        adapter, adapter.parent / "table.safetensors", "tone", "Message: {message}"
    )
    listener = Told()

    import_peft(request, progress=listener)

    assert any("takes no input: its only field, 'message'" in line for line in listener.lines)


def test_blanks_after_the_answer_are_dropped(adapter: Path) -> None:
    request = PeftImport(adapter, adapter.parent / "table.safetensors", "tone", "{q}:{a}  ")

    table = import_peft(request)

    assert table.entries["tone"].task.prompt_template == "<|VIRTUAL_PROMPT_0|>{q}:{a}"


def test_a_choice_that_is_never_answered_is_told(base: Path, adapter: Path) -> None:
    edited(base, "config.json", lambda spec: spec.update(eos_token_id=None))
    for name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        (base / name).unlink(missing_ok=True)
    request = PeftImport(adapter, adapter.parent / "table.safetensors", "tone", "{q}:{a}")
    listener = Told()

    import_peft(replace(request, choices=("pos", "positive")), progress=listener)

    assert any("task 'tone': " in line and "'positive'" in line for line in listener.lines)


def _with_a_token(spec: Any) -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    spec["added_tokens"].append({"id": 397, "content": "<new>", "special": True, **flags})


def _with_bos(spec: Any) -> None:
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|end|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
        "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [1], "tokens": ["<|end|>"]}},
    }


@pytest.mark.parametrize("template", ["{q}:{a}", "<|end|>{q}:{a}"])
def test_an_opening_token_that_the_template_lacks_is_told(
    base: Path, adapter: Path, tmp_path: Path, template: str
) -> None:
    edited(base, "tokenizer.json", _with_bos)
    table = tmp_path / "table.safetensors"
    importing, exporting = Told(), Told()

    import_peft(PeftImport(adapter, table, "tone", template), progress=importing)
    export_bundle(
        ExportRequest(table, base, tmp_path / "bundle", measure_parity=False), progress=exporting
    )

    start = "task 'tone': the tokenizer puts '<|end|>' before a text, and the template does not"
    told = [sum(start in line for line in each.lines) for each in (importing, exporting)]
    assert told == [template == "{q}:{a}"] * 2


def test_a_base_whose_files_do_not_agree_is_told_at_import(base: Path, adapter: Path) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "extra_special_tokens": ["<|user|>"]}
    (base / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    request = PeftImport(adapter, adapter.parent / "table.safetensors", "tone", "<|user|>{q}:{a}")
    listener = Told()

    import_peft(request, progress=listener)

    [line] = [line for line in listener.lines if "another tokenizer" in line]
    assert line.startswith("task 'tone': the text '<|user|>Where is it?:' is rendered to tokens")
    assert "save_pretrained(" in line


def _without_merges(spec: Any) -> None:
    spec["model"]["merges"] = []


def _with_lower_case(spec: Any) -> None:
    spec["normalizer"] = {"type": "Lowercase"}


@pytest.mark.parametrize(
    ("edit", "example"),
    [
        (_with_a_token, "'<new>' is id 397, and no token"),
        (_without_merges, "The year 2024"),
        (_with_lower_case, "The year 2024"),
    ],
)
def test_a_tokenizer_beside_the_adapter_that_is_not_the_bases_is_told(
    base: Path, adapter: Path, edit: Any, example: str
) -> None:
    shutil.copy(base / "tokenizer.json", adapter)
    edited(adapter, "tokenizer.json", edit)

    [line] = told(adapter)

    assert line.startswith("the tokenizer beside the adapter is not the base's")
    assert example in line


def test_a_tokenizer_beside_the_adapter_that_cannot_be_read_is_told(adapter: Path) -> None:
    (adapter / "tokenizer.json").write_text("{}")

    [line] = told(adapter)

    assert line.startswith("the tokenizer beside the adapter is not compared: reading ")


def test_another_base_than_the_one_that_the_adapter_names_is_told(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(base, tmp_path / "other"))
    assert told(adapter, base=str(other)) == []  # a copy

    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    save_file(weights, other / "model.safetensors")
    table = tmp_path / "more.safetensors"
    [line] = told(adapter, base=str(other), output=table)

    assert line.startswith(f"the adapter names {base} as its base, whose weights differ")


def test_nothing_is_told_in_a_base_of_an_adapter_that_names_none(
    base: Path, adapter: Path, tiny_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(adapter, "adapter_config.json", lambda spec: spec.update(base_model_name_or_path=""))
    monkeypatch.chdir(tiny_bases["gpt2"])  # the path "" leads there

    assert told(adapter, base=str(base)) == []


@pytest.mark.parametrize("size", [3e19, 3e38])
def test_numbers_whose_squares_are_beyond_float32_are_refused(
    base: Path, adapter: Path, tmp_path: Path, size: float
) -> None:
    rows = load_file(adapter / "adapter_model.safetensors")["prompt_embeddings"]
    huge = {"prompt_embeddings": np.full_like(rows, size)}
    save_file(huge, adapter / "adapter_model.safetensors")

    with pytest.raises(ArtifactError, match="importing task 'tone': virtual tokens of 'tone' with"):
        told(adapter)

    table = read_prompt_table(tmp_path / "random.safetensors")
    entry = replace(table.entry("tone"), rows=huge["prompt_embeddings"])
    write_prompt_table(replace(table, entries={"tone": entry}), tmp_path / "huge.safetensors")
    request = ExportRequest(tmp_path / "huge.safetensors", base, tmp_path / "bundle")
    with pytest.raises(ArtifactError, match="exporting task 'tone': virtual tokens of 'tone' with"):
        export_bundle(replace(request, measure_parity=False))


def test_a_base_whose_numbers_overflow_is_no_damaged_bundle(base: Path, tmp_path: Path) -> None:
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = np.full_like(weights["model.norm.weight"], 1e38)
    weights["model.embed_tokens.weight"] *= 1e4
    save_file(weights, base / "model.safetensors")
    table = random_table(base, tmp_path / "table.safetensors")
    request = ExportRequest(table, base, tmp_path / "bundle")

    result = export_bundle(request)

    assert result.verdict == "failed"
    assert "logits that are not finite numbers" in " ".join(result.failures)
    assert not list(tmp_path.glob("bundle/tasks/*/selftest.safetensors"))


def test_findings_are_told_where_a_bundle_is_exported(base: Path, tmp_path: Path) -> None:
    path = random_table(base, tmp_path / "table.safetensors")
    table = read_prompt_table(path)
    rows = np.zeros_like(table.entry("tone").rows)
    write_prompt_table(
        replace(table, entries={"tone": replace(table.entry("tone"), rows=rows)}), path
    )
    listener = Told()

    export_bundle(
        ExportRequest(path, base, tmp_path / "bundle", measure_parity=False), progress=listener
    )

    assert "task 'tone': a virtual token is all zeros: nothing was learned there" in listener.lines
