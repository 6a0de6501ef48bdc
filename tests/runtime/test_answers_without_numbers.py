"""A request whose logits are not numbers has no answer, and an error says so; others are
answered."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pl_compile.artifact.tensors import read_tensor_file, tensor_bytes
from pl_compile.cli.main import plc
from pl_compile.driver.evaluate import EvalOptions, evaluate
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import AnswerError, PlcError, RequestError
from pl_compile.runtime import Request, Session
from pl_compile.runtime.stepping import Batch, Output
from pl_compile.testing import random_table, sign_bundle, write_jsonl, write_tiny_base

GOOD = [
    Request("tone", {"sentence": "the year was cold"}),
    Request("ask", {"question": "who was there?", "place": "the kitchen"}, max_tokens=6),
    Request("ask", {"question": "who?", "place": "a"}, max_tokens=9),
]
BAD = Request("order", {"request": "timer 12 minutes"}, max_tokens=4)
MIXED = [GOOD[0], BAD, GOOD[1], BAD, GOOD[2]]


# The last one has heads that no kernel takes: its attention reads the whole cache, as TensorRT's.
@pytest.fixture(scope="module", params=["onnx-cpu", "native-cpu", "whole-cache"])
def bundles(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A bundle, and one whose task `order` computes NaN."""
    folder = tmp_path_factory.mktemp("numbers")
    whole_cache = request.param == "whole-cache"
    target = "onnx-cpu" if whole_cache else request.param
    base = write_tiny_base(folder / "base", "llama", blocks=not whole_cache)
    table = random_table(base, folder / "table.safetensors", prefix=True)
    asked = ExportRequest(
        table, base, folder / "whole", target=target, capacity=60, measure_parity=False
    )
    whole = export_bundle(asked).bundle
    broken = folder / "broken"
    shutil.copytree(whole, broken)
    path = broken / "tasks/order/prefix_kv.safetensors"
    prefix = read_tensor_file(path, doing="reading").tensors["prefix_kv"]
    path.write_bytes(tensor_bytes({"prefix_kv": np.copysign(np.float32(3e38), prefix)}))
    sign_bundle(broken)
    return whole, broken


@pytest.fixture
def requests_file(tmp_path: Path) -> Path:
    rows = [{"taskname": each.task, **each.fields} for each in MIXED]
    return write_jsonl(tmp_path / "requests.jsonl", rows)


def test_they_are_told_whatever_numpy_does_about_errors(bundles: tuple[Path, Path]) -> None:
    session = Session.open(bundles[1])

    with np.errstate(all="raise"), pytest.raises(AnswerError) as error:
        session.generate(MIXED)

    assert set(error.value.places) == {1, 3}


@pytest.mark.parametrize("max_batch", [1, 2, 16])
def test_the_others_are_answered_as_ever(bundles: tuple[Path, Path], max_batch: int) -> None:
    whole, broken = bundles
    expected = Session.open(whole).generate(GOOD)
    session = Session.open(broken, max_batch=max_batch)

    with pytest.raises(AnswerError) as told:
        session.generate(MIXED)

    assert str(told.value).count("logits that are not finite numbers") == 2
    assert all(f"request {i} (task 'order')" in str(told.value) for i in (1, 3))
    assert sorted(told.value.places) == [1, 3]
    assert told.value.results == (expected[0], None, expected[1], None, expected[2])
    assert session.generate(GOOD) == expected


def test_nothing_of_it_stays_in_the_cache(bundles: tuple[Path, Path]) -> None:
    """A long request fails. Short ones then use its rows, and what it wrote stays after them."""
    whole, broken = bundles
    short = [Request("ask", {"question": "a", "place": ""}, max_tokens=n) for n in (3, 9, 20)]
    long = Request("order", {"request": "timer 12 minutes " * 9}, max_tokens=4)
    session = Session.open(broken, max_batch=4)

    with pytest.raises(AnswerError) as told:
        session.generate([*short, long])
    with pytest.raises(AnswerError):
        session.generate([long] * 4)

    expected = Session.open(whole).generate(short)
    assert list(told.value.results) == [*expected, None]
    assert session.generate(short) == expected


def test_a_stream_hands_out_the_others_before_it_tells(bundles: tuple[Path, Path]) -> None:
    whole, broken = bundles
    texts = dict.fromkeys(range(len(MIXED)), "")

    def read(events: Iterator[object]) -> None:
        for event in events:
            texts[event.index] += event.text  # type: ignore[attr-defined]

    with pytest.raises(AnswerError):
        read(Session.open(broken, max_batch=3).stream(MIXED))

    answers = Session.open(whole).generate(GOOD)
    assert [texts[i].strip() for i in (0, 2, 4)] == [answer.text for answer in answers]
    assert texts[1] == texts[3] == ""


