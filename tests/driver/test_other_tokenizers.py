"""A base whose files disagree on its tokenizer: told before a run, and no fault of its bundle."""

import json
import shutil
from pathlib import Path

import pytest

from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.train import train_run
from pl_compile.testing import Told, tiny_run, tone_examples, tone_tasks
from pl_compile.training.reference_tokenizer import ReferenceTokenizer


def test_what_was_trained_with_tokenizer_json_is_exported_with_it(
    tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    make = ReferenceTokenizer.of_file

    def counting(path: Path) -> ReferenceTokenizer:
        made.append(path)
        return make(path)

    monkeypatch.setattr(ReferenceTokenizer, "of_file", counting)
    base = Path(shutil.copytree(tiny_bases["llama"], tmp_path / "base"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "extra_special_tokens": ["<|im_start|>"]}
    (base / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    template = "<|VIRTUAL_PROMPT_0|><|im_start|>{sentence} is {label}"
    tasks = tone_tasks("one", "two", prompt_template=template)
    config = tiny_run(tmp_path / "data", base, rows=tone_examples("one", "two"), tasks=tasks)
    listener = Told()

    result = train_run(config, tmp_path / "run", progress=listener)

    [line] = [line for line in listener.lines if "another tokenizer" in line]
    assert made == [base / "tokenizer.json"]  # one for both tasks
    assert line.startswith("task 'one', 'two': transformers makes another tokenizer of the base's")
    assert "save_pretrained(" in line
    [start] = [said for said in listener.lines if said.startswith("trained: ")]
    assert listener.lines.index(line) < listener.lines.index(start)

    assert result.table is not None
    bundle = export_bundle(ExportRequest(result.table, base, tmp_path / "bundle"))

    assert bundle.verdict == "passed"
    assert all("another tokenizer" in check.note for check in bundle.tokens)
    assert "another tokenizer" in (bundle.bundle / "report.html").read_text(encoding="utf-8")
