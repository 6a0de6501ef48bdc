"""A tokenizer with tokens that its base has no row for: told, and refused where a text has one.

In a graph, the rows of the prompt follow those of the base: such an id would be one of them.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pl_compile.artifact.prompt_table import read_prompt_table, write_prompt_table
from pl_compile.driver.answer_file import answer_file
from pl_compile.driver.bring_in import PeftImport, import_peft
from pl_compile.driver.evaluate import EvalOptions, evaluate, session_on_table
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.train import train_run
from pl_compile.errors import DataError, PlcError, RequestError
from pl_compile.importers.peft import write_peft_adapter
from pl_compile.runtime import Request, Session
from pl_compile.testing import Told, random_table, tiny_examples, tiny_run, write_jsonl

# The tokenizer makes one token of it, with the first id after the base's.
BEYOND = "ZZ"


def said(listener: Told) -> bool:
    return any("larger than its base: 2 tokens from 'ZZ' (id 397)" in s for s in listener.lines)


@pytest.fixture(scope="module")
def base(tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("larger") / "base"
    shutil.copytree(tiny_bases["llama"], folder)
    file = folder / "tokenizer.json"
    spec = json.loads(file.read_text(encoding="utf-8"))
    spec["model"]["vocab"][BEYOND] = 397
    spec["model"]["merges"].append(["Z", "Z"])
    think = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    spec["added_tokens"].append({"id": 398, "content": "<think>", **think})
    file.write_text(json.dumps(spec), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def table(base: Path) -> Path:
    return random_table(base, base.parent / "table.safetensors")


@pytest.fixture(scope="module")
def bundle(base: Path, table: Path) -> Path:
    listener = Told()
    request = ExportRequest(table, base, base.parent / "bundle")
    bundle = export_bundle(request, progress=listener).bundle
    assert said(listener)
    return bundle


def test_training_tells_it_and_refuses_the_lines_of_the_data(base: Path, tmp_path: Path) -> None:
    rows = [*tiny_examples(4), {"taskname": "tone", "sentence": f"a {BEYOND}", "label": "neutral"}]
    config = tiny_run(tmp_path, base, rows=rows)
    listener = Told()

    with pytest.raises(DataError, match=r"train\.jsonl:5: tokenising .*'ZZ' with id 397"):
        train_run(config, tmp_path / "run", progress=listener)

    assert said(listener)


def test_an_added_token_of_that_kind_is_characters_in_data(bundle: Path) -> None:
    session = Session.open(bundle)

    (result,) = session.generate([Request("tone", {"sentence": "<think>"})])

    assert result.text in ("positive", "negative", "neutral")


def test_a_request_with_such_a_text_is_refused_and_the_others_are_not(bundle: Path) -> None:
    session = Session.open(bundle)
    good, bad = (Request("tone", {"sentence": f"who {text}"}) for text in ("was", BEYOND))

    (expected,) = session.generate([good])
    with pytest.raises(RequestError, match=r"serving request 1: .*'ZZ' with id 397"):
        session.generate([good, bad])

    assert session.generate([good]) == [expected]


def test_files_of_requests_and_examples_name_the_line(
    bundle: Path, base: Path, table: Path, tmp_path: Path
) -> None:
    rows = [
        {"taskname": "tone", "sentence": f"who {text}", "label": "neutral"}
        for text in ("was", BEYOND, "there", BEYOND * 2)
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)

    for ask in (
        lambda: answer_file(Session.open(bundle), path, {}),
        lambda: evaluate(Session.open(bundle), [path], EvalOptions()),
        lambda: evaluate(session_on_table(table, base), [path], EvalOptions()),
    ):
        with pytest.raises(RequestError) as error:
            ask()

        assert "2 problems" in str(error.value)
        assert f"{path}:2: " in str(error.value)
        assert f"{path}:4: " in str(error.value)


@pytest.mark.parametrize(
    ("template", "choices"),
    [
        ("{sentence} <think>{label}", ()),
        (f"{{sentence}} {BEYOND}: {{label}}", ()),
        ("{sentence}: {label}", ("yes", f"no {BEYOND}")),
    ],
)
def test_a_task_that_always_holds_such_a_token_is_neither_imported_nor_exported(
    base: Path, table: Path, tmp_path: Path, template: str, choices: tuple[str, ...]
) -> None:
    whole = read_prompt_table(table)
    write_peft_adapter(whole, "tone", tmp_path / "adapter", str(base))
    entry = whole.entry("tone")
    task = replace(entry.task, prompt_template=f"<|VIRTUAL_PROMPT_0|>{template}", choices=choices)
    changed = replace(whole, entries={"tone": replace(entry, task=task)})
    write_prompt_table(changed, tmp_path / "table")
    import_request = PeftImport(tmp_path / "adapter", tmp_path / "new", "tone", template, choices)

    for take in (
        lambda: import_peft(import_request),
        lambda: export_bundle(ExportRequest(tmp_path / "table", base, tmp_path / "bundle")),
    ):
        with pytest.raises(PlcError, match=r"'(ZZ|<think>)' with id 39\d, which the base has no"):
            take()
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "bundle").exists()


def test_an_import_tells_it(base: Path, table: Path, tmp_path: Path) -> None:
    write_peft_adapter(read_prompt_table(table), "tone", tmp_path / "adapter", str(base))
    listener = Told()

    import_peft(
        PeftImport(tmp_path / "adapter", tmp_path / "new", "tone", "{sentence}: {label}"),
        progress=listener,
    )

    assert said(listener)
