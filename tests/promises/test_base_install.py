"""What the base install can do, with the packages of all extras hidden."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.testing import random_table, tiny_examples, write_jsonl

HIDDEN = (
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "ml_dtypes",
    "gguf",
    "accelerate",
    "matplotlib",
    "rouge_score",
    "starlette",
    "uvicorn",
    "prometheus_client",
)

MAIN = f"""
import sys
for name in {HIDDEN!r}:
    sys.modules[name] = None  # import and find_spec behave as if it were not installed
from pl_compile.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def work(tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    table = random_table(tiny_bases["llama"], folder / "table.safetensors")
    export_bundle(ExportRequest(table, tiny_bases["llama"], folder / "bundle"))
    write_jsonl(folder / "rows.jsonl", tiny_examples(4))
    (folder / "names.csv").write_text("text,label\nso cold,negative\n", encoding="utf-8")
    return folder


def plc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MAIN, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "bundle"],
        ["generate", "bundle", "--task", "tone", "--field", "sentence=so cold"],
        ["generate", "bundle", "--input", "rows.jsonl"],
        ["eval", "bundle", "--data", "rows.jsonl"],
        [
            "bench",
            "bundle",
            "--batch",
            "1",
            "--input-tokens",
            "4",
            "--tokens",
            "2",
            "--repeat",
            "1",
        ],
        ["inspect", "bundle"],
        ["inspect", "table.safetensors"],
        ["tasks", "ls", "bundle"],
        ["tasks", "add", "new.safetensors", "table.safetensors", "--task", "tone"],
        ["tasks", "export-peft", "table.safetensors", "tone", "--output", "adapter"],
        ["doctor"],
        ["prepare", "csv", "--input", "names.csv", "--output", "out", "--taskname", "tone"],
    ],
    ids=" ".join,
)
def test_works_without_extras(work: Path, arguments: list[str]) -> None:
    done = plc(work, *arguments)

    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        (["fetch"], "torch", "train"),
        (["train", "train.yaml"], "torch", "train"),
        (["export", "--prompts", "table.safetensors"], "onnx", "export"),
        (["serve", "bundle"], "starlette", "serve"),
        (["verify", "bundle", "--reference", "base"], "torch", "train"),
        (["eval", "table.safetensors", "--data", "rows.jsonl"], "torch", "train"),
        (["eval", "bundle", "--data", "rows.jsonl", "--reference", "b"], "torch", "train"),
        (["eval", "bundle", "--data", "rows.jsonl", "--metric", "rouge"], "rouge_score", "eval"),
        (
            ["import peft", "a", "--task", "t", "--template", "x", "--output", "o"],
            "ml_dtypes",
            "export",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_names_the_extra_that_is_missing(
    work: Path, arguments: list[str], package: str, extra: str
) -> None:
    done = plc(work, *arguments[0].split(), *arguments[1:])

    assert done.returncode == 1
    assert done.stderr == (
        f"error: running plc {arguments[0]}: the package '{package}' is not installed. "
        f"Install it with: pip install 'pl-compile[{extra}]'\n"
    )


def test_doctor_names_the_extras_that_are_missing(work: Path) -> None:
    findings = json.loads(plc(work, "doctor", "--json").stdout)["findings"]

    assert {finding["name"] for finding in findings} >= {"extra [train]", "extra [export]"}
