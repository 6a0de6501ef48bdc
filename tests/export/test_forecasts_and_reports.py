"""What an export says: the forecast before it, the report after it, and what stops it early."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pl_compile.artifact.bundle import read_bundle
from pl_compile.artifact.prompt_table import read_prompt_table, write_prompt_table
from pl_compile.checkpoints.checkpoint import open_checkpoint
from pl_compile.config.build import BuildOptions
from pl_compile.driver import disk_and_memory as room
from pl_compile.driver import export as export_page
from pl_compile.driver import forecast as forecast_page
from pl_compile.driver.build_plans import _report
from pl_compile.driver.costs import base_cost
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.forecast import forecast_export
from pl_compile.errors import ArtifactError, ExportError, FingerprintError
from pl_compile.families.read import read_decoder_config
from pl_compile.families.registry import FAMILIES
from pl_compile.runtime.engines.onnxruntime.engine import OnnxRuntimeEngine
from pl_compile.runtime.engines.padded import Step
from pl_compile.testing import random_table, tiny_examples, write_jsonl, write_tiny_base
from pl_compile.text.render import SequenceRules
from pl_compile.weights.load import load_weights


@pytest.fixture
def request_(tiny_bases: dict[str, Path], tmp_path: Path) -> ExportRequest:
    base = tiny_bases["llama"]
    table = random_table(base, tmp_path / "table.safetensors", prefix=True)
    return ExportRequest(table, base, tmp_path / "bundle")


@pytest.fixture
def block_request(tmp_path: Path) -> ExportRequest:
    """Of a base that blocks of 16 divide."""
    base = write_tiny_base(tmp_path / "base", "llama", blocks=True)
    table = random_table(base, tmp_path / "table.safetensors")
    return ExportRequest(table, base, tmp_path / "bundle")


# Reproducible


@pytest.mark.parametrize("options", [BuildOptions(), BuildOptions("int4", block=16)])
def test_equal_inputs_give_equal_bytes(tmp_path: Path, options: BuildOptions) -> None:
    base = write_tiny_base(tmp_path / "base", "llama", blocks=True)
    table = random_table(base, tmp_path / "table.safetensors", prefix=True)

    files = []
    for name in ("one", "other"):
        request = ExportRequest(
            table, base, tmp_path / name, tasks=("tone", "ask"), fold="always", options=options
        )
        bundle = export_bundle(request).bundle
        paths = sorted(path for path in bundle.rglob("*") if path.is_file())
        files.append({p.relative_to(bundle).as_posix(): p.read_bytes() for p in paths})

    one, other = files
    assert set(one) == set(other)
    assert {name for name in one if one[name] != other[name]} <= {"report.json", "report.html"}
    assert "tasks/tone/folded_kv.safetensors" in one
    assert "tasks/tone/selftest.safetensors" in one


# The forecast


def test_a_forecast_writes_nothing_and_says_what_it_would_cost(request_: ExportRequest) -> None:
    expected = forecast_export(request_)

    assert expected.passes == ("merge-products", "fuse-residual-norms", "link-functions")
    assert not request_.output.exists()
    assert [task.task for task in expected.tasks] == ["tone", "ask", "order"]
    assert [task.virtual_tokens for task in expected.tasks] == [3, 5, 4]
    assert [task.prompt_bytes for task in expected.tasks] == [3 * 24 * 4, 5 * 24 * 4, 1024]
    result = export_bundle(request_)
    assert result.forecast == expected


def test_the_forecasts_passes_are_those_that_run(request_: ExportRequest, tmp_path: Path) -> None:
    from dataclasses import replace

    options = BuildOptions(sampling="graph", candidates=9)
    result = export_bundle(replace(request_, options=options, dump_passes=tmp_path / "dump"))

    report = json.loads((result.bundle / "report.json").read_text())
    names = [record["name"] for record in report["passes"]]
    assert names == list(result.forecast.passes)
    expected = ["merge-products", "fuse-residual-norms", "sample-in-graph", "link-functions"]
    assert names == expected
    dumped = sorted(path.name for path in (tmp_path / "dump").glob("*.txt"))
    assert dumped == [
        "00-main-graph.onnx.txt",
        "01-merge-products.onnx.txt",
        "02-fuse-residual-norms.onnx.txt",
        "03-sample-in-graph.onnx.txt",
        "04-link-functions.onnx.txt",
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [BuildOptions(), BuildOptions("int8", block=16)])
def test_the_forecasts_bytes_are_nearly_those_of_the_file(
    tmp_path: Path, family: str, options: BuildOptions
) -> None:
    base = write_tiny_base(tmp_path / "base", family, blocks=True)
    table = random_table(base, tmp_path / "table.safetensors")
    request = ExportRequest(table, base, tmp_path / "bundle", options=options, measure_parity=False)

    expected = export_bundle(request).forecast

    stored = (tmp_path / "bundle" / "base" / "model.onnx.data").stat().st_size
    assert expected.base.weight_bytes == pytest.approx(stored, rel=0.25)
    weights = load_weights(open_checkpoint(base), read_decoder_config(base))
    assert expected.base.parameters == sum(array.size for array in weights.values())


def test_costs_of_a_known_base() -> None:
    from pl_compile.config.contract import GraphContract
    from pl_compile.config.decoder import DecoderConfig
    from pl_compile.families.weights import Biases

    smollm2 = DecoderConfig(
        family="llama",
        layers=30,
        hidden=576,
        heads=9,
        kv_heads=3,
        head_dim=64,
        ffn=1536,
        vocab=49152,
        positions=8192,
        norm_eps=1e-5,
        tied=True,
        rope_theta=1e5,
        own=Biases(attention_bias=False, mlp_bias=False),
    )
    contract = GraphContract(30, 3, 64, 576, 49152, 1024, "input")

    floats = base_cost(smollm2, contract, BuildOptions("none"))
    four = base_cost(smollm2, contract, BuildOptions("int4"))

    assert floats.parameters == 134_515_008
    assert floats.weight_bytes == 4 * 134_515_008
    assert floats.operations_per_token == 2 * 106_168_320
    assert floats.kv_bytes_per_token == 2 * 30 * 3 * 64 * 4
    assert four.weight_bytes == pytest.approx(98.3e6, rel=0.01)


# The report


class _Text(HTMLParser):
    """Collects what a page would load, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [str(value) for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_has_every_comparison_and_the_page_needs_no_network(
    request_: ExportRequest,
) -> None:
    result = export_bundle(request_)

    report = json.loads((result.bundle / "report.json").read_text())
    for kind in ("torch", "folded", "alone", "live"):
        assert [row["task"] for row in report["checks"][kind]] == ["tone", "ask", "order"]
    assert all(row["first_divergence"] is None for row in report["checks"]["torch"])
    assert all(row["is_live"] for row in report["checks"]["live"])
    assert {"read", "graph", "write", "checks"} <= set(report["seconds"])
    assert report["parity"] == "passed"
    page = (result.bundle / "report.html").read_text(encoding="utf-8")
    parser = _Text()
    parser.feed(page)
    assert parser.open == []
    assert parser.loads == []
    assert "http" not in page
    for words in ("Against torch", "What it costs", "Task lint", "Is the prompt alive?", "Passes"):
        assert words in parser.text
    assert page.count("<svg") == 5


def test_names_from_outside_cannot_write_into_the_page() -> None:
    from pl_compile.report.page import _bars, _table

    page = _table(["<b>"], [["<script>"]]) + _bars([("<script>", 1.0, "<i>")])

    assert "<script>" not in page
    assert "<i>" not in page


def test_a_prompt_that_changes_nothing_fails_the_bundle(
    request_: ExportRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = OnnxRuntimeEngine.step

    def without_prompts(self: OnnxRuntimeEngine, given: Step) -> Any:
        ids = np.where(given.input_ids >= self.vocab, 0, given.input_ids)
        return step(self, replace(given, input_ids=ids))

    monkeypatch.setattr(OnnxRuntimeEngine, "step", without_prompts)

    result = export_bundle(request_)

    assert result.verdict == "failed"
    assert read_bundle(result.bundle).manifest.parity == "failed"
    report = json.loads((result.bundle / "report.json").read_text())
    live = {row["task"]: row["is_live"] for row in report["checks"]["live"]}
    assert not live["tone"]
    assert "the prompt of task 'tone' changes nothing" in result.failures
    assert "changes nothing" in (result.bundle / "report.html").read_text()


def test_rows_that_see_their_neighbours_fail_the_bundle(
    request_: ExportRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = OnnxRuntimeEngine.step

    def leaking(self: OnnxRuntimeEngine, given: Step) -> Any:
        logits, tokens = step(self, given)
        return logits + 0.5 * (len(logits) - 1), tokens

    monkeypatch.setattr(OnnxRuntimeEngine, "step", leaking)

    result = export_bundle(request_)

    assert any("from the same, row by row" in failure for failure in result.failures)


def test_lint_finds_what_training_does_not_leave(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    from dataclasses import replace

    from pl_compile.artifact.prompt_table import read_prompt_table, write_prompt_table

    base = tiny_bases["llama"]
    path = random_table(base, tmp_path / "table.safetensors")
    table = read_prompt_table(path)
    rows = table.entry("tone").rows.copy()
    rows[0], rows[1] = 0.0, 400.0
    tone = replace(table.entry("tone"), rows=rows, rules=SequenceRules())
    write_prompt_table(replace(table, entries={**table.entries, "tone": tone}), path)

    result = export_bundle(ExportRequest(path, base, tmp_path / "bundle", measure_parity=False))

    report = json.loads((result.bundle / "report.json").read_text())
    found = report["lint"][0]["findings"]
    assert [finding.split(":")[0] for finding in found] == [
        "a virtual token is all zeros",
        found[1].split(":")[0],
        "other tasks of this bundle begin with BOS, this one does not",
        "no EOS ends its answers",
    ]
    assert "times as long as the base's embeddings" in found[1]


def test_lint_compares_rows_with_embeddings_as_the_first_layer_sees_them(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_bases["gemma3_text"]
    table = random_table(base, tmp_path / "table.safetensors")
    embed = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings()
    rows = embed(torch.arange(embed.num_embeddings)).detach()

    result = export_bundle(ExportRequest(table, base, tmp_path / "bundle", measure_parity=False))

    report = json.loads((result.bundle / "report.json").read_text())
    expected = float(rows.norm(dim=1).quantile(0.5))
    assert report["lint"][0]["embedding_norm"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("quantize", ["none", "int4"])
def test_the_report_of_an_older_export_can_be_written_anew(
    block_request: ExportRequest, tmp_path: Path, quantize: Any
) -> None:
    data = write_jsonl(tmp_path / "examples.jsonl", tiny_examples(4))
    options = BuildOptions(quantize, block=16 if quantize == "int4" else None)
    result = export_bundle(
        replace(
            block_request,
            target="onnx-cpu",
            options=options,
            evaluate=(data,) if quantize == "int4" else (),
            measure_parity=False,
        )
    )
    report = json.loads((result.bundle / "report.json").read_text())
    older = {key: value for key, value in report.items() if key != "choices"}
    older["checks"] = {kind: rows for kind, rows in report["checks"].items() if kind != "tokens"}
    for lint in older["lint"]:
        lint["largest_norm"] = None  # it was no finite number
    row = {"task": "tone", "max_abs_difference": None, "largest_logit": 1.0, "rows": 1, "steps": 2}
    row |= {"first_divergence": None, "equal_tokens": 0, "tolerance": 0.1, "passed": False}
    row |= {"reference": "torch 2.6", "tokens_needed": 1.0}
    older["checks"]["torch"] = [row]
    older["effect"] = []
    for row in report["effect"]:
        kept = {key: value for key, value in row.items() if key not in ("stored", "scores")}
        older["effect"].append({**kept, row["stored"]: row["scores"]})
    older["weather"] = older["cost"]["colour"] = "as a later release wrote it"
    (result.bundle / "report.json").write_text(json.dumps(older))
    staging = tmp_path / "staging"
    staging.mkdir()

    _report(read_bundle(result.bundle), staging, [])

    page = (staging / "report.html").read_text()
    assert ">inf<" in page
    assert ("<th>int4</th><th>float32</th>" in page) == (quantize == "int4")
    anew = json.loads((staging / "report.json").read_text())
    assert anew == {**older, "plans": []}


# Room


@pytest.mark.parametrize(
    ("options", "places"), [(BuildOptions("none"), 1), (BuildOptions("int4", block=16), 2)]
)
def test_room_for_floats_is_asked_where_scores_need_them_beside_the_bundle(
    block_request: ExportRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: BuildOptions,
    places: int,
) -> None:
    class EnoughError(Exception):
        """All of the room was asked for."""

    def no_more(*_: object) -> None:
        raise EnoughError

    asked: list[Path] = []
    monkeypatch.setattr(forecast_page, "check_room", lambda path, **_: asked.append(path))
    monkeypatch.setattr(export_page, "load_weights", no_more)
    data = write_jsonl(tmp_path / "examples.jsonl", tiny_examples(4))

    with pytest.raises(EnoughError):
        export_bundle(replace(block_request, target="onnx-cpu", options=options, evaluate=(data,)))

    assert len(asked) == places


def test_a_full_disk_is_told_before_anything_is_read(
    request_: ExportRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1000))
    monkeypatch.setattr(export_page, "load_weights", lambda *_: pytest.fail("weights were read"))

    with pytest.raises(ExportError) as error:
        export_bundle(request_)

    assert "1 KB free on the disk of" in str(error.value)
    assert re.search(r"expected about [1-9]\d* (KB|MB)\. ", str(error.value))
    assert "Make room, or choose another --output." in str(error.value)
    assert not request_.output.exists()


def test_too_little_memory_is_told_before_anything_is_read(
    request_: ExportRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:      2048 kB\n")
    monkeypatch.setattr(room, "_MEMINFO", meminfo)

    with pytest.raises(ExportError) as error:
        export_bundle(request_)

    assert "2097 KB of memory available; expected about" in str(error.value)
    assert not request_.output.exists()


def test_memory_is_not_checked_where_the_system_does_not_say_how_much_there_is(
    request_: ExportRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "none")

    assert export_bundle(request_).verdict == "passed"


def test_equal_prompts_under_two_names_are_alive(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    from dataclasses import replace

    from pl_compile.artifact.prompt_table import read_prompt_table, write_prompt_table

    base = tiny_bases["llama"]
    path = random_table(base, tmp_path / "table.safetensors")
    table = read_prompt_table(path)
    tone = table.entry("tone")
    twin = replace(tone, task=replace(tone.task, taskname="twin"))
    write_prompt_table(replace(table, entries={"tone": tone, "twin": twin}), path)

    result = export_bundle(ExportRequest(path, base, tmp_path / "bundle"))

    assert result.verdict == "passed"
    report = json.loads((result.bundle / "report.json").read_text())
    assert [row["other"] for row in report["checks"]["live"]] == [None, None]


@pytest.mark.parametrize(("where", "found"), [("taken", "a file of that"), ("bundle/in", "inside")])
def test_dumps_that_cannot_be_kept_are_refused_first(
    request_: ExportRequest, tmp_path: Path, where: str, found: str
) -> None:
    from dataclasses import replace

    from pl_compile.errors import PlcError

    (tmp_path / "taken").write_text("")

    with pytest.raises(PlcError, match=found):
        export_bundle(replace(request_, dump_passes=tmp_path / where))


def test_a_dump_replaces_an_earlier_one_and_nothing_else(
    request_: ExportRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    dump = tmp_path / "dump"
    dump.mkdir()
    monkeypatch.chdir(dump)  # no folder is moved away: it may be the current one
    request = replace(request_, dump_passes=Path())
    (dump / "passes.json").write_text("of somebody else")

    with pytest.raises(ArtifactError) as caught:
        export_bundle(request)

    assert str(caught.value) == (
        "writing .: a folder with other things in it: passes.json. "
        "Move it elsewhere, or choose another --dump-passes."
    )
    assert [path.name for path in dump.iterdir()] == ["passes.json"]

    (dump / "rank1").mkdir()
    old = ("passes.json", "00-main-graph.onnx.txt", "77-x.onnx.txt", "rank1/00-main-graph.onnx.txt")
    for name in old:
        (dump / name).write_text("old")
    export_bundle(request)

    left = sorted(path.name for path in dump.rglob("*.*"))
    assert left[0] == "00-main-graph.onnx.txt"
    assert "77-x.onnx.txt" not in left
    assert left.count("00-main-graph.onnx.txt") == 1
    assert (dump / "passes.json").read_text() != "old"


def test_data_that_cannot_be_read_is_told_by_a_dry_run(
    request_: ExportRequest, tmp_path: Path
) -> None:
    from dataclasses import replace

    from pl_compile.errors import DataError

    options = BuildOptions("int8", block=0)

    with pytest.raises(DataError, match=r"none\.jsonl"):
        forecast_export(replace(request_, options=options, evaluate=(tmp_path / "none.jsonl",)))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"precision": 3, "effect": []}', '{"a": NaN}'])
def test_a_report_that_is_none_is_refused_where_it_is_written_anew(
    block_request: ExportRequest, tmp_path: Path, text: str
) -> None:
    bundle = read_bundle(export_bundle(replace(block_request, measure_parity=False)).bundle)
    (bundle.folder / "report.json").write_text(text)

    with pytest.raises(ArtifactError) as error:
        _report(bundle, tmp_path, [])

    said = str(error.value)
    assert said.startswith(f"reading {bundle.folder / 'report.json'}: ")
    assert said.endswith(". Remove it: no runtime reads it.")
    assert "not a report of an export" in said or "expected a JSON object" in said
    assert list(tmp_path.glob("report.*")) == []


def test_a_table_of_another_vocabulary_than_its_base_is_not_exported(
    block_request: ExportRequest, tmp_path: Path
) -> None:
    table = read_prompt_table(block_request.table)
    wrong = replace(table, base=replace(table.base, vocab=table.base.vocab + 7))
    write_prompt_table(wrong, tmp_path / "wrong.safetensors")

    with pytest.raises(FingerprintError, match=f"vocab {table.base.vocab + 7}; expected hidden"):
        export_bundle(replace(block_request, table=tmp_path / "wrong.safetensors"))

    assert not block_request.output.exists()
