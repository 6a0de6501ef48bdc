"""Requests that may only take so long, and requests that go first."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pl_compile.artifact.prompt_table import read_prompt_table, write_prompt_table
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.runtime import Event, Request, Result, Session
from pl_compile.runtime.continuous import Continuous
from pl_compile.runtime.row_maker import RowMaker
from pl_compile.runtime.rows import Row
from pl_compile.runtime.stepping import Output
from pl_compile.testing import random_table

CHOICES = ("nobody", "nobody at all", "everybody")


@pytest.fixture(scope="module")
def session(tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("timeouts")
    path = random_table(tiny_bases["llama"], folder / "table.safetensors")
    table = read_prompt_table(path)
    tone = table.entry("tone")
    tone = replace(tone, task=replace(tone.task, choices=CHOICES))
    write_prompt_table(replace(table, entries={**table.entries, "tone": tone}), path)
    asked = ExportRequest(
        path, tiny_bases["llama"], folder / "bundle", capacity=96, measure_parity=False
    )
    return Session.open(export_bundle(asked).bundle, max_batch=2)


class Flow:
    """Rows on an engine, and a clock that a test moves."""

    def __init__(self, session: Session) -> None:
        self.now = 100.0
        self.flow = Continuous(session.engine, clock=lambda: self.now)
        self._maker = RowMaker(session.tokenizer, session.tasks, session.engine)
        self.pieces: dict[Row, str] = {}
        self.results: dict[Row, Result] = {}

    def submit(self, request: Request) -> Row:
        row = self._maker.row(0, request, "testing")
        self.pieces[row] = ""
        self.flow.submit(row, request.priority)
        return row

    def step(self, seconds: float = 0.0) -> list[tuple[Row, Event]]:
        events = self.flow.step()
        self.now += seconds
        for row, event in events:
            self.pieces[row] += event.text
            if event.result is not None:
                self.results[row] = event.result
        return events

    def run(self, seconds: float = 0.0) -> None:
        while self.flow.is_busy:
            self.step(seconds)


def asked(text: str = "why?", **options: Any) -> Request:
    fields = {"question": text, "place": "a"}
    return Request("ask", fields, **{"max_tokens": 20, "min_tokens": 20, **options})


# Timeouts


def test_a_row_ends_with_its_text_so_far_when_its_time_is_over(session: Session) -> None:
    flow = Flow(session)
    short, long = asked(timeout=6.5), asked("who was there?")
    row, other = flow.submit(short), flow.submit(long)

    flow.run(seconds=1.0)

    whole, alone = session.generate([replace(short, timeout=None), long])
    result = flow.results[row]
    assert result.finish_reason == "timeout"
    assert len(result.token_ids) == 7
    assert result.token_ids == whole.token_ids[:7]
    assert result.text == flow.pieces[row] == session.tokenizer.decode([*result.token_ids]).strip()
    assert flow.results[other] == alone
    assert flow.flow.batch.entries == {}


def test_a_row_that_waits_ends_too_though_no_slot_becomes_free(session: Session) -> None:
    flow = Flow(session)
    running = [flow.submit(asked(text)) for text in ("a", "b")]
    waiting, patient = flow.submit(asked(timeout=3.0)), flow.submit(asked(timeout=1000.0))

    while waiting not in flow.results:
        flow.step(seconds=1.0)

    result = flow.results[waiting]
    assert (result.text, result.token_ids, result.finish_reason) == ("", (), "timeout")
    assert result.prompt_tokens > 0
    assert not flow.results.keys() & {*running, patient}
    flow.run()
    assert flow.results[patient] == session.generate([asked()])[0]


def test_rows_are_ended_before_the_next_step_and_not_fed(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Flow(session)
    row = flow.submit(asked(timeout=1.0))
    flow.step(seconds=1.0)
    monkeypatch.setattr(session.engine, "step", lambda step: pytest.fail("a step"))

    ((ended, event),) = flow.step()

    assert ended is row
    assert event.result is not None
    assert event.result.finish_reason == "timeout"
    assert not flow.flow.is_busy
    assert flow.step() == []


def test_time_that_is_not_over_changes_nothing(session: Session) -> None:
    requests = [asked(timeout=1000), Request("tone", {"sentence": "x"}, timeout=1000.5)]

    with_timeout = session.generate(requests)

    assert with_timeout == session.generate([replace(each, timeout=None) for each in requests])


def test_no_clock_is_read_where_no_request_has_a_timeout(session: Session) -> None:
    flow = Flow(session)
    flow.flow._clock = lambda: pytest.fail("read")

    flow.submit(asked())
    flow.run()


def test_text_that_was_held_is_handed_out_and_a_stop_text_in_it_ends_the_answer(
    session: Session,
) -> None:
    fox = session.tokenizer.encode("🦊", opens=False, markup=False)[0]
    a = session.tokenizer.encode("a", opens=False, markup=False)[0]
    blank = session.tokenizer.encode(" ", opens=False, markup=False)[0]
    flow = Flow(session)

    def ended(tokens: list[int], **options: Any) -> tuple[str, str, str, str]:
        row = flow._maker.row(0, asked(**options), "testing")
        given = ""
        for token in tokens:
            given += row.advance(Output(_likely(token), token)).text
        event = row.time_out()
        assert event.result is not None
        return given, event.text, event.result.text, event.result.finish_reason

    assert ended([a, fox]) == ("a", "\ufffd", "a\ufffd", "timeout")
    assert ended([a, fox], stop=("\ufffd",)) == ("a", "", "a", "stop")
    assert ended([a, a], stop=("aab",)) == ("", "aa", "aa", "timeout")
    assert ended([a, blank]) == ("a", "", "a", "timeout")
    assert ended([]) == ("", "", "", "timeout")


def _likely(token: int) -> Any:
    import numpy as np

    logits = np.zeros((1, 397), np.float32)
    logits[0, token] = 1
    return logits


@pytest.mark.parametrize("bias", [{"nobody": 100}, {"nobody": -100}, {}])
def test_a_choice_that_is_not_finished_never_looks_like_one(
    session: Session, bias: dict[str, float]
) -> None:
    trie = session.tasks["tone"].trie
    assert trie is not None
    words = {session.tokenizer.decode([key]).strip(): key for key in trie.tokens[1:]}
    request = Request("tone", {"sentence": "so cold"}, log_probs=0)
    (whole,) = session.generate([request])
    assert len(whole.token_ids) > 2
    assert words

    for tokens in range(len(whole.token_ids)):
        flow = Flow(session)
        row = flow.submit(replace(request, timeout=tokens + 0.5))
        flow.step()
        for _ in range(tokens):
            flow.now += 1
            flow.step()
        flow.now += 1
        flow.step()
        result = flow.results[row]
        if result.finish_reason == "stop":
            continue
        assert result.text == flow.pieces[row]
        assert result.text not in CHOICES
        assert any(choice.startswith(result.text) for choice in CHOICES)
        assert result.log_probs is not None
        assert len(result.log_probs) == len(result.token_ids)


def test_a_session_ends_answers_too(session: Session) -> None:
    requests = [asked(), asked(timeout=1e-9), Request("tone", {"sentence": "x"}, timeout=1e-9)]

    results = session.generate(requests)

    assert [result.finish_reason for result in results] == ["length", "timeout", "timeout"]
    assert results[0] == session.generate(requests[:1])[0]
    assert [result.text for result in results[1:]] == ["", ""]


# Priorities


def test_a_larger_priority_is_answered_first_and_changes_no_answer(session: Session) -> None:
    requests = [asked(f"{n}?", priority=n % 3 - 1) for n in range(9)]
    order: list[int] = []

    results: dict[int, Result] = {}
    for event in session.stream(requests):
        if event.result is not None:
            order.append(requests[event.index].priority)
            results[event.index] = event.result

    assert order == sorted(order, reverse=True)
    alone = session.generate([replace(request, priority=0) for request in requests])
    assert [results[index] for index in range(9)] == alone


# Prefixes


def test_tokens_of_a_prefix_are_counted_apart(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    table = random_table(tiny_bases["llama"], tmp_path / "table.safetensors", prefix=True)
    requests = [
        Request("tone", {"sentence": "so cold"}),
        Request("ask", {"question": "who?", "place": "a"}, max_tokens=3),
        Request("order", {"request": "lights"}, max_tokens=3),
        Request("order", {"request": "lights"}, max_tokens=3, use_prompt=False),
    ]
    found: dict[str, list[Result]] = {}
    for fold in ("never", "always"):
        asked = ExportRequest(
            table, tiny_bases["llama"], tmp_path / fold, fold=fold, measure_parity=False
        )
        with Session.open(export_bundle(asked).bundle) as session:
            found[fold] = session.generate(requests)
            openings = [len(session.tasks[r.task].renderer.opening()) for r in requests]

    assert [result.prefix_tokens for result in found["never"]] == [0, 0, 4, 0]
    assert [result.prefix_tokens for result in found["always"]] == [*openings[:2], 4, 0]
    for one, other in zip(*found.values(), strict=True):
        assert one.prompt_tokens == other.prompt_tokens > other.prefix_tokens
