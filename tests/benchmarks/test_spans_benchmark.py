"""The benchmark of copied answers in its small form."""

import json
import sys
from pathlib import Path

import pytest

from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.testing import random_table, write_jsonl, write_tiny_base

TASK = {
    "taskname": "copy",
    "prompt_template": "<|VIRTUAL_PROMPT_0|> {text} {question}: {answer}",
    "total_virtual_tokens": 2,
    "answer": {"span": "text"},
}


def test_it_counts_passes_and_scores_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_tiny_base(tmp_path / "base", "llama", seed=8, blocks=True)
    table = random_table(base, tmp_path / "table.safetensors", tasks=[TASK])
    asked = ExportRequest(
        table,
        base,
        tmp_path / "bundle",
        target="native-cpu",
        options=BuildOptions("int8"),
        measure_parity=False,
    )
    bundle = export_bundle(asked).bundle
    row = {"taskname": "copy", "text": "cold", "question": "who", "answer": ["cold", "so"]}
    data = write_jsonl(tmp_path / "data.jsonl", [row, {**row, "text": "a lazy dog"}])
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import spans

    monkeypatch.setattr(sys, "argv", ["spans.py", str(bundle), str(data), "--task", "copy"])
    spans.main()

    found = json.loads(capsys.readouterr().out)
    assert found["answers"] == 2
    assert found["copied"]["exact_match"] == 50  # "cold" is all that can be copied from "cold"
    assert (
        found["copied"]["passes_per_answer"] <= found["copied, token by token"]["passes_per_answer"]
    )
    assert found["free"]["exact_match"] < 50