def test_a_row_that_fails_late_takes_nothing_with_it(
    bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session.open(bundles[0])
    alone = session.generate(GOOD)
    feed, steps = Batch.feed, 0

    def broken_feed(batch: Batch, *given: Any, **more: Any) -> dict[int, Output]:
        nonlocal steps
        outputs = feed(batch, *given, **more)
        steps += 1
        if steps == 3:
            outputs[max(outputs)].after[-1, 5] = np.nan
        return outputs

    monkeypatch.setattr(Batch, "feed", broken_feed)
    with pytest.raises(AnswerError) as told:
        session.generate(GOOD)

    (failed,) = told.value.places
    assert told.value.results[failed] is None
    others = [index for index in range(3) if index != failed]
    assert [told.value.results[i] for i in others] == [alone[i] for i in others]


def test_a_row_that_fails_leaves_nothing_where_its_stream_is_left(
    bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session.open(bundles[0])
    feed, clear = Batch.feed, Batch.clear
    cleared: list[int] = []

    def broken_feed(batch: Batch, *given: Any, **more: Any) -> dict[int, Output]:
        outputs = feed(batch, *given, **more)
        outputs[2].after[-1] = np.nan
        return outputs

    def noting_clear(batch: Batch, slots: Sequence[int]) -> None:
        clear(batch, slots)
        cleared.extend(slots)
        assert batch.cached(0, 4).any()
        assert not batch.cached(2, 4)[..., -1:, :].any()

    monkeypatch.setattr(Batch, "feed", broken_feed)
    monkeypatch.setattr(Batch, "clear", noting_clear)
    stream = session.stream(GOOD)
    next(stream)
    stream.close()

    assert cleared == [2]


def test_scores_of_labels_too(bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session.open(bundles[0])
    (expected,) = session.score(GOOD[:1])
    feed, steps = Batch.feed, 0

    def broken_feed(batch: Batch, *given: Any, **more: Any) -> dict[int, Output]:
        nonlocal steps
        outputs = feed(batch, *given, **more)
        steps += 1
        if steps == 1:
            outputs[0].after[:] = np.nan
        return outputs

    monkeypatch.setattr(Batch, "feed", broken_feed)
    with pytest.raises(AnswerError, match=r"request 0 \(task 'tone'\)") as told:
        session.score([GOOD[0], GOOD[0]])

    assert told.value.results == (None, expected)


def test_one_request_that_cannot_be_served_starts_none(bundles: tuple[Path, Path]) -> None:
    session = Session.open(bundles[0])
    stream = session.stream([GOOD[0], Request("tone", {})])

    with pytest.raises(RequestError, match="request 1"):
        next(stream)


def test_the_command_writes_the_good_answers_and_fails(
    bundles: tuple[Path, Path], requests_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"

    def run(*more: str) -> tuple[str, BaseException | None]:
        found = CliRunner().invoke(
            plc, ["generate", str(bundles[1]), "--input", str(requests_file), *more]
        )
        assert isinstance(found.exception, PlcError)
        assert found.exception.exit_code == 1
        assert f"{requests_file}:2 (task 'order')" in str(found.exception)
        return found.stdout, found.exception

    run("--output", str(output))
    lines = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [line["index"] for line in lines] == list(range(5))
    assert [line["finish_reason"] == "error" for line in lines] == [False, True, False, True, False]
    assert lines[1] == {
        "index": 1,
        "taskname": "order",
        "prediction": None,
        "finish_reason": "error",
    }
    assert json.loads(run("--json")[0])["answers"] == lines
    assert "(none)" in run()[0]


def _scored_rows() -> list[dict[str, str]]:
    rows = [{"taskname": "tone", "sentence": "the year was cold", "label": "neutral"}]
    return [*rows, {"taskname": "order", "request": "timer 12 minutes", "order": "timer"}]


def test_scores_of_the_other_tasks_are_kept(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", _scored_rows())

    with pytest.raises(AnswerError, match=rf"{data}:2 \(task 'order'\)") as told:
        evaluate(Session.open(bundles[1]), [data], EvalOptions())
    assert [score.task for score in told.value.results] == ["tone"]

    found = CliRunner().invoke(plc, ["eval", str(bundles[1]), "--data", str(data), "--json"])
    assert isinstance(found.exception, AnswerError)
    assert [task["task"] for task in json.loads(found.stdout)["tasks"]] == ["tone"]
