"""Scoring a bundle: which metric, what the base alone gets, and what cannot be scored."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pl_compile.artifact.prompt_table import read_prompt_table, write_prompt_table
from pl_compile.driver.answer_file import answer_file
from pl_compile.driver.evaluate import EvalOptions, evaluate, session_on_reference, session_on_table
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import ArtifactError, ConfigError, DataError, FingerprintError, RequestError
from pl_compile.runtime import Session
from pl_compile.testing import random_table, tiny_examples, write_jsonl


@pytest.fixture(scope="module")
def work(tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    table = random_table(tiny_bases["llama"], folder / "table.safetensors", prefix=True)
    export_bundle(
        ExportRequest(table, tiny_bases["llama"], folder / "bundle", measure_parity=False)
    )
    write_jsonl(folder / "rows.jsonl", tiny_examples(10))
    return folder


@pytest.fixture(scope="module")
def session(work: Path) -> Session:
    return Session.open(work / "bundle")


def test_each_task_gets_the_metric_of_its_answers(session: Session, work: Path) -> None:
    scores = evaluate(session, [work / "rows.jsonl"], EvalOptions())

    assert [(score.task, score.metric, score.examples) for score in scores] == [
        ("tone", "accuracy", 5),
        ("ask", "squad", 5),
    ]
    for score in scores:
        assert score.without_prompt is not None
        assert score.with_prompt["total"] == score.without_prompt["total"] == 5
    assert set(scores[0].predictions) <= {"positive", "negative", "neutral"}


def test_right_predictions_score_a_hundred(session: Session, work: Path, tmp_path: Path) -> None:
    rows = [row for row in tiny_examples(10) if row["taskname"] == "tone"]
    first = evaluate(session, [write_jsonl(tmp_path / "a.jsonl", rows)], EvalOptions())[0]
    answered = [{**row, "label": text} for row, text in zip(rows, first.predictions, strict=True)]

    second = evaluate(session, [write_jsonl(tmp_path / "b.jsonl", answered)], EvalOptions())[0]

    assert second.with_prompt["accuracy"] == 100.0


def test_several_right_answers_are_a_list(session: Session, tmp_path: Path) -> None:
    rows = [
        {**row, "answer": [row["answer"], "another"]}
        for row in tiny_examples(6)
        if row["taskname"] == "ask"
    ]

    score = evaluate(session, [write_jsonl(tmp_path / "rows.jsonl", rows)], EvalOptions())[0]

    assert score.metric == "squad"


def test_the_bundle_and_its_reference_answer_alike(
    session: Session, work: Path, tiny_bases: dict[str, Path]
) -> None:
    reference = session_on_reference(work / "bundle", tiny_bases["llama"])

    scores = evaluate(
        session, [work / "rows.jsonl"], EvalOptions(baseline=False), reference=reference
    )

    assert [score.same_as_reference for score in scores] == [100.0, 100.0]
    assert [score.without_prompt for score in scores] == [None, None]


def test_a_table_scores_like_its_bundle(
    session: Session, work: Path, tiny_bases: dict[str, Path]
) -> None:
    on_torch = session_on_table(work / "table.safetensors", tiny_bases["llama"])
    options = EvalOptions(limit=3)

    scores = evaluate(on_torch, [work / "rows.jsonl"], options)

    assert scores == evaluate(session, [work / "rows.jsonl"], options)


def test_a_task_with_a_prefix_is_scored_on_bundle_and_torch_alike(
    session: Session, work: Path, tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    rows = [
        {"taskname": "order", "request": request, "order": "lights off"}
        for request in ("it is too dark", "a parcel or a bill", "off")
    ]
    data = [write_jsonl(tmp_path / "rows.jsonl", rows)]
    on_torch = session_on_table(work / "table.safetensors", tiny_bases["llama"])

    scores = evaluate(session, data, EvalOptions(), reference=on_torch)

    assert [score.same_as_reference for score in scores] == [100.0]
    assert replace(scores[0], same_as_reference=None) == evaluate(on_torch, data, EvalOptions())[0]


def test_a_table_with_a_prefix_of_another_base_is_refused(
    work: Path, tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    table = read_prompt_table(work / "table.safetensors")
    wrong = replace(table.entry("order"), prefix_kv=np.zeros((2, 2, 2, 4, 9), np.float32))
    path = tmp_path / "table.safetensors"
    write_prompt_table(replace(table, entries={"order": wrong}), path)

    with pytest.raises(ArtifactError) as caught:
        session_on_table(path, tiny_bases["llama"])

    assert str(caught.value) == (
        f"reading the prompt table {path}: prefix of 'order': float32 (2, 2, 2, 4, 9); "
        "expected float32 (2, 2, 2, 4, 8). Train the task again on this base."
    )


def test_a_reference_of_another_base_is_refused(work: Path, tiny_bases: dict[str, Path]) -> None:
    with pytest.raises(FingerprintError, match="Give the base that the bundle was exported from"):
        session_on_reference(work / "bundle", tiny_bases["gpt2"])


def test_data_without_answers_cannot_be_scored(session: Session, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"taskname": "tone", "sentence": "cold"}])

    with pytest.raises(DataError, match=r"rows\.jsonl:1 has no answer field 'label'"):
        evaluate(session, [path], EvalOptions())


class NoAnswers(Session):
    """A session that must not be asked."""

    def stream(self, requests: object) -> Any:
        raise AssertionError("an answer was made")


@pytest.mark.parametrize(
    ("label", "metric", "problem"),
    [
        ("Positive", "auto", r"the answer 'Positive' is not one of the choices \["),
        (["good", "fine"], "exact_match", r"the answer \['good', 'fine'\] is not one of"),
        ([], "exact_match", r"the answer \[\] is not one of"),
        (["positive", "neutral"], "auto", "2 right answers, expected one"),
        ("positive", "intent_slot", "'positive', expected references such as 'Intent: NAME"),
    ],
)
def test_an_answer_that_cannot_be_scored_is_refused_before_any_is_made(
    session: Session, tmp_path: Path, label: Any, metric: str, problem: str
) -> None:
    rows = [
        {"taskname": "tone", "sentence": "warm", "label": "positive"},
        {"taskname": "tone", "sentence": "cold", "label": label},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    asked = NoAnswers(session.tokenizer, session.tasks, session.engine)

    with pytest.raises(DataError, match=rf"rows\.jsonl:2: {problem}"):
        evaluate(asked, [path], EvalOptions(metric=metric))


def test_blanks_around_a_right_choice_do_not_count(session: Session, tmp_path: Path) -> None:
    rows = [
        {"taskname": "tone", "sentence": "cold", "label": label}
        for label in ("positive", "negative", "neutral")
    ]
    padded = [{**row, "label": f" {row['label']}\n"} for row in rows]

    plain, around = (
        evaluate(session, [write_jsonl(tmp_path / "rows.jsonl", each)], EvalOptions())[0]
        for each in (rows, padded)
    )

    assert around.with_prompt == plain.with_prompt


def test_all_answers_that_cannot_be_scored_are_named_together(
    session: Session, tmp_path: Path
) -> None:
    rows = [
        {"taskname": "tone", "sentence": "cold", "label": "chilly"},
        {"taskname": "ask", "question": "who?", "place": "town"},
    ]

    with pytest.raises(DataError) as caught:
        evaluate(session, [write_jsonl(tmp_path / "rows.jsonl", rows)], EvalOptions())

    assert "rows.jsonl:1: the answer 'chilly'" in str(caught.value)
    assert "rows.jsonl:2 has no answer field 'answer'" in str(caught.value)


def test_examples_of_all_tasks_are_checked_before_the_first_is_answered(
    session: Session, tmp_path: Path
) -> None:
    rows = [
        {"taskname": "ask", "question": "who?", "place": "town", "answer": "him"},
        {"taskname": "tone", "sentence": "cold " * 2000, "label": "negative"},
        {"taskname": "ask", "question": "who?", "place": "town " * 2000, "answer": "him"},
    ]
    asked = NoAnswers(session.tokenizer, session.tasks, session.engine)

    with pytest.raises(RequestError) as caught:
        evaluate(asked, [write_jsonl(tmp_path / "rows.jsonl", rows)], EvalOptions())

    assert "rows.jsonl:2: " in str(caught.value)
    assert "rows.jsonl:3: " in str(caught.value)


def test_an_export_refuses_labels_that_are_no_choice_before_it_builds(
    work: Path, tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"taskname": "tone", "sentence": "cold", "label": "chilly"}]
    request = ExportRequest(
        work / "table.safetensors",
        tiny_bases["llama"],
        tmp_path / "bundle",
        evaluate=(write_jsonl(tmp_path / "rows.jsonl", rows),),
    )

    with pytest.raises(DataError, match=r"rows\.jsonl:1: the answer 'chilly'"):
        export_bundle(request)


def test_it_is_said_which_examples_are_cut_to_fit(
    session: Session, tmp_path: Path, told: Any
) -> None:
    rows = [
        {"taskname": "ask", "question": "who " * times, "place": "town", "answer": "him"}
        for times in (1, 2000)
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)

    evaluate(session, [path], EvalOptions(baseline=False), progress=told)
    evaluate(session, [path], EvalOptions(baseline=False, tell_cuts=False), progress=told)
    answer_file(session, path, {"max_tokens": 4}, progress=told)

    assert len(told.lines) == 2
    for line in told.lines:
        assert re.fullmatch(
            rf"cut 1 of 2 to fit {session.engine.capacity} tokens, by up to \d+ "
            rf"\({re.escape(str(path))}:2\)",
            line,
        )


def test_an_option_that_no_request_may_have_is_said_once(session: Session, work: Path) -> None:
    with pytest.raises(RequestError) as error:
        answer_file(session, work / "rows.jsonl", {"stop": ("",)})

    assert str(error.value).count("an empty stop text") == 1


def test_an_unknown_metric_lists_the_known_ones(session: Session, work: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"metric 'acuracy' does not exist\. Did you mean 'accuracy'"
    ):
        evaluate(session, [work / "rows.jsonl"], EvalOptions(metric="acuracy"))
