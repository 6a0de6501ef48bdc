"""Folded openings: the same answers as computed ones; refused if they are another bundle's."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pl_compile.artifact.bundle import Precision, read_bundle, task_folder, write_task
from pl_compile.artifact.folded_prefix import (
    FOLDED_NAME,
    FoldedPrefix,
    read_folded,
    write_folded,
)
from pl_compile.artifact.prompt_table import read_prompt_table, write_prompt_table
from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.verify import verify_bundle
from pl_compile.errors import ArtifactError, ExportError
from pl_compile.families.registry import FAMILIES
from pl_compile.runtime import Request, Result, Session
from pl_compile.runtime.served_task import identity_of
from pl_compile.testing import random_table, sign_bundle, write_tiny_base

REQUESTS = [
    Request("tone", {"sentence": "the year was cold"}, max_tokens=9, constrain=False),
    Request("order", {"request": "lights off"}, max_tokens=9),
    Request("ask", {"question": "who was there?", "place": "a café"}, max_tokens=9),
    Request("tone", {"sentence": ""}, max_tokens=9, constrain=False),
    Request("order", {"request": "lights off"}, max_tokens=9, use_prompt=False),
    Request("tone", {"sentence": "cold"}, max_tokens=9, constrain=False, use_prompt=False),
]

Exported = Callable[..., Path]


@pytest.fixture
def exported(tiny_bases: dict[str, Path], tmp_path: Path) -> Exported:
    """Exports the tiny tasks and returns the bundle."""

    def export(family: str = "llama", name: str = "bundle", **changes: Any) -> Path:
        base = tiny_bases[family]
        table = tmp_path / f"{family}.safetensors"
        if not table.exists():
            random_table(base, table, prefix=True)
        request = ExportRequest(table, base, tmp_path / name, **changes)
        return export_bundle(replace(request, measure_parity=False)).bundle

    return export


@pytest.mark.parametrize("prompts", ["input", "baked"])
@pytest.mark.parametrize("family", FAMILIES)
def test_folded_and_computed_openings_give_the_same_answers(
    exported: Exported, family: str, prompts: str
) -> None:
    folded = exported(family, "folded", fold="auto", prompts=prompts, options=BuildOptions("none"))
    _fold_all(folded)
    computed = exported(family, "computed", fold="never", prompts=prompts)

    assert _lengths(folded) == {"tone": 3, "ask": 3}
    assert _lengths(computed) == {}
    one, other = Session.open(folded), Session.open(computed)
    without = other.generate(REQUESTS)
    expected = _but_for_prefixes(without)
    assert _but_for_prefixes(one.generate(REQUESTS)) == expected
    alone = [one.generate([request])[0] for request in REQUESTS]
    assert _but_for_prefixes(alone) == expected
    # The prefix of "order" was learned; the last two requests leave prompt and prefix out.
    assert [each.prefix_tokens for each in alone] == [3, 4, 3, 3, 0, 0]
    assert [each.prefix_tokens for each in without] == [0, 4, 0, 0, 0, 0]


def _but_for_prefixes(results: list[Result]) -> list[Result]:
    """Folding changes how many tokens of a prompt are computed, and nothing else of an answer."""
    return [replace(result, prefix_tokens=0) for result in results]


def _fold_all(bundle: Path) -> None:
    """The tiny base computes a few tokens faster than it copies them: it is folded by hand."""
    opened = read_bundle(bundle)
    session = Session.open(bundle)
    for name in ("tone", "ask"):
        prompt = session.tasks[name]
        kv = prompt.folded(session.engine).prefix_kv
        assert kv is not None
        identity = identity_of(
            opened.entry(name),
            prompt,
            base=opened.manifest.base.fingerprint,
            graph=opened.base_sum,
            precision=opened.manifest.precision,
        )
        write_folded(task_folder(bundle, name) / FOLDED_NAME, FoldedPrefix(kv, identity))
    sign_bundle(bundle)


def _lengths(bundle: Path) -> dict[str, int]:
    opened = read_bundle(bundle)
    found = {name: opened.folded(name) for name in opened.entries}
    return {name: prefix.kv.shape[3] for name, prefix in found.items() if prefix is not None}


@pytest.fixture
def folded(exported: Exported) -> Path:
    bundle = exported("llama", fold="always", tasks=("tone", "ask"))
    assert _lengths(bundle) == {"tone": 3, "ask": 3}
    return bundle


def _other_weights(bundle: Path) -> None:
    data = bundle / "base" / "model.onnx.data"
    altered = bytearray(data.read_bytes())
    altered[100] ^= 1
    data.write_bytes(altered)


def _other_base(bundle: Path) -> None:
    _change_manifest(bundle, lambda m: m["base"].update(fingerprint="ab" * 32))


def _other_rows(bundle: Path) -> None:
    entry = read_bundle(bundle).entry("tone")
    path = task_folder(bundle, "tone")
    for file in path.iterdir():
        if file.name in ("task.json", "prompt.safetensors"):
            file.unlink()
    _rewrite(bundle, replace(entry, rows=entry.rows + np.float32(0.01)))


def _other_template(bundle: Path) -> None:
    entry = read_bundle(bundle).entry("tone")
    text = "<|VIRTUAL_PROMPT_0|> so {sentence} sentiment:{label}"
    _rewrite(bundle, replace(entry, task=replace(entry.task, prompt_template=text)))


def _other_layout(bundle: Path) -> None:
    entry = read_bundle(bundle).entry("tone")
    _rewrite(bundle, replace(entry, rules=replace(entry.rules, bos_id=0)))


def _other_dtype(bundle: Path) -> None:
    path = task_folder(bundle, "tone") / FOLDED_NAME
    prefix = read_folded(path)
    write_folded(path, replace(prefix, identity=replace(prefix.identity, dtype="float16")))


def _other_quantization(bundle: Path) -> None:
    other = {"quantization": "int8", "block": 32, "method": "round to nearest"}
    _change_manifest(bundle, lambda m: m["precision"].update(other))


def _other_positions(bundle: Path) -> None:
    path = task_folder(bundle, "tone") / FOLDED_NAME
    prefix = read_folded(path)
    write_folded(path, replace(prefix, identity=replace(prefix.identity, positions="from 1")))


def _change_manifest(bundle: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def _rewrite(bundle: Path, entry: Any) -> None:
    folder = task_folder(bundle, entry.task.taskname)
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    write_task(bundle, entry)
    for name, data in kept.items():
        if not (folder / name).exists():
            (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("swap", "part"),
    [
        (_other_weights, "graph"),
        (_other_base, "base"),
        (_other_rows, "prompt"),
        (_other_template, "layout"),
        (_other_layout, "layout"),
        (_other_positions, "positions"),
        (_other_dtype, "dtype"),
        (_other_quantization, "quantization"),
    ],
)
def test_a_prefix_that_was_computed_from_something_else_is_refused_with_the_part_that_differs(
    folded: Path, swap: Callable[[Path], None], part: str
) -> None:
    swap(folded)
    sign_bundle(folded)

    for opening in (Session.open, verify_bundle):
        with pytest.raises(ArtifactError) as error:
            opening(folded)
        text = str(error.value)
        assert text.startswith(f"reading the folded prefix of task 'tone' in {folded}: ")
        assert f"keys and values computed from {part} " in text
        assert "Export the bundle again: they would give wrong answers." in text


def test_a_prefix_that_is_cut_short_is_refused_even_with_the_right_identity(folded: Path) -> None:
    path = task_folder(folded, "tone") / FOLDED_NAME
    prefix = read_folded(path)
    write_folded(path, replace(prefix, kv=np.ascontiguousarray(prefix.kv[:, :, :, :2])))
    sign_bundle(folded)

    with pytest.raises(ArtifactError, match=r"2 positions; expected 3\."):
        Session.open(folded)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_prefix_that_is_not_finite_is_refused(folded: Path, value: float) -> None:
    path = task_folder(folded, "tone") / FOLDED_NAME
    prefix = read_folded(path)
    kv = prefix.kv.copy()
    kv[1, 0, 1, 2, 3] = value
    write_folded(path, replace(prefix, kv=kv))
    sign_bundle(folded)

    with pytest.raises(ArtifactError, match="not finite numbers"):
        Session.open(folded)


# The decision


def test_text_after_a_learned_prefix_is_folded_too(exported: Exported, tmp_path: Path) -> None:
    exported("llama")  # writes the table
    path = tmp_path / "llama.safetensors"
    table = read_prompt_table(path)
    order = table.entry("order")
    text = "<|VIRTUAL_PROMPT_0|>Order: {request} becomes {order}"
    entry = replace(order, task=replace(order.task, prompt_template=text))
    write_prompt_table(replace(table, entries={"order": entry}), path)

    one = Session.open(exported("llama", "folded", fold="always"))
    other = Session.open(exported("llama", "computed", fold="never"))

    assert one.tasks["order"].prefix_kv is not None
    assert one.tasks["order"].prefix_kv.shape[3] > 4
    requests = [Request("order", {"request": text}, max_tokens=9) for text in ("", "lights off")]
    folded, computed = one.generate(requests), other.generate(requests)
    assert _but_for_prefixes(folded) == _but_for_prefixes(computed)
    assert {result.prefix_tokens for result in computed} == {4}
    assert min(result.prefix_tokens for result in folded) > 4


def test_a_head_that_is_computed_sooner_than_copied_is_not_folded(exported: Exported) -> None:
    bundle = exported("llama")

    report = json.loads((bundle / "report.json").read_text())

    assert [task["folded"] for task in report["tasks"]] == [False, False, False]
    assert report["tasks"][0]["reason"] == "3 tokens are faster to compute than to copy as a prefix"
    assert report["tasks"][2]["reason"] == "nothing is computed before its first field"


def test_folding_always_folds_every_task_that_has_something_to_fold(exported: Exported) -> None:
    bundle = exported("llama", fold="always")

    tasks = {
        task["task"]: task for task in json.loads((bundle / "report.json").read_text())["tasks"]
    }

    assert {name: task["folded"] for name, task in tasks.items()} == {
        "tone": True,
        "ask": True,
        "order": False,
    }
    assert tasks["order"]["reason"] == "nothing is computed before its first field"


def test_a_head_longer_than_the_cache_is_refused(exported: Exported, tmp_path: Path) -> None:
    exported("llama")
    path = tmp_path / "llama.safetensors"
    table = read_prompt_table(path)
    tone = table.entry("tone")
    text = f"<|VIRTUAL_PROMPT_0|> {'cold ' * 40}{{sentence}} sentiment:{{label}}"
    entry = replace(tone, task=replace(tone.task, prompt_template=text))
    write_prompt_table(replace(table, entries={"tone": entry}), path)

    with pytest.raises(ExportError) as error:
        exported("llama", capacity=30)

    assert "sizing the cache for task 'tone': capacity 30, and an opening of" in str(error.value)


def test_prefixes_are_computed_anew_by_the_weights_that_serve_them(
    tmp_path: Path, exported: Exported
) -> None:
    base = write_tiny_base(tmp_path / "base", "llama", blocks=True)
    table = random_table(base, tmp_path / "table.safetensors")
    options = BuildOptions("int8", block=16)

    floats, rounded = (
        export_bundle(
            ExportRequest(
                *(table, base, tmp_path / name),
                target="onnx-cpu",
                fold="always",
                options=given,
            )
        ).bundle
        for name, given in (("floats", BuildOptions("none")), ("rounded", options))
    )

    one, other = (read_bundle(bundle).folded("tone") for bundle in (floats, rounded))
    assert one is not None
    assert other is not None
    assert other.identity.quantization == "int8"
    assert one.identity.graph != other.identity.graph
    difference = np.abs(one.kv - other.kv).max()
    assert 0 < difference < 0.1 * np.abs(one.kv).max()
    assert read_bundle(rounded).manifest.precision == Precision(
        quantization="int8", block=16, method="round to nearest"
    )
