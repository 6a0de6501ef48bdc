"""What is written to standard output or over a file: nothing that is there is lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pl_compile.testing import write_jsonl

REQUESTS = [{"taskname": "tone", "sentence": text} for text in ("so cold", "so warm")]


@pytest.fixture
def bundle(work: Path, tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "requests.jsonl", REQUESTS)
    return Path(shutil.copytree(work / "bundle", tmp_path / "bundle"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("output", ["-", "/dev/stdout"])
def test_answers_stand_between_what_others_write(bundle: Path, tmp_path: Path, output: str) -> None:
    command = [sys.executable, "-m", "pl_compile.cli", "generate", str(bundle), "--max-tokens", "2"]
    with (tmp_path / "requests.jsonl").open() as requests, (tmp_path / "all").open("wb") as file:
        file.write(b"header\n")
        file.flush()
        subprocess.run(
            [*command, "--input", "-", "--output", output], stdin=requests, stdout=file, check=True
        )
        file.write(b"footer\n")

    header, *answers, footer = (tmp_path / "all").read_text().splitlines()
    assert (header, footer) == ("header", "footer")
    assert [json.loads(answer)["index"] for answer in answers] == [0, 1]


def test_examples_are_scored_from_standard_input(bundle: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "examples", [{**REQUESTS[0], "label": "negative"}])
    command = [sys.executable, "-m", "pl_compile.cli", "eval", str(bundle), "--no-baseline"]
    with (tmp_path / "examples").open() as examples:
        out = subprocess.check_output([*command, "--data", "-", "--json"], stdin=examples)

    assert json.loads(out)["tasks"][0]["examples"] == 1


@pytest.mark.parametrize(
    "command",
    [
        "generate bundle --input requests.jsonl --output bundle/answers.jsonl",
        "generate bundle --input requests.jsonl --output bundle/manifest.json",
        "generate bundle --input requests.jsonl --output link/new/answers.jsonl",
        "export --prompts table --base base --output bundle/other",
        "export --prompts table --base base --output b --dump-passes bundle/passes",
        "fetch --output bundle/base",
        "prepare csv --input x.csv --output bundle/data --taskname x",
        "train tiny.yaml --output bundle/run",
        "import checkpoint best --output bundle/table",
        "tasks add bundle/table other",
        "tasks export-peft table tone --output bundle/adapter",
    ],
)
def test_nothing_is_written_into_a_bundle(
    plc: Any, bundle: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "link").symlink_to(bundle)
    before = contents(tmp_path)

    code, _, err = plc(*command.split())

    assert code == 2
    assert f"is inside the bundle {bundle}, which could then no longer be opened" in err
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("table.safetensors", "a file of numbers, not of lines of text"),
        ("base/model.safetensors", "a file of numbers, not of lines of text"),
        ("base/config.json", "a JSON document over several lines"),
        ("bundle/base/model.onnx", "a file of numbers, not of lines of text"),
        ("bundle/manifest.json", "a JSON document over several lines"),
    ],
)
def test_answers_replace_no_table_base_or_graph(
    plc: Any, work: Path, bundle: Path, tmp_path: Path, name: str, found: str
) -> None:
    shutil.copyfile(work / name, tmp_path / "there")

    code, _, err = plc("generate", bundle, "--input", "requests.jsonl", "--output", "there")

    assert (code, err) == (
        1,
        f"error: writing answers to there: {found}; expected no file there, or one with lines "
        "of text, such as earlier answers. Choose another --output.\n",
    )
    assert (tmp_path / "there").read_bytes() == (work / name).read_bytes()


@pytest.mark.parametrize("there", [None, "", '{"index": 0}\n{"index": 1}\n', "a,b\n", "{x}"])
def test_answers_replace_what_may_be_earlier_ones(
    plc: Any, bundle: Path, tmp_path: Path, there: str | None
) -> None:
    if there is not None:
        (tmp_path / "answers").write_text(there)

    for _ in range(2):
        code, _, _ = plc("generate", bundle, "--input", "requests.jsonl", "--output", "answers")

        assert code == 0
    assert len((tmp_path / "answers").read_text().splitlines()) == 2


def test_an_output_that_cannot_be_written_is_told_before_the_work(
    plc: Any, bundle: Path, tmp_path: Path
) -> None:
    (bundle / "manifest.json").unlink()  # so that opening it would be told first
    os.mkdir(tmp_path / "folder")

    for output, found in (
        ("/dev/fd/98765", "Bad file descriptor"),  # no test has so many files open
        ("requests.jsonl/x", "is a file, and no folder"),
        ("folder", "a folder. Name a file in it."),
    ):
        code, _, err = plc("generate", bundle, "--input", "requests.jsonl", "--output", output)

        assert code == 1
        assert err.startswith(f"error: writing {output}: ")
        assert found in err


def test_a_folder_has_no_dash_for_a_name(plc: Any, tmp_path: Path) -> None:
    code, _, err = plc("prepare", "csv", "--input", "x.csv", "--output", "-", "--taskname", "x")

    assert code == 2
    assert "write ./- for that name" in err
    assert list(tmp_path.iterdir()) == []
