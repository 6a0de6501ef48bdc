"""Answers that are copied from a field: parts of it, in few steps, the same as token by token."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows_noted import feeds_noted

from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.runtime import Request, Sampling, Session
from pl_compile.runtime.continuous import Continuous
from pl_compile.runtime.requests import Event, Result
from pl_compile.runtime.row_maker import RowMaker
from pl_compile.runtime.rows import Row
from pl_compile.runtime.stepping import Batch, Output
from pl_compile.testing import random_table, write_tiny_base
from pl_compile.text.words import words_of

TASKS: tuple[dict[str, Any], ...] = (
    {
        "taskname": "copy",
        "prompt_template": "<|VIRTUAL_PROMPT_0|> {text}\n{question} => {answer}",
        "total_virtual_tokens": 3,
        "truncate_field": "text",
        "answer": {"span": "text"},
    },
    {
        "taskname": "say",
        "prompt_template": "<|VIRTUAL_PROMPT_0|> {text} => {answer}",
        "total_virtual_tokens": 4,
        "truncate_field": "text",
    },
)
TEXT = "The quick fox, J.D. (née 1987), jumps over the lazy dog 🦊.\nThe dog was cold, so cold."
CAPACITY = 150


@pytest.fixture(scope="module", params=["native-cpu int8", "onnx-cpu none"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    target, _, quantize = request.param.partition(" ")
    folder = tmp_path_factory.mktemp("copied")
    base = write_tiny_base(folder / "base", "llama", seed=8, blocks=True)
    config = json.loads((base / "config.json").read_text())
    config["max_position_embeddings"] = CAPACITY
    config["eos_token_id"] = 300  # one that this base does not write after each token
    (base / "config.json").write_text(json.dumps(config))
    table = random_table(base, folder / "table.safetensors", tasks=TASKS)
    asked = ExportRequest(
        table,
        base,
        folder / "bundle",
        target=target,
        options=BuildOptions(quantize),
        capacity=CAPACITY,
        measure_parity=False,
    )
    return Session.open(export_bundle(asked).bundle, max_batch=4)


def copying(
    text: str = TEXT, question: str = "who?", lengths: tuple[int, int] = (64, 0), **options: Any
) -> Request:
    """A request; `lengths` are its `max_tokens` and `min_tokens`."""
    options = {"max_tokens": lengths[0], "min_tokens": lengths[1], **options}
    return Request("copy", {"text": text, "question": question}, **options)


def row_of(session: Session, request: Request) -> Row:
    return RowMaker(session.tokenizer, session.tasks, session.engine).row(0, request, "testing")


def events_of(session: Session, rows: Sequence[Row]) -> dict[Row, list[Event]]:
    flow = Continuous(session.engine)
    found: dict[Row, list[Event]] = {row: [] for row in rows}
    for row in rows:
        flow.submit(row)
    while flow.is_busy:
        for row, event in flow.step():
            found[row].append(event)
    return found


def one_by_one(session: Session, request: Request) -> Result:
    """The answer, with nothing drafted."""
    row = row_of(session, request)
    row.branches = False
    result = events_of(session, [row])[row][-1].result
    assert result is not None
    return result


def spans_of(text: str) -> set[str]:
    words = words_of(text)
    return {text[a.begin : b.end] for index, a in enumerate(words) for b in words[index:]}


REQUESTS = st.builds(
    copying,
    text=st.sampled_from([TEXT, "cold cold cold cold cold", "fox", "", TEXT * 3, "J.D., a\nb c"]),
    question=st.text("abc ?", max_size=4),
    lengths=st.sampled_from([(1, 0), (2, 1), (5, 0), (20, 9), (64, 0), (64, 30)]),
    stop=st.sampled_from([(), ("o",), (". ",)]),
    bad_words=st.sampled_from([(), ("cold",), ("e",)]),
    log_probs=st.sampled_from([None, None, 2]),
    use_prompt=st.booleans(),
    sampling=st.sampled_from(
        [
            Sampling(),
            Sampling(repetition_penalty=1.3),
            Sampling(repetition_penalty=0.7),
            Sampling(no_repeat_ngram=2),
            Sampling(temperature=1.3, seed=4),
        ]
    ),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests=st.lists(REQUESTS, min_size=1, max_size=5))
def test_answers_are_those_of_token_by_token_whatever_is_beside_them(
    session: Session, requests: list[Request]
) -> None:
    others = [Request("say", {"text": "who was there"}, max_tokens=9)] * 2
    rows = [row_of(session, request) for request in [*requests, *others]]

    found = events_of(session, rows)

    for row, request in zip(rows, requests, strict=False):
        events = found[row]
        result = events[-1].result
        assert result is not None
        assert result == one_by_one(session, request)
        assert "".join(event.text for event in events) == result.text
        assert result.text in str(request.fields["text"])
        if result.finish_reason == "stop" and not request.stop and not request.bad_words:
            assert result.text in {"", *spans_of(str(request.fields["text"]))}


def test_a_draft_that_holds_saves_steps(session: Session) -> None:
    """Without branches nothing is drafted: each token has a step, as before."""
    saved = 0
    for question in "abcdefgh":
        request = copying(question=question, max_tokens=30)
        with feeds_noted() as feeds:
            (result,) = session.generate([request])
        with feeds_noted() as slow:
            assert one_by_one(session, request) == result
        saved += len(slow) - len(feeds)
        if not session.engine.branches:
            assert feeds == slow

    assert (saved > 0) == session.engine.branches


def test_without_constrain_any_text_is_written(session: Session) -> None:
    requests = [copying(question=each, max_tokens=20, constrain=False) for each in "abcdef"]

    texts = [result.text for result in session.generate(requests)]

    assert any(text not in TEXT for text in texts)
    assert [row_of(session, request).spans for request in requests] == [None] * 6


def test_an_empty_field_has_nothing_to_copy(session: Session) -> None:
    (result,) = session.generate([copying(text=" \n ")])

    assert (result.text, result.token_ids, result.finish_reason) == ("", (), "stop")


def test_what_a_cut_took_away_is_not_copied(session: Session) -> None:
    text = "cold " * 200 + "fox"
    (result,) = session.generate([copying(text=text, max_tokens=4)])

    assert result.cut_tokens > 0
    assert "fox" not in result.text
    first = row_of(session, copying(text="cold fox")).spans
    cut = row_of(session, copying(text=text)).spans
    assert first is not None
    assert cut is not None
    assert len(first.allowed()) == 2
    assert len(cut.allowed()) == 1


def test_a_sampled_answer_draws_once_for_each_token(session: Session) -> None:
    """Tokens that alone may follow take a draw as well: what is written later stays the same."""
    request = copying(sampling=Sampling(temperature=5.0, seed=3), max_tokens=12)

    results = {one_by_one(session, request), *session.generate([request] * 3)}

    assert len(results) == 1


def test_numbers_that_are_not_finite_after_a_draft_do_not_end_a_row(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of a draft is nothing that the answer asked for."""
    if not session.engine.branches:
        pytest.skip("needs an engine that takes branches; with one: native-cpu-int8 of this test")
    request = copying(question="b", max_tokens=20, min_tokens=20)
    (expected,) = session.generate([request])
    feed = Batch.feed

    def broken_at_end(batch: Batch, ids: Any, *given: Any, **more: Any) -> dict[int, Output]:
        outputs = feed(batch, ids, *given, **more)
        for output in outputs.values():
            if len(output.after) > 1:
                output.after[-1] = float("nan")
        return outputs

    monkeypatch.setattr(Batch, "feed", broken_at_end)

    assert session.generate([request]) == [expected]


def test_a_bundle_says_what_is_copied(session: Session, plc: Any) -> None:
    bundle = session._bundle
    assert bundle is not None
    code, out, _ = plc("inspect", str(bundle.folder))
    assert code == 0
    assert Path(bundle.folder / "tasks" / "copy" / "task.json").read_text().count('"span"') == 1
    assert '"answer"' not in (bundle.folder / "tasks" / "say" / "task.json").read_text()
    assert "copy" in out
