"""A report is a value: what is written is read back equal, and the page is drawn of it alone."""

import json
import math
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pl_compile.artifact.bundle import Precision
from pl_compile.artifact.plan_record import PlanRecord
from pl_compile.artifact.prompt_table import BaseIdentity
from pl_compile.checks.bundle_checks import Comparisons
from pl_compile.checks.lint import TaskLint
from pl_compile.checks.liveness import Liveness
from pl_compile.checks.parity import Parity
from pl_compile.config.build import Choice
from pl_compile.config.strict_json import with_null
from pl_compile.errors import ArtifactError
from pl_compile.passes.pipeline import PassRecord
from pl_compile.passes.quantize_weights import WeightError
from pl_compile.report.files import read_report, write_report
from pl_compile.report.model import BaseCost, Effect, Report, TaskCost, report_of
from pl_compile.report.page import report_page
from pl_compile.training.compare_tokens import TokenCheck


def record_of(report: Report) -> dict[str, Any]:
    """What a reader of its JSON finds."""
    record: dict[str, Any] = json.loads(json.dumps(with_null(asdict(report))))
    return record


# The rest of a plan's record.
PLAN: Any = (("prompt", "token"), "mask", "0" * 64, 1.5, 5000, 9000, {"SOFTMAX": 2})


@pytest.fixture
def report() -> Report:
    """One of each part, with a comparison that has no number."""
    parity = Parity("tone", "torch 9", 2, 3, math.inf, 1.5, 1e-3, 5, 1.0, 2, passed=False)
    return Report(
        parity="failed",
        failures=("task 'tone' has logits that are not finite numbers",),
        target="native-cpu",
        choices={"target": Choice("auto", "native-cpu", "its kernels run here")},
        base=BaseIdentity("tiny", "0123456789abcdef" * 4, 24, 397),
        precision=Precision("float32", "int4", 16, "round to nearest"),
        prompts="input",
        ranks=2,
        plans=(PlanRecord("tensorrt", "10.15", ("8.9",), *(2, 4, 90), *PLAN),),
        sampling="host",
        checks=Comparisons(
            torch=(parity,),
            not_compared=("task 'tone': the base's window was not compared",),
            tokens=(TokenCheck("tone", 30, 28, "two stand alone", "", prompts=4, note="fine"),),
            live=(Liveness("tone", 0.25, None, is_live=True),),
        ),
        lint=(TaskLint("tone", 0.5, math.inf, None, True, 5, 90, ("too long",)),),
        cost=BaseCost(1000, 4000, 4000, 2000, 64, 6400),
        tasks=(TaskCost("tone", 3, 288, 5, 5, 320, 2, 77, True, "5 tokens fewer"),),
        passes=(PassRecord("merge-products", {"heads": 4}, True, 0.25, 40, 4000),),
        weight_errors=(WeightError("layers.0.mlp.up.weight", 4, 0.05, 0.09, None, 512),),
        effect=(Effect("tone", "accuracy", 6, "int4", {"accuracy": 50.0}, {"accuracy": 60.0}, 80),),
        seconds={"read": 0.5, "graph": 1.0},
    )


def test_a_report_is_read_back_as_it_was_written(report: Report, tmp_path: Path) -> None:
    write_report(tmp_path, report)

    found = read_report(tmp_path)
    assert found is not None
    assert found[1] == report
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == report_page(report)
    record = json.loads((tmp_path / "report.json").read_text())
    assert found[0] == record
    assert record["checks"]["torch"][0]["max_abs_difference"] is None
    assert list(record) == list(asdict(report))


def test_no_report_is_read_where_there_is_none(tmp_path: Path) -> None:
    assert read_report(tmp_path) is None


def test_the_page_shows_every_part_of_the_report(report: Report) -> None:
    page = report_page(report)

    for text in (
        "tiny for native-cpu",
        "int4, blocks of 16, round to nearest",
        "target native-cpu (auto): its kernels run here",
        "has logits that are not finite numbers",
        ">inf<",
        "step 2",
        "28/30",
        "two stand alone; fine",
        "too long",
        "5 tokens fewer",
        "accuracy 50.0",
        "80.0 %",
        "layers.0.mlp.up",
        "heads 4",
        "10.15",
        "window was not compared",
    ):
        assert text in page


def test_nothing_enters_the_page_as_markup(report: Report) -> None:
    page = report_page(marked(report))

    assert "<mark>" not in page
    # Of a fingerprint, the start is shown.
    assert page.count("&lt;mark&gt;") > report_page(report).count("tone")


def marked(value: Any) -> Any:
    """A report whose texts all look like markup."""
    if isinstance(value, str):
        return f"<mark>{value}"
    if isinstance(value, tuple):
        return tuple(marked(each) for each in value)
    if isinstance(value, dict):
        return {marked(key): marked(each) for key, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{each.name: marked(getattr(value, each.name)) for each in fields(value)}
        )
    return value


def test_what_an_earlier_release_did_not_know_is_left_out(report: Report) -> None:
    record = record_of(report)
    for name in ("choices", "ranks", "plans"):
        del record[name]
    del record["checks"]["tokens"]
    record["effect"] = [{**record["effect"][0], "int4": {"accuracy": 50.0}}]
    for name in ("stored", "scores"):
        del record["effect"][0][name]

    read = report_of(record)

    assert read.effect == report.effect
    assert read == replace(
        report, choices={}, ranks=1, plans=(), checks=replace(report.checks, tokens=())
    )
    assert "Tokens against transformers" in report_page(report)
    assert "Tokens against transformers" not in report_page(read)


def test_keys_of_another_release_are_left_out(report: Report) -> None:
    record = {**record_of(report), "weather": "rain"}
    record["cost"] = {**record["cost"], "colour": "blue"}

    assert report_of(record) == report


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lint", {}),
        ("lint", [3]),
        ("tasks", [{"task": "tone"}]),
        ("seconds", {"read": "long"}),
        ("target", None),
        ("prompts", 7),
        ("sampling", "dice"),
        ("parity", "<script>"),
        ("precision", {"dtype": "f8", "quantization": "none", "block": None, "method": None}),
        ("precision", {"quantization": "int4", "block": None, "method": None}),
        ("cost", None),
    ],
)
def test_a_record_of_something_else_is_refused(
    report: Report, tmp_path: Path, name: str, value: Any
) -> None:
    write_report(tmp_path, report)
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    with pytest.raises(ArtifactError, match=r"not a report of an export .*Remove it"):
        read_report(tmp_path)
